"""An event loop whose clock jumps: where nothing is ready, the next timer is due at once. Sockets and TLS are real."""

from __future__ import annotations

import asyncio
import selectors

_SETTLE_S = 0.003
"""Loopback and this thread need a moment until what was sent is readable."""


class _Selector(selectors.EpollSelector):
    jump_s = 0.0

    def select(self, timeout: float | None = None) -> list:
        ready = super().select(min(_SETTLE_S, timeout) if timeout is not None else 1.0)
        if not ready and timeout:
            self.jump_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Minutes of timers pass in milliseconds; `time()` starts at 0."""

    def __init__(self) -> None:
        self._jumps = _Selector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.jump_s
