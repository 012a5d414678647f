"""How every proxy here starts and ends as a program: arguments, signals, what is said of a bug, exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from planes.mesh import allocator, net
from testbed.errors import TestbedError


class Program(Protocol):
    """One proxy, not started yet."""

    ended: asyncio.Event
    """Set when a drain is over."""

    async def start(self) -> None: ...
    def warn(self, text: str) -> None: ...
    def reload(self) -> None:
        """SIGHUP: whatever is in the files now."""
        ...

    def quit(self) -> None:
        """SIGTERM, SIGINT: drain, then set `ended`."""
        ...

    def stop_watching(self) -> None: ...


async def run(program: Program) -> None:
    """Until it has ended. What nobody caught is one line of its log, not a traceback per connection."""
    loop = asyncio.get_running_loop()

    def complain(_: asyncio.AbstractEventLoop, problem: dict) -> None:
        error = problem.get("exception")
        program.warn(f"{str(problem.get('message')).splitlines()[0]}: {error!r}")

    loop.set_exception_handler(complain)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, program.quit)
    loop.add_signal_handler(signal.SIGHUP, program.reload)
    await program.start()
    await program.ended.wait()
    program.stop_watching()


def main(name: str, make: Callable[[asyncio.AbstractEventLoop, Path], Program], arguments: list[str]) -> int:
    """Of `python -m planes.<name> --config <folder>/config.json`; `make` reads that file."""
    if len(arguments) != 2 or arguments[0] != "--config":
        print(f"usage: python -m planes.{name} --config <folder>/config.json", file=sys.stderr)
        return 2
    allocator.keep_freed()
    loop = net.new_loop()
    asyncio.set_event_loop(loop)

    async def go() -> None:
        await run(make(loop, Path(arguments[1]).resolve()))

    try:
        loop.run_until_complete(go())
    except TestbedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0
