"""One request and its response, from the downstream stream that brought it to the upstream stream that serves it.

Codec-neutral: both sides are streams of `codec`. What is to become of the request is asked of a `Place` (a sidecar's
side, a waypoint), which decides; here bytes are moved, attempts repeated, limits of time kept, and what went wrong is
answered in Envoy's words (status, body, response flag).
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Protocol

from planes.l7.codec import ServerStream
from planes.l7.connection import HttpConnection
from planes.l7.decision import Decision, Kind
from planes.l7.message import Fields, Request, Response, field
from planes.l7.retry import Failure, Retrial, RetryLimit
from planes.l7.upstream import Upstream

REPLAY_MAX_BYTES = 64 << 10
"""A request's body is kept for another attempt up to here; a longer one is sent once."""
_TEXT = [(b"content-type", b"text/plain")]


class Cause(Enum):
    """Why an attempt ended without a response, as Envoy words it and flags it."""

    CONNECT = (b"connection failure", "UF", Failure(connect_failed=True))
    REFUSED = (b"remote refused stream reset", "UR", Failure(refused=True))
    RESET = (b"connection termination", "UC", Failure())
    TIMEOUT = (b"", "UT", Failure())
    """Its own limit of time."""


class Place(Protocol):
    """Who decides: one listener's side of a proxy."""

    loop: asyncio.AbstractEventLoop

    def decide(self, exchange: Exchange) -> Decision:
        """Policy first, then the route."""
        ...

    def choose(self, exchange: Exchange) -> Upstream | None:
        """An endpoint for this attempt (`exchange.tried` holds those before); None: no healthy one."""
        ...

    def outgoing(self, exchange: Exchange) -> Request:
        """The request as it goes upstream, edited."""
        ...

    def incoming(self, exchange: Exchange, response: Response) -> Response:
        """The response as it goes downstream, edited."""
        ...

    def draw(self) -> float: ...
    def retry_limit(self, exchange: Exchange) -> RetryLimit: ...
    def finished(self, exchange: Exchange) -> None:
        """After the last byte, both ways. For telemetry."""
        ...


class Exchange:
    """The downstream stream's sink."""

    __slots__ = (
        "_attempt",
        "_hold",
        "_kept",
        "_kept_bytes",
        "_timer",
        "attempts",
        "connection",
        "decision",
        "flag",
        "grpc_status",
        "over",
        "place",
        "reason",
        "request",
        "request_bytes",
        "request_done",
        "response",
        "response_bytes",
        "retrial",
        "started_s",
        "status",
        "stream",
        "trailers",
        "tried",
        "upstream",
    )  # fmt: skip

    def __init__(self, place: Place, connection: HttpConnection, stream: ServerStream, request: Request) -> None:
        self.place = place
        self.connection = connection
        self.stream = stream
        self.request = request
        self.started_s = place.loop.time()
        self.decision: Decision = None  # type: ignore[assignment]
        self.upstream: Upstream | None = None
        """Of the last attempt."""
        self.tried: list[Upstream] = []
        self.attempts = 0
        self.request_done = not request.has_body and not request.upgrade
        self.trailers: Fields = []
        self.request_bytes = 0
        self.response: Response | None = None
        """The final head, as sent downstream."""
        self.response_bytes = 0
        self.status = 0
        self.grpc_status = b""
        self.flag = ""
        """Envoy's response flag."""
        self.reason = ""
        self.over = False
        self.retrial: Retrial | None = None
        """Made at the first failure."""
        self._attempt: Attempt | None = None
        self._kept: list[bytes] | None = []
        """The request's body so far; None once it is not to be sent again."""
        self._kept_bytes = 0
        self._hold = False
        self._timer: asyncio.TimerHandle | None = None
        stream.sink = self
        self._begin()

    def __repr__(self) -> str:
        return f"<Exchange {self.request!r} {self.decision!r} {self.status or 'open'}>"

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        decision = self.decision = self.place.decide(self)
        if decision.flag:
            self.flag = decision.flag
        if decision.delay_s:
            self._brake()
            self._timer = self.place.loop.call_later(decision.delay_s, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        decision = self.decision
        if decision.kind is Kind.RESPOND:
            self.answer(decision.status, decision.body, decision.flag, fields=decision.fields)
            return
        if decision.timeout_s is not None and self.request_done:
            self._start_timeout()
        self._attempt_once()

    def _attempt_once(self) -> None:
        upstream = self.place.choose(self)
        if upstream is None:
            self.answer(503, b"no healthy upstream", "UH")
            return
        self.attempts += 1
        self.upstream = upstream
        attempt = self._attempt = Attempt(self, upstream)
        if not self.request_done:
            self._brake()
        upstream.active += 1
        upstream.take(attempt)

    # -- the request's side: sink of the downstream stream -------------------------------------------------------------

    def data(self, data: bytes | memoryview) -> None:
        size = len(data)
        self.request_bytes += size
        if self.over:
            return
        attempt = self._attempt
        stream = attempt.stream if attempt is not None else None
        if self._kept is not None:
            self._kept.append(bytes(data))
            self._kept_bytes += size
            if stream is not None and self._kept_bytes > REPLAY_MAX_BYTES:
                self._kept = None
        if stream is None:
            self._brake()  # nobody to send it to yet
        elif not stream.send_data(data):
            self._brake()

    def ended(self, trailers: Fields) -> None:
        if self.over:
            return
        self.request_done = True
        self.trailers = trailers
        if self.decision is not None and self.decision.timeout_s is not None and self._timer is None:
            self._start_timeout()
        attempt = self._attempt
        if attempt is not None and attempt.stream is not None:
            attempt.stream.end(trailers)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        if self.over:
            return
        self.reason = reason
        self.flag = "DC"
        attempt = self._attempt
        if attempt is not None:
            attempt.give_up("downstream went away")
        self._finish()

    def writable(self) -> None:
        attempt = self._attempt
        if attempt is not None and attempt.stream is not None:
            attempt.stream.release()

    def _brake(self) -> None:
        if not self._hold:
            self._hold = True
            self.stream.hold()

    def release(self) -> None:
        """Upstream takes more."""
        if self._hold:
            self._hold = False
            self.stream.release()

    # -- the response's side, told by the attempt ----------------------------------------------------------------------

    def sending(self, attempt: Attempt) -> None:
        """The attempt has its stream: what is there of the body follows the head."""
        stream = attempt.stream
        assert stream is not None
        open_ = True
        if self._kept:
            for data in self._kept:
                open_ = stream.send_data(data)
            if self._kept_bytes > REPLAY_MAX_BYTES:
                self._kept = None
        if self.request_done and (self.request.has_body or self.request.upgrade):
            stream.end(self.trailers)
        elif open_:
            self.release()

    def answered(self, attempt: Attempt, response: Response) -> None:
        if self.decision.retry is not None and (response.status >= 400 or not response.has_body):
            grpc = field(response.fields, b"grpc-status") if not response.has_body else None
            failure = Failure(
                status=response.status, grpc_status=int(grpc) if grpc is not None and grpc.isdigit() else None,
                overloaded=response.status == 503 and field(response.fields, b"x-envoy-overloaded") is not None,
            )  # fmt: skip
            pause_s = self._another_try(failure) if failure.status != 200 or grpc not in (None, b"0") else None
            if pause_s is not None:
                attempt.give_up("retried")
                self._retry(pause_s)
                return
        self._kept = None
        self._stop_timer()
        response = self.place.incoming(self, response)
        self.response = response
        self.status = response.status
        self.stream.send_head(response)
        if not response.has_body and response.status != 101 and not self._is_tunnel(response):
            self._answer_done([])

    def _is_tunnel(self, response: Response) -> bool:
        return bool(self.request.upgrade or self.request.method == b"CONNECT") and response.status < 300

    def answer_data(self, attempt: Attempt, data: bytes | memoryview) -> None:
        self.response_bytes += len(data)
        if not self.stream.send_data(data) and attempt.stream is not None:
            attempt.stream.hold()

    def answer_ended(self, trailers: Fields) -> None:
        self.stream.end(trailers)
        self._answer_done(trailers)

    def _answer_done(self, trailers: Fields) -> None:
        for source in (trailers, self.response.fields if self.response is not None else ()):
            for name, value in source:
                if name == b"grpc-status":
                    self.grpc_status = value
        self._finish()

    def attempt_failed(self, cause: Cause, reason: str) -> None:
        """No response of this attempt, or no more of it, will come."""
        self.reason = reason
        if self.response is not None:
            self.flag = "UC"
            self.stream.reset(reason)
            self._finish()
            return
        pause_s = self._another_try(cause.value[2])
        if pause_s is not None:
            self._retry(pause_s)
        elif cause is Cause.TIMEOUT:
            self.answer(504, b"upstream request timeout", "UT")
        else:
            text, flag, _ = cause.value
            self.answer(503, b"upstream connect error or disconnect/reset before headers. reset reason: " + text, flag)

    def _another_try(self, failure: Failure) -> float | None:
        """The pause before it; None: what came stands."""
        if self.decision.retry is None:
            return None
        if self.retrial is None:
            self.retrial = Retrial(self.decision.retry, self.place.retry_limit(self))
        return self.retrial.again(failure, draw=self.place.draw, replayable=self._kept is not None)

    def _retry(self, pause_s: float) -> None:
        assert self.upstream is not None
        self.tried.append(self.upstream)
        self._attempt = None
        self._stop_timer()  # the overall limit is counted from the request's end in any case
        self._timer = self.place.loop.call_later(pause_s, self._again)

    def _again(self) -> None:
        self._timer = None
        if self.over:
            return
        if self.decision.timeout_s is not None:
            self._start_timeout()
        self._attempt_once()

    # -- answers of the proxy itself -----------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, flag: str, *, fields: Fields | None = None) -> None:
        """The proxy's own response, if there is none yet."""
        if self.over:
            return
        self.flag = flag
        self._kept = None
        head = list(fields) if fields else ([*_TEXT] if body else [])
        if _is_grpc(self.request) and not fields:
            # Envoy tells gRPC clients in their own way: trailers-only (RFC-less, but every gRPC client reads it).
            head = [(b"content-type", b"application/grpc"), (b"grpc-status", _GRPC_OF.get(status, b"2")),
                    (b"grpc-message", body)]  # fmt: skip
            status, body = 200, b""
        response = Response(status, head, has_body=bool(body), content_length=len(body))
        response = self.place.incoming(self, response)
        self.response, self.status = response, status
        self.stream.send_head(response)
        if body:
            if self.request.method != b"HEAD":
                self.stream.send_data(body)
            self.stream.end()
        self.response_bytes = len(body)
        self.release()
        self._finish()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _start_timeout(self) -> None:
        limit_s = self.decision.timeout_s
        assert limit_s is not None
        left_s = self.started_s + limit_s - self.place.loop.time() if self.attempts else limit_s
        self._timer = self.place.loop.call_later(max(left_s, 0.0), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if self.over or self.response is not None:
            return
        if self._attempt is not None:
            self._attempt.give_up("timeout")
        self.answer(504, b"upstream request timeout", "UT")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self) -> None:
        if self.over:
            return
        self.over = True
        self._stop_timer()
        self._kept = None
        attempt = self._attempt
        if attempt is not None:
            attempt.done()
        if self.retrial is not None:
            self.retrial.over()
        self.place.finished(self)


class Attempt:
    """One try at one endpoint: waits for a connection, then is the upstream stream's sink."""

    __slots__ = ("_timer", "exchange", "over", "stream", "upstream")

    def __init__(self, exchange: Exchange, upstream: Upstream) -> None:
        self.exchange = exchange
        self.upstream = upstream
        self.stream = None
        self.over = False
        self._timer: asyncio.TimerHandle | None = None
        policy = exchange.decision.retry
        if policy is not None and policy.per_try_timeout_s is not None:
            self._timer = exchange.place.loop.call_later(policy.per_try_timeout_s, self._timed_out)

    # -- waiting

    def begin(self, connection: HttpConnection) -> None:
        if self.over:
            return
        exchange = self.exchange
        request = exchange.place.outgoing(exchange)
        self.stream = connection.codec.open(request, self)  # type: ignore[attr-defined]
        exchange.sending(self)

    def no_connection(self, reason: str) -> None:
        if not self.over:
            self.done()
            self.exchange.attempt_failed(Cause.CONNECT, reason)

    # -- sink of the upstream stream

    def interim(self, response: Response) -> None:
        if not self.over:
            self.exchange.stream.send_head(response)

    def head(self, response: Response) -> None:
        if not self.over:
            if self._timer is not None:
                self._timer.cancel()
            self.exchange.answered(self, response)

    def data(self, data: bytes | memoryview) -> None:
        if not self.over:
            self.exchange.answer_data(self, data)

    def ended(self, trailers: Fields) -> None:
        if not self.over:
            self.exchange.answer_ended(trailers)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        if not self.over:
            self.done()
            self.exchange.attempt_failed(Cause.REFUSED if unprocessed else Cause.RESET, reason)

    def writable(self) -> None:
        if not self.over:
            self.exchange.release()

    # -- ends

    def give_up(self, reason: str) -> None:
        stream = self.stream
        self.done()
        if stream is not None:
            stream.reset(reason)
        else:
            self.upstream.forget(self)

    def done(self) -> None:
        if self.over:
            return
        self.over = True
        self.upstream.active -= 1
        if self._timer is not None:
            self._timer.cancel()

    def _timed_out(self) -> None:
        self.give_up("per try timeout")
        self.exchange.attempt_failed(Cause.TIMEOUT, "per try timeout")


_GRPC_OF = {400: b"13", 401: b"16", 403: b"7", 404: b"12", 429: b"14", 502: b"14", 503: b"14", 504: b"14"}


def _is_grpc(request: Request) -> bool:
    for name, value in request.fields:
        if name == b"content-type":
            return value.startswith(b"application/grpc")
    return False
