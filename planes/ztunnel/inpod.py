"""How a ztunnel learns of workloads: a SOCK_SEQPACKET socket of the node agent (facts/hbone 2.14).

ztunnel is the client: it says hello; `add` comes with exactly one netns descriptor, `del`, `keep` and `snapshot_sent`
without; each is answered by an `ack` whose `error` is empty when all is well. The messages are JSON here where
ztunnel has protobuf; fields have the same names.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from testbed.errors import PeerError

_MESSAGE_LIMIT = 64 * 1024
RECONNECT_MAX_S = 15.0


async def follow(
    path: Path,
    *,
    add: Callable[[str, str, str, int], Awaitable[None]],
    remove: Callable[[str], Awaitable[None]],
    snapshot: Callable[[set[str]], Awaitable[None]],
    warn: Callable[[str], None],
) -> None:
    """Runs for ever; `add(uid, namespace, name, netns)` owns the descriptor. Proxies outlive a lost connection."""
    loop = asyncio.get_running_loop()
    pause_s = 0.05
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
            try:
                # The full path may be longer than the 107 bytes that a socket address holds.
                await loop.sock_connect(sock, f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
            pause_s = 0.05
            await _send(loop, sock, {"hello": {"version": "V1"}})
            await _converse(loop, sock, add, remove, snapshot)
            warn(f"node agent closed {path}; proxies keep running")
        except OSError as cause:
            if pause_s >= 1.0:
                warn(f"node agent at {path}: {cause}; trying again")
        finally:
            sock.close()
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, RECONNECT_MAX_S)


async def _converse(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    add: Callable[[str, str, str, int], Awaitable[None]],
    remove: Callable[[str], Awaitable[None]],
    snapshot: Callable[[set[str]], Awaitable[None]],
) -> None:
    seen: set[str] = set()
    while True:
        data, fds = await _receive(loop, sock)
        if not data:
            return
        error = ""
        try:
            message = json.loads(data)
            if "add" in message:
                if len(fds) != 1:
                    raise PeerError(f"add with {len(fds)} descriptors, 1 wanted")
                uid, info = message["add"]["uid"], message["add"]["workload_info"]
                seen.add(uid)
                await add(uid, info["namespace"], info["name"], fds.pop())
            elif "del" in message:
                seen.discard(message["del"]["uid"])
                await remove(message["del"]["uid"])
            elif "keep" in message:
                seen.add(message["keep"]["uid"])
            elif "snapshot_sent" in message:
                await snapshot(set(seen))
            else:
                raise PeerError(f"unknown message {sorted(message)}")
        except Exception as cause:  # told to the agent, which is the one who can mend it
            error = f"{type(cause).__name__}: {cause}"
        finally:
            for fd in fds:
                os.close(fd)
        await _send(loop, sock, {"ack": {"error": error}})


async def _send(loop: asyncio.AbstractEventLoop, sock: socket.socket, message: dict) -> None:
    await loop.sock_sendall(sock, json.dumps(message).encode())


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, _MESSAGE_LIMIT, 8, socket.MSG_CMSG_CLOEXEC)
            return data, list(fds)
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock.fileno(), lambda held: held.done() or held.set_result(None), ready)
            try:
                await ready
            finally:
                loop.remove_reader(sock.fileno())
