"""Connections to one upstream: which request takes which, who waits, and what a failed attempt to connect means.

HTTP/1 gives a connection to one exchange at a time, HTTP/2 to many. A request never waits for a busy connection where a
new one may be made, as in Envoy; limits come from the destination rule.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from planes.l7.balance import Host
from planes.l7.connection import HttpConnection
from planes.l7.group import UNLIMITED, Group


class Waiter(Protocol):
    """A request that wants a connection. Whoever gives up says so by `forget`."""

    def begin(self, connection: HttpConnection) -> None: ...
    def no_connection(self, reason: str) -> None: ...


Connect = Callable[["Upstream"], Awaitable[HttpConnection]]


class Upstream:
    """One peer as reached in one way: address, security and protocol are `connect`'s and `key`'s affair."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, key: object, connect: Connect, *, multiplexed: bool,
        group: Group = UNLIMITED,
    ) -> None:  # fmt: skip
        self.key = key
        self.multiplexed = multiplexed
        self.group = group
        self.host: Host | None = None
        """What the balancer counts requests on."""
        self.connections: set[HttpConnection] = set()
        self._loop = loop
        self._connect = connect
        self._free: dict[HttpConnection, None] = {}
        """Those that take a request now, the last used last: that one is taken first, so the others can end idle."""
        self._waiting: deque[Waiter] = deque()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Upstream {self.key} connections {len(self.connections)} waiting {len(self._waiting)}>"

    @property
    def unused(self) -> bool:
        return not (self.connections or self._waiting or self._connecting)

    def take(self, waiter: Waiter) -> bool:
        """`waiter` begins at once on a usable connection, or later on a new one. False: too many wait already."""
        free = self._free
        while free:
            connection, _ = free.popitem()
            if connection.lost or not connection.codec.usable:  # type: ignore[attr-defined]
                continue
            if self.multiplexed:
                free[connection] = None
            self._begin(waiter, connection)
            return True
        circuit = self.group.circuit
        if circuit is not None and not circuit.wait():
            return False
        self._waiting.append(waiter)
        self._connect_for_waiting()
        return True

    def forget(self, waiter: Waiter) -> None:
        """It has given up waiting."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            self._waited()

    def turned(self, connection: HttpConnection) -> None:
        """Something happened on `connection`: it may be usable (again)."""
        if connection in self._free or connection.lost:
            return
        waiting = self._waiting
        while connection.codec.usable:  # type: ignore[attr-defined]
            if not waiting:
                self._free[connection] = None
                return
            waiter = waiting.popleft()
            self._waited()
            self._begin(waiter, connection)

    def lost(self, connection: HttpConnection) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self._disconnected()
        self._free.pop(connection, None)
        if self._waiting:
            self._connect_for_waiting()

    def end_idle(self, now_s: float) -> None:
        """Closes what nobody has used for too long."""
        limit_s = self.group.idle_limit_s
        for connection in list(self._free):
            if limit_s and connection.idle_s(now_s) >= limit_s:
                self._retire(connection)

    def close(self) -> None:
        """No new requests; connections end with what they carry."""
        for connection in list(self.connections):
            self._retire(connection)

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()

    def _begin(self, waiter: Waiter, connection: HttpConnection) -> None:
        connection.served += 1
        waiter.begin(connection)
        if connection.served == self.group.requests_per_connection:
            self._retire(connection)

    def _retire(self, connection: HttpConnection) -> None:
        self._free.pop(connection, None)
        connection.codec.drain()
        connection.wake()

    def _waited(self) -> None:
        if self.group.circuit is not None:
            self.group.circuit.waited()

    def _disconnected(self) -> None:
        if self.group.circuit is not None:
            self.group.circuit.connections -= 1

    def _connect_for_waiting(self) -> None:
        # One attempt is enough where a connection serves many.
        wanted = min(len(self._waiting), 1) if self.multiplexed else len(self._waiting)
        circuit = self.group.circuit
        while self._connecting < wanted:
            if circuit is not None:
                # Every endpoint is allowed its first connection, as in Envoy: else its requests might wait for ever.
                if not circuit.may_connect and (self.connections or self._connecting):
                    return
                circuit.connections += 1
            self._connecting += 1
            task = self._loop.create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            connection = await self._connect(self)
        except BaseException as cause:
            self._connecting -= 1
            self._disconnected()
            self._refuse(str(cause) or type(cause).__name__)
            if not isinstance(cause, (OSError, TimeoutError)):
                raise  # ours to mend, but nobody is left waiting
            return
        self._connecting -= 1
        if connection.lost:  # in the turn in which it was made
            self._disconnected()
            self._refuse("connection closed")
        else:
            self.connections.add(connection)
            self.turned(connection)
        self._connect_for_waiting()

    def _refuse(self, reason: str) -> None:
        """An attempt failed: where it would have served all, all hear so."""
        for _ in range(len(self._waiting) if self.multiplexed else min(1, len(self._waiting))):
            waiter = self._waiting.popleft()
            self._waited()
            waiter.no_connection(reason)
