"""One request and its response, from the downstream stream that brought it to the upstream stream that serves it.

Codec-neutral: both sides are streams of `codec`. What is to become of the request is asked of a `Place` (a sidecar's
side, a waypoint), which decides; here bytes are moved, attempts repeated, limits of time kept, and what went wrong is
answered in Envoy's words (status, body, response flag).
"""

from __future__ import annotations

import asyncio

from planes.l7.asked import NOBODY, Place
from planes.l7.attempt import Attempt, Cause
from planes.l7.codec import ServerStream
from planes.l7.connection import LARGE_BYTES, HttpConnection
from planes.l7.decision import Decision, Kind
from planes.l7.message import Fields, Request, Response, field
from planes.l7.retry import Failure, Retrial
from planes.l7.shadow import Shadow
from planes.l7.upstream import Upstream

REPLAY_MAX_BYTES = 64 << 10
"""A request's body is kept for another attempt up to here; a longer one is sent once."""
_NONE: Fields = []
_TEXT = [(b"content-type", b"text/plain")]
_OVERLOADED = [*_TEXT, (b"x-envoy-overloaded", b"true")]


class Exchange:
    """The downstream stream's sink."""

    __slots__ = (
        "_answer_whole", "_attempt", "_deadline", "_hold", "_kept", "_kept_bytes", "_pause", "_replayable", "_shadows",
        "attempts", "connection", "decision", "flag", "grpc_status", "over", "place", "reason", "request",
        "request_bytes", "request_done", "response", "response_bytes", "retrial", "stamped", "started_s", "status",
        "stream", "trailers", "tried", "upstream",
    )  # fmt: skip

    def __init__(self, place: Place, connection: HttpConnection, stream: ServerStream, request: Request) -> None:
        self.place = place
        self.connection = connection
        self.stream = stream
        self.request = request
        self.started_s = place.loop.time()
        self.request_done = not request.has_body and not request.upgrade
        self.upstream: Upstream | None = None
        """Of the last attempt."""
        self.tried: tuple[Upstream, ...] = ()
        self.attempts = 0
        self.trailers: Fields = _NONE
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
        self.stamped = False
        """The request bears what the proxy itself writes: once, however many attempts and mirrors it takes."""
        self.retrial: Retrial | None = None
        """Made at the first failure."""
        self._attempt: Attempt | None = None
        self._answer_whole = False
        """Of a tunnel whose other direction still runs."""
        self._kept: list[bytes] | None = None
        """The request's body so far, as long as it may have to be sent (again)."""
        self._kept_bytes = 0
        self._replayable = True
        self._hold = False
        self._shadows: list[Shadow] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        """The end of all attempts."""
        self._pause: asyncio.TimerHandle | None = None
        """An injected delay, or the wait before another attempt."""
        stream.sink = self
        self.decision = decision = place.decide(self)
        if decision.flag or decision.delay_s:
            self._begin_late(decision)
        else:
            self._go_on()

    def __repr__(self) -> str:
        return f"<Exchange {self.request!r} {self.decision!r} {self.status or 'open'}>"

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _begin_late(self, decision: Decision) -> None:
        self.flag = decision.flag
        if decision.delay_s:
            self._brake()
            self._pause = self.place.loop.call_later(decision.delay_s, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._pause = None
        decision = self.decision
        if decision.kind is Kind.RESPOND:
            self.answer(decision.status, decision.body, decision.flag, fields=decision.fields)
            return
        if decision.timeout_s is not None and self.request_done:
            self._start_deadline()
        self._try()
        if decision.mirrors:
            self._mirror()

    def _try(self) -> None:
        upstream = self.place.choose(self)
        if upstream is None:
            self.answer(503, b"no healthy upstream", "UH")
            return
        self.attempts += 1
        self.upstream = upstream
        attempt = self._attempt = Attempt(self, upstream)
        if not self.request_done:
            self._brake()
        attempt.start()

    def _mirror(self) -> None:
        shadows = []
        for cluster in self.decision.mirrors:
            upstream = self.place.mirror(self, cluster)
            if upstream is not None and not self.request.upgrade and not self.over:
                shadows.append(Shadow(self.place.outgoing(self), upstream))
        for data in self._kept or ():
            for shadow in shadows:
                shadow.pass_on(data)
        if self.request_done and self.request.has_body:
            for shadow in shadows:
                shadow.finish(self.trailers)
        self._shadows = shadows

    # -- the request's side: sink of the downstream stream -------------------------------------------------------------

    def data(self, data: bytes | memoryview) -> None:
        size = len(data)
        self.request_bytes += size
        if self.over:
            return
        if self._shadows is not None:
            for shadow in self._shadows:
                shadow.pass_on(data)
        attempt = self._attempt
        stream = attempt.stream if attempt is not None else None
        if stream is None:
            self._keep(data)
            self._brake()  # nobody to send it to yet
            return
        if self._replayable and self.decision.retry is not None:
            self._keep(data)
            self._forget_long()
        open_ = stream.send_data(data)
        if size >= LARGE_BYTES:
            attempt.connection.large(size)  # type: ignore[union-attr]
        if not open_:
            self._brake()

    def _keep(self, data: bytes | memoryview) -> None:
        if self._kept is None:
            self._kept = []
        self._kept.append(bytes(data))
        self._kept_bytes += len(data)

    def _forget_long(self) -> None:
        """What has been sent is kept for another attempt only if there may be one, and it is short."""
        if self._kept_bytes and (self._kept_bytes > REPLAY_MAX_BYTES or self.decision.retry is None):
            self._kept = None
            self._replayable = False

    def ended(self, trailers: Fields) -> None:
        if self.over:
            return
        self.request_done = True
        self.trailers = trailers
        if self.attempts and self.decision.timeout_s is not None and not self._answer_whole:
            self._start_deadline()
        for shadow in self._shadows or ():
            shadow.finish(trailers)
        attempt = self._attempt
        if attempt is not None and attempt.stream is not None:
            attempt.stream.end(trailers)
        if self._answer_whole:
            self._answer_done(())

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        if self.over:
            return
        self.reason = reason
        self.flag = "DC"
        attempt = self._attempt
        if attempt is not None:
            attempt.give_up("CANCEL")
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
        """The attempt has its stream: what is there of the body, or of an upgrade's bytes, follows the head."""
        stream = attempt.stream
        assert stream is not None
        open_ = True
        for data in self._kept or ():
            open_ = stream.send_data(data)
        self._forget_long()
        if self.request_done:
            stream.end(self.trailers)
        elif open_:
            self.release()

    def interim(self, response: Response) -> None:
        self.stream.send_head(response)

    def answered(self, attempt: Attempt, response: Response) -> None:
        upstream = attempt.upstream
        if upstream.group.detector is not None:
            upstream.group.observe(upstream.host, response.status, self.place.loop.time())
        if self.decision.retry is not None and (response.status >= 400 or not response.has_body):
            pause_s = self._after_answer(response)
            if pause_s is not None:
                attempt.give_up("retried")
                self._again_after(pause_s)
                return
        if self._kept is not None:
            self._kept = None
        self._replayable = False
        if self.decision.response_edits:
            response = self.place.incoming(self, response)
        self.response = response
        self.status = response.status
        self.stream.send_head(response)
        if not response.has_body and response.status != 101 and not self._is_tunnel(response):
            self._answer_done(())

    def _after_answer(self, response: Response) -> float | None:
        """The pause before another try, if this answer is reason for one."""
        status = response.status
        grpc = None if response.has_body else field(response.fields, b"grpc-status")
        if status < 400 and grpc in (None, b"0"):
            return None
        overloaded = status == 503 and field(response.fields, b"x-envoy-overloaded") is not None
        grpc_status = int(grpc) if grpc is not None and grpc.isdigit() else None
        return self._another_try(Failure(status=status, grpc_status=grpc_status, overloaded=overloaded))

    def _is_tunnel(self, response: Response) -> bool:
        return bool(self.request.upgrade or self.request.method == b"CONNECT") and response.status < 300

    def answer_data(self, attempt: Attempt, data: bytes | memoryview) -> None:
        size = len(data)
        self.response_bytes += size
        open_ = self.stream.send_data(data)
        if size >= LARGE_BYTES:
            self.connection.large(size)
        if not open_ and attempt.stream is not None:
            attempt.stream.hold()

    def answer_ended(self, trailers: Fields) -> None:
        self.stream.end(trailers)
        if not self.request_done and self.response is not None and self._is_tunnel(self.response):
            self._answer_whole = True  # the other direction goes on until its own end
        else:
            self._answer_done(trailers)

    def _answer_done(self, trailers: Fields | tuple[()]) -> None:
        for name, value in trailers:
            if name == b"grpc-status":
                self.grpc_status = value
        response = self.response
        if response is not None and not response.has_body and not self.grpc_status:  # gRPC's "trailers only"
            self.grpc_status = field(response.fields, b"grpc-status") or b""
        if not self.request_done and self._attempt is not None:
            self._attempt.give_up("CANCEL")  # an early answer: the rest of the request has lost its purpose
        self._finish()

    def attempt_failed(self, cause: Cause, reason: str) -> None:
        """No response of this attempt, or no more of it, will come."""
        self.reason = reason
        upstream = self.upstream
        if upstream is not None and cause is not Cause.OVERFLOW and self.response is None:
            upstream.group.observe(upstream.host, None, self.place.loop.time())
        if self.response is not None:
            self.flag = "UC"
            self.stream.reset(reason)
            self._finish()
            return
        pause_s = self._another_try(cause.value[2])
        if pause_s is not None:
            self._again_after(pause_s)
        elif cause is Cause.TIMEOUT:
            self.answer(504, b"upstream request timeout", "UT")
        else:
            text, flag, _ = cause.value
            fields = _OVERLOADED if cause is Cause.OVERFLOW else None
            again = b"retried and the latest " if self.attempts > 1 else b""
            body = b"upstream connect error or disconnect/reset before headers. " + again + b"reset reason: " + text
            self.answer(503, body, flag, fields=fields)

    def _another_try(self, failure: Failure) -> float | None:
        """The pause before it; None: what came stands."""
        if self.decision.retry is None or self.upstream is None:
            return None
        if self.retrial is None:
            self.retrial = Retrial(self.decision.retry, self.upstream.group.retries)
        return self.retrial.again(failure, draw=self.place.draw, replayable=self._replayable)

    def _again_after(self, pause_s: float) -> None:
        assert self.upstream is not None
        self.tried += (self.upstream,)
        self._attempt = None
        self._pause = self.place.loop.call_later(pause_s, self._again)

    def _again(self) -> None:
        self._pause = None
        if not self.over:
            self._try()

    # -- answers of the proxy itself -----------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, flag: str, *, fields: Fields | None = None) -> None:
        """The proxy's own response, if there is none yet."""
        if self.over:
            return
        self.flag = flag or self.flag
        self._kept = None
        head = list(fields) if fields else ([*_TEXT] if body else [])
        if _is_grpc(self.request) and field(head, b"grpc-status") is None:
            # Envoy tells gRPC clients in their own way: trailers-only (RFC-less, but every gRPC client reads it).
            head = [(b"content-type", b"application/grpc"), (b"grpc-status", _GRPC_OF.get(status, b"2")),
                    (b"grpc-message", body)]  # fmt: skip
            status, body = 200, b""
        response = Response(status, head, has_body=bool(body), content_length=len(body))
        response = self.place.incoming(self, response)
        self.response, self.status = response, status
        self.grpc_status = field(response.fields, b"grpc-status") or b""
        stream = self.stream
        stream.send_head(response)
        if body:
            if self.request.method != b"HEAD":
                stream.send_data(body)
                self.response_bytes = len(body)
            stream.end()
        self.release()
        self._finish()

    # -- time ----------------------------------------------------------------------------------------------------------

    @property
    def expected_s(self) -> float | None:
        """What the upstream has for this attempt: its own limit, or what is left of the whole; None: no limit."""
        decision = self.decision
        limit_s = decision.timeout_s
        if decision.retry is not None and decision.retry.per_try_timeout_s is not None:
            limit_s = decision.retry.per_try_timeout_s
        if limit_s is not None and self.attempts > 1 and self._deadline is not None:
            limit_s = min(limit_s, max(0.001, self._deadline.when() - self.place.loop.time()))
        return limit_s

    def _start_deadline(self) -> None:
        limit_s = self.decision.timeout_s
        assert limit_s is not None
        self._deadline = self.place.loop.call_later(limit_s, self._timed_out)

    def _timed_out(self) -> None:
        """The whole took too long. A response under way is cut, as in Envoy: its length would be a lie."""
        self._deadline = None
        if self.over:
            return
        attempt = self._attempt
        if attempt is not None:
            attempt.give_up("timeout")
        if self.response is None:
            self.answer(504, b"upstream request timeout", "UT")
        elif self.response.status != 101:
            self.flag = "UT"
            self.stream.reset("timeout")
            self._finish()

    def _finish(self) -> None:
        if self.over:
            return
        self.over = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._shadows is not None:
            for shadow in self._shadows if not self.request_done else ():
                shadow.give_up()
            self._shadows = None
        if self._kept is not None:
            self._kept = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.done()
        if self.retrial is not None:
            self.retrial.over()
        self.stream.sink = NOBODY
        self.place.finished(self)


_GRPC_OF = {400: b"13", 401: b"16", 403: b"7", 404: b"12", 429: b"14", 502: b"14", 503: b"14", 504: b"14"}


def _is_grpc(request: Request) -> bool:
    for name, value in request.fields:
        if name == b"content-type":
            return value.startswith(b"application/grpc")
    return False
