"""Connections to one upstream: which request takes which, who waits, and what a failed attempt to connect means.

HTTP/1 gives a connection to one exchange at a time, HTTP/2 to many. A request never waits for a busy connection where a
new one may be made, as in Envoy; limits come from the destination rule.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from planes.l7.connection import HttpConnection

CONNECTIONS_MAX = 1 << 20
H2_CONNECTING_MAX = 1
"""Attempts under way at once where one connection serves many requests."""


class Waiter(Protocol):
    """A request that wants a connection."""

    def begin(self, connection: HttpConnection) -> None: ...
    def no_connection(self, reason: str) -> None: ...


Connect = Callable[["Upstream"], Awaitable[HttpConnection]]


class Upstream:
    """One peer as reached in one way: address, security and protocol are `connect`'s and `key`'s affair."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, key: object, connect: Connect, *, multiplexed: bool,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:  # fmt: skip
        self.key = key
        self.multiplexed = multiplexed
        self.active = 0
        """Requests sent or waiting: what least-request balancing compares."""
        self.connections: set[HttpConnection] = set()
        self._loop = loop
        self._connect = connect
        self._connections_max = connections_max
        self._free: list[HttpConnection] = []
        self._waiting: deque[Waiter] = deque()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Upstream {self.key} connections {len(self.connections)} waiting {len(self._waiting)}>"

    def take(self, waiter: Waiter) -> None:
        """`waiter` begins at once on a usable connection, or later on a new one."""
        free = self._free
        while free:
            connection = free[-1]
            if connection.lost or not connection.codec.usable:  # type: ignore[attr-defined]
                free.pop()
                continue
            if not self.multiplexed:
                free.pop()
            waiter.begin(connection)
            return
        self._waiting.append(waiter)
        self._connect_for_waiting()

    def forget(self, waiter: Waiter) -> None:
        """It has given up waiting."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def made(self, connection: HttpConnection) -> None:
        self.connections.add(connection)
        self.turned(connection)

    def turned(self, connection: HttpConnection) -> None:
        """Something happened on `connection`: it may be usable (again)."""
        while not connection.lost and connection.codec.usable:  # type: ignore[attr-defined]
            if self._waiting:
                self._waiting.popleft().begin(connection)
                continue
            if connection not in self._free:
                self._free.append(connection)
            return

    def lost(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        self._connect_for_waiting()

    def close(self) -> None:
        """No new requests; connections end with what they carry."""
        for connection in list(self.connections):
            connection.codec.drain()
            connection.wake()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()

    def _connect_for_waiting(self) -> None:
        wanted = min(len(self._waiting), H2_CONNECTING_MAX if self.multiplexed else len(self._waiting))
        room = self._connections_max - len(self.connections)
        while self._connecting < min(wanted, room):
            self._connecting += 1
            task = self._loop.create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            connection = await self._connect(self)
        except (OSError, ConnectionError, TimeoutError) as cause:
            self._connecting -= 1
            failed = list(self._waiting) if self.multiplexed else [self._waiting.popleft()] if self._waiting else []
            if self.multiplexed:
                self._waiting.clear()
            for waiter in failed:
                waiter.no_connection(str(cause) or type(cause).__name__)
            return
        except BaseException:
            self._connecting -= 1
            raise
        self._connecting -= 1
        self.made(connection)
        self._connect_for_waiting()
