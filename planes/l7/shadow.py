"""A copy of a request for a mirror: sent beside it, its answer thrown away, dropped once it would hold anything up."""

from __future__ import annotations

from planes.l7.codec import ClientStream
from planes.l7.connection import HttpConnection
from planes.l7.decision import shadow_authority
from planes.l7.message import Fields, Request, Response
from planes.l7.upstream import Upstream

KEPT_MAX_BYTES = 64 << 10
"""Of a body, until there is a connection."""


class Shadow:
    """Waiter and sink in one."""

    __slots__ = ("_done", "_kept", "_kept_bytes", "_over", "_request", "_stream", "_upstream")

    def __init__(self, request: Request, upstream: Upstream) -> None:
        self._request = Request(
            request.method, shadow_authority(request.authority), request.path, request.fields, scheme=request.scheme,
            has_body=request.has_body, content_length=request.content_length,
        )  # fmt: skip
        self._upstream = upstream
        self._stream: ClientStream | None = None
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._done: Fields | None = None if request.has_body else []
        self._over = False
        if not upstream.take(self):
            self._over = True

    # -- the request's body, as it goes by

    def pass_on(self, data: bytes | memoryview) -> None:
        if self._over:
            return
        if self._stream is not None:
            if not self._stream.send_data(data):
                self.give_up()
            return
        self._kept.append(bytes(data))
        self._kept_bytes += len(data)
        if self._kept_bytes > KEPT_MAX_BYTES:
            self.give_up()

    def finish(self, trailers: Fields) -> None:
        self._done = trailers
        if self._stream is not None and not self._over:
            self._stream.end(trailers)

    def give_up(self) -> None:
        if self._over:
            return
        self._over = True
        self._kept.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset("shadow dropped")
        else:
            self._upstream.forget(self)

    # -- waiter

    def begin(self, connection: HttpConnection) -> None:
        stream = self._stream = connection.codec.open(self._request, self)  # type: ignore[attr-defined]
        for data in self._kept:
            stream.send_data(data)
        self._kept.clear()
        if self._done is not None and self._request.has_body:
            stream.end(self._done)

    def no_connection(self, reason: str) -> None:
        self._over = True

    # -- sink

    def interim(self, response: Response) -> None: ...

    def head(self, response: Response) -> None:
        if not response.has_body:
            self.ended([])

    def data(self, data: bytes | memoryview) -> None: ...

    def ended(self, trailers: Fields) -> None:
        self._over = True
        self._stream = None

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self.ended([])

    def writable(self) -> None: ...
