"""The clock of a proxy's upkeep: is the view's file another one, and what is to be looked after now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WATCH_EVERY_S = 0.25
HOUSEKEEPING_EVERY_S = 10.0

Stamp = tuple[int, int] | None
"""What tells one version of a file from another; None where there is no file to watch."""


async def watch(
    loop: asyncio.AbstractEventLoop,
    stamp: Callable[[], Stamp],
    last: Stamp,
    *,
    changed: Callable[[], None],
    housekeep: Callable[[float], None],
) -> None:
    """For ever. `last` was true of what has been read; `housekeep` is told the loop's time."""
    last_s = loop.time()
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        try:
            now = stamp()
        except OSError:
            now = last  # between unlink and rename
        if now != last:
            last = now
            changed()
        now_s = loop.time()
        if now_s - last_s >= HOUSEKEEPING_EVERY_S:
            last_s = now_s
            housekeep(now_s)
