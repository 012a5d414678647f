"""Which HBONE connection a new tunnel takes: ztunnel's pool rules, without I/O of their own (facts/hbone 1.7).

One pool per workload. A key has at most one connection in the pool; one that has reached its stream limit leaves it for
good and ends with its last tunnel. At most one attempt per key is under way; others wait for it and then look again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

MAX_STREAMS = 100
UNUSED_RELEASE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKey:
    source_identity: str
    expected: frozenset[str]
    destination: tuple[str, int]
    source_ip: str


class Pooled(Protocol):
    """What the pool needs of a session."""

    @property
    def usable(self) -> bool: ...
    @property
    def active_streams(self) -> int: ...
    @property
    def stream_limit(self) -> int | None:
        """The peer's MAX_CONCURRENT_STREAMS."""
        ...

    def retire(self) -> None: ...


S = TypeVar("S", bound=Pooled)


class Pool:
    def __init__(self, *, max_streams: int = MAX_STREAMS) -> None:
        self._max_streams = max_streams
        self._ready: dict[PoolKey, tuple[Pooled, float]] = {}
        self._connecting: dict[PoolKey, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<Pool ready {len(self._ready)} connecting {len(self._connecting)}>"

    def take(self, key: PoolKey, now_s: float) -> Pooled | None:
        """A connection for exactly one new tunnel, to be opened before anything else happens."""
        held = self._ready.get(key)
        if held is None:
            return None
        session = held[0]
        if not session.usable:
            del self._ready[key]
            return None
        self._place(key, session, now_s)
        return session

    async def checkout(self, key: PoolKey, connect: Callable[[], Awaitable[S]], now: Callable[[], float]) -> S:
        """As `take`, else by a new connection. What `connect` raises goes to its caller; others try anew."""
        while True:
            session = self.take(key, now())
            if session is not None:
                return session  # type: ignore[return-value]
            under_way = self._connecting.get(key)
            if under_way is None:
                break
            await under_way.wait()
        self._connecting[key] = done = asyncio.Event()
        try:
            made = await connect()
            self._place(key, made, now())
            return made
        finally:
            del self._connecting[key]
            done.set()

    def _place(self, key: PoolKey, session: Pooled, now_s: float) -> None:
        limit = self._max_streams if session.stream_limit is None else min(self._max_streams, session.stream_limit)
        if session.active_streams + 1 >= limit:
            self._ready.pop(key, None)
        else:
            self._ready[key] = (session, now_s)

    def expire(self, now_s: float) -> None:
        """Drops what nobody has taken for five minutes; it closes when its last tunnel ends."""
        for key, (session, taken_s) in list(self._ready.items()):
            if now_s - taken_s >= UNUSED_RELEASE_S or not session.usable:
                del self._ready[key]
                session.retire()

    def clear(self) -> None:
        for session, _ in self._ready.values():
            session.retire()
        self._ready.clear()
