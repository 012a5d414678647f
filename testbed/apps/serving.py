"""How an application of the lab listens, says that it is ready, and learns that it is to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

DRAIN_S = 5.0
"""What is still under way at the end has this long."""


async def listen_until_told(make: Callable[[], asyncio.Protocol], *, address: str, ports: Sequence[int]) -> None:
    """Serves until SIGTERM or SIGINT; on return nothing listens, and connections are as they were."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [await loop.create_server(make, address, port, backlog=1024) for port in ports]
    for server in servers:
        print(f"listening {server.sockets[0].getsockname()[1]}")
    print("ready", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


async def until_empty(connections: set) -> None:
    """Until all have left the set, or `DRAIN_S` are over."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + DRAIN_S
    while connections and loop.time() < deadline_s:
        await asyncio.sleep(0.02)
