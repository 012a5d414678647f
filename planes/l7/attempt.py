"""One try of a request at one endpoint: waits for a connection, then is the upstream stream's sink."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Protocol

from planes.l7.codec import ClientStream
from planes.l7.connection import HttpConnection
from planes.l7.decision import Decision
from planes.l7.message import Fields, Request, Response
from planes.l7.retry import Failure
from planes.l7.upstream import Upstream


class Cause(Enum):
    """Why an attempt ended without a response, as Envoy words it and flags it."""

    CONNECT = (b"connection failure", "UF", Failure(connect_failed=True))
    REFUSED = (b"remote refused stream reset", "UR", Failure(refused=True))
    RESET = (b"connection termination", "UC", Failure())
    OVERFLOW = (b"overflow", "UO", Failure(overloaded=True))
    """Our own circuit breaker."""
    TIMEOUT = (b"", "UT", Failure())
    """Its own limit of time."""


class Side(Protocol):
    """Where the asker's request came in."""

    loop: asyncio.AbstractEventLoop

    def outgoing(self, exchange: Any) -> Request: ...


class Asker(Protocol):
    """Whose request is tried, an exchange's: it is told what comes of it."""

    decision: Decision

    @property
    def place(self) -> Side: ...
    def sending(self, attempt: Attempt) -> None: ...
    def interim(self, response: Response) -> None: ...
    def answered(self, attempt: Attempt, response: Response) -> None: ...
    def answer_data(self, attempt: Attempt, data: bytes | memoryview) -> None: ...
    def answer_ended(self, trailers: Fields) -> None: ...
    def attempt_failed(self, cause: Cause, reason: str) -> None: ...
    def release(self) -> None: ...


class Attempt:
    __slots__ = ("_timer", "connection", "exchange", "over", "stream", "upstream")

    def __init__(self, exchange: Asker, upstream: Upstream) -> None:
        self.exchange = exchange
        self.upstream = upstream
        self.stream: ClientStream | None = None
        self.connection: HttpConnection | None = None
        self.over = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        upstream, group = self.upstream, self.upstream.group
        if upstream.host is not None:
            upstream.host.active += 1
        group.retries.active_requests += 1
        circuit = group.circuit
        if circuit is not None:
            if not circuit.admit():
                circuit.requests += 1  # `done` takes it off again
                self._refused()
                return
            if not upstream.take(self):
                self._refused()
                return
        else:
            upstream.take(self)
        policy = self.exchange.decision.retry
        if policy is not None and policy.per_try_timeout_s is not None and not self.over:
            self._timer = self.exchange.place.loop.call_later(policy.per_try_timeout_s, self._timed_out)

    def _refused(self) -> None:
        self.done()
        self.exchange.attempt_failed(Cause.OVERFLOW, "overflow")

    # -- waiting

    def begin(self, connection: HttpConnection) -> None:
        exchange = self.exchange
        self.connection = connection
        request = exchange.place.outgoing(exchange)
        self.stream = connection.codec.open(request, self)  # type: ignore[attr-defined]
        if request.has_body or request.upgrade:
            exchange.sending(self)

    def no_connection(self, reason: str) -> None:
        self._ended_badly(Cause.CONNECT, reason)

    # -- sink of the upstream stream

    def interim(self, response: Response) -> None:
        if not self.over:
            self.exchange.interim(response)

    def head(self, response: Response) -> None:
        if not self.over:
            if self._timer is not None:
                self._stop_timer()
            self.exchange.answered(self, response)

    def data(self, data: bytes | memoryview) -> None:
        if not self.over:
            self.exchange.answer_data(self, data)

    def ended(self, trailers: Fields) -> None:
        if not self.over:
            self.exchange.answer_ended(trailers)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self._ended_badly(Cause.REFUSED if unprocessed else Cause.RESET, reason)

    def writable(self) -> None:
        if not self.over:
            self.exchange.release()

    # -- ends

    def give_up(self, reason: str) -> None:
        stream, upstream = self.stream, self.upstream
        if self.over:
            return
        self.done()
        if stream is not None:
            stream.reset(reason)
        else:
            upstream.forget(self)

    def done(self) -> None:
        """Counts it off; nothing that still comes is heard."""
        if self.over:
            return
        self.over = True
        self.stream = None
        upstream, group = self.upstream, self.upstream.group
        if upstream.host is not None:
            upstream.host.active -= 1
        group.retries.active_requests -= 1
        if group.circuit is not None:
            group.circuit.done()
        if self._timer is not None:
            self._stop_timer()

    def _stop_timer(self) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._timer = None

    def _ended_badly(self, cause: Cause, reason: str) -> None:
        if self.over:
            return
        self.done()
        self.exchange.attempt_failed(cause, reason)

    def _timed_out(self) -> None:
        self._timer = None
        self.give_up("per try timeout")
        self.exchange.attempt_failed(Cause.TIMEOUT, "per try timeout")
