"""What the tests of the HTTP/2 codec share: sinks that note what they hear, pairs of codecs, and bytes between them."""

from __future__ import annotations

import h2.config
import h2.connection

from planes.l7.http2 import SERVER_LIMITS, Http2Client, Http2Server
from planes.l7.http2_stream import L7ServerStream
from planes.l7.message import Fields, Request, Response
from planes.mesh import frames
from planes.mesh.hbone_stream import Limits


class Heard:
    """A sink for either role."""

    def __init__(self, *, hold_at: int | None = None) -> None:
        self.heads: list[Response] = []
        self.interims: list[int] = []
        self.body = b""
        self.trailers: Fields | None = None
        self.resets: list[tuple[str, bool]] = []
        self.writables = 0
        self.stream = None
        self._hold_at = hold_at

    def head(self, response: Response) -> None:
        self.heads.append(response)

    def interim(self, response: Response) -> None:
        self.interims.append(response.status)

    def data(self, data: bytes | memoryview) -> None:
        assert not self.resets and self.trailers is None, "a body's bytes behind its end"
        self.body += bytes(data)
        if self._hold_at is not None and len(self.body) >= self._hold_at:
            self.stream.hold()

    def ended(self, trailers: Fields) -> None:
        assert self.trailers is None, "two ends"
        self.trailers = trailers

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self.resets.append((reason, unprocessed))

    def writable(self) -> None:
        self.writables += 1


class Server:
    """Our server codec with every request it made known, each with a sink that notes."""

    def __init__(self, limits: Limits = SERVER_LIMITS, *, hold_at: int | None = None) -> None:
        self.requests: list[Request] = []
        self.streams: list[L7ServerStream] = []
        self.heard: list[Heard] = []
        self.wakes = 0
        self._hold_at = hold_at
        self.codec = Http2Server(self._take, self._wake, limits=limits)

    def _take(self, stream: L7ServerStream, request: Request) -> None:
        heard = Heard(hold_at=self._hold_at)
        heard.stream = stream
        stream.sink = heard
        self.requests.append(request)
        self.streams.append(stream)
        self.heard.append(heard)

    def _wake(self) -> None:
        self.wakes += 1


def client() -> Http2Client:
    return Http2Client(lambda: None)


def taken(codec: Http2Client | Http2Server) -> bytes:
    out = b"".join(codec.out)
    codec.out.clear()
    return out


def cross(client: Http2Client, server: Http2Server) -> None:
    """Bytes to and fro until both are silent."""
    while client.out or server.out:
        data = taken(client)
        if data:
            server.receive(data)
        data = taken(server)
        if data:
            client.receive(data)


def pair(limits: Limits = SERVER_LIMITS, *, hold_at: int | None = None) -> tuple[Http2Client, Server]:
    server, opener = Server(limits, hold_at=hold_at), client()
    cross(opener, server.codec)
    return opener, server


def oracle(*, client: bool) -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=client, header_encoding=None, validate_outbound_headers=False)
    )
    made.initiate_connection()
    return made


def exchange(ours: Http2Client | Http2Server, theirs: h2.connection.H2Connection) -> list:
    """Bytes to and fro with the oracle; its events."""
    events = []
    while True:
        sent = taken(ours)
        if sent:
            events += theirs.receive_data(sent)
        answer = theirs.data_to_send()
        if answer:
            ours.receive(answer)
        if not sent and not answer:
            return events


def handshaken(server: Server) -> Server:
    server.codec.receive(frames.PREFACE + frames.settings(()))
    taken(server.codec)
    return server


def of(events: list, kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def get(path: bytes = b"/", fields: Fields | None = None, **other: object) -> Request:
    return Request(b"GET", b"shop:80", path, fields or [], **other)  # type: ignore[arg-type]


def post(length: int | None = None, fields: Fields | None = None) -> Request:
    fields = list(fields or [])
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
    return Request(b"POST", b"shop:80", b"/in", fields, has_body=True, content_length=length)


# -- frames written by hand, and read

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"shop:80")]
POST = [(b":method", b"POST"), *GET[1:]]


def head(fields: list, stream: int = 1, *, end: bool = True) -> bytes:
    return frames.headers(stream, frames.encode_fields(fields), end=end, max_frame_size=16384)


def data(payload: bytes, stream: int = 1, *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, 1 if end else 0, stream, payload)


def codes(wire: bytes, kind: int = frames.RST_STREAM) -> list[tuple[int, str]]:
    """(stream, error) of the RST_STREAMs in what we wrote; of GOAWAY with its last stream."""
    found, at = [], 0
    while at < len(wire):
        high, low, this, _, stream = frames.HEADER.unpack_from(wire, at)
        payload = wire[at + 9 : at + 9 + (high << 8 | low)]
        at += 9 + (high << 8 | low)
        if this == kind:
            last = frames.u32(payload) if kind == frames.GOAWAY else stream
            found.append((last, frames.error_name(frames.u32(payload, 4 if kind == frames.GOAWAY else 0))))
    return found
