"""HTTP/2 read back from both directions' bytes: exchanges with headers, status and DATA, each byte findable. Pure.

Frames by hyperframe, headers by hpack, and nothing of the codec that wrote them (`planes.mesh` has its own). One
decoder per direction and connection, since HPACK's table is. Source: RFC 9113 §3.4, §4, §8.5 (CONNECT); RFC 7541.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from hpack import Decoder
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PushPromiseFrame,
    RstStreamFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """DATA of one direction of one stream, with where each piece stood in the connection's bytes."""

    data: bytes = b""
    starts: tuple[int, ...] = ()
    origins: tuple[int, ...] = ()
    """For each piece, the offset of its first byte in that direction's bytes."""

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Ranges of the connection's bytes that hold `start`..`stop` of this body."""
        found, index = [], bisect_right(self.starts, start) - 1
        while start < stop and 0 <= index < len(self.starts):
            piece_end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.data)
            here = min(stop, piece_end)
            origin = self.origins[index] + start - self.starts[index]
            found.append((origin, origin + here - start))
            start, index = here, index + 1
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One header block as decoded: a head, an interim one, or trailers."""

    headers: Headers
    span: tuple[int, int]
    """Where it stands in that direction's bytes. What it refers to of the table may have been sent earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One stream opened by the client."""

    stream: int
    request: Headers
    request_span: tuple[int, int]
    """Where the request's HEADERS stand in the client's bytes."""
    response: Headers = ()
    response_span: tuple[int, int] = (0, 0)
    sent: Body = field(default_factory=Body)
    """Client to server."""
    received: Body = field(default_factory=Body)
    asked: tuple[Block, ...] = ()
    """Every header block of the client: the request's, and trailers."""
    answered: tuple[Block, ...] = ()
    """Every one of the server, interim ones too."""
    reset: int | None = None
    """Error code of a RST_STREAM, from either side."""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.request if key == name), None)

    def names(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.request)

    @property
    def status(self) -> int | None:
        text = next((value for key, value in self.response if key == ":status"), "")
        return int(text) if text.isdigit() else None

    @property
    def is_connect(self) -> bool:
        return self.header(":method") == "CONNECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    exchanges: tuple[Exchange, ...]
    frames: int
    goaway: int | None = None
    problem: str = ""
    """Where reading had to stop; empty when both directions were read to their last whole frame."""
    breaches: tuple[str, ...] = ()
    """What no codec would say: DATA in a stream that was never opened, or behind its end. It is in no exchange."""


@dataclass(slots=True)
class _Pieces:
    data: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)

    def add(self, piece: bytes, origin: int) -> None:
        if piece:
            self.starts.append(len(self.data))
            self.origins.append(origin)
            self.data += piece

    def close(self) -> Body:
        return Body(data=bytes(self.data), starts=tuple(self.starts), origins=tuple(self.origins))


@dataclass(slots=True)
class _Side:
    headers: dict[int, tuple[Headers, tuple[int, int]]] = field(default_factory=dict)
    """Stream -> first final header block."""
    blocks: dict[int, list[Block]] = field(default_factory=dict)
    bodies: dict[int, _Pieces] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    breaches: list[str] = field(default_factory=list)
    goaway: int | None = None
    frames: int = 0
    problem: str = ""


def begins_h2(data: bytes) -> bool:
    return data.startswith(PREFACE)


def converse(client: bytes, server: bytes) -> Conversation:
    """Both directions of one connection (decrypted, or prior-knowledge cleartext), the client's with its preface."""
    if not begins_h2(client):
        return Conversation(exchanges=(), frames=0, problem="the client did not begin with the HTTP/2 preface")
    asked, answered = _read(client, len(PREFACE), "client"), _read(server, 0, "server")
    exchanges = []
    for stream, (request, span) in sorted(asked.headers.items()):
        response, response_span = answered.headers.get(stream, ((), (0, 0)))
        exchanges.append(
            Exchange(
                stream=stream,
                request=request,
                request_span=span,
                response=response,
                response_span=response_span,
                sent=asked.bodies[stream].close() if stream in asked.bodies else Body(),
                received=answered.bodies[stream].close() if stream in answered.bodies else Body(),
                asked=tuple(asked.blocks.get(stream, ())),
                answered=tuple(answered.blocks.get(stream, ())),
                reset=asked.resets.get(stream, answered.resets.get(stream)),
            )
        )
    return Conversation(
        exchanges=tuple(exchanges),
        frames=asked.frames + answered.frames,
        goaway=answered.goaway if answered.goaway is not None else asked.goaway,
        problem=asked.problem or answered.problem,
        breaches=(*_unopened(asked, asked, "client"), *_unopened(answered, asked, "server"), *asked.breaches,
                  *answered.breaches),
    )


def _unopened(side: _Side, asked: _Side, who: str) -> list[str]:
    """Streams of even number are pushed, and nobody's here."""
    return [
        f"{who}'s DATA in stream {stream}, which was never opened"
        for stream in sorted(side.bodies)
        if stream % 2 and stream not in asked.headers
    ]


def _read(data: bytes, at: int, who: str) -> _Side:
    side, view = _Side(), memoryview(data)
    decoder = Decoder(max_header_list_size=1 << 24)
    # What the peer's SETTINGS allow is not tracked: a reader may be more lenient than the parties were to each other.
    decoder.max_allowed_table_size = 1 << 24
    block, opened = b"", (0, 0)  # a header block in pieces: bytes so far, (stream, offset)
    while at + 9 <= len(data):
        try:
            frame, length = Frame.parse_frame_header(view[at : at + 9])
            if at + 9 + length > len(data):
                break  # its end came after the capture
            frame.parse_body(view[at + 9 : at + 9 + length])
        except (HyperframeError, ValueError) as error:
            side.problem = f"{who}'s frame at byte {at}: {error}"
            break
        side.frames += 1
        stream, stop = frame.stream_id, at + 9 + length
        if isinstance(frame, DataFrame):
            if stream in side.ended:
                side.breaches.append(f"{who}'s DATA in stream {stream} behind its end")
            else:
                body = side.bodies.setdefault(stream, _Pieces())
                body.add(bytes(frame.data), at + 9 + (1 if "PADDED" in frame.flags else 0))
        elif isinstance(frame, HeadersFrame | ContinuationFrame | PushPromiseFrame):
            if not isinstance(frame, ContinuationFrame):
                block, opened = b"", (stream, at)
            block += bytes(frame.data)
            if "END_HEADERS" in frame.flags:
                try:
                    headers = tuple((_text(n), _text(v)) for n, v in decoder.decode(block, raw=True))
                except HPACKError as error:
                    side.problem = f"{who}'s header block at byte {opened[1]}: {error}"
                    break
                side.blocks.setdefault(opened[0], []).append(Block(headers=headers, span=(opened[1], stop)))
                status = next((v for n, v in headers if n == ":status"), "")
                if not status.startswith("1") and not isinstance(frame, PushPromiseFrame):  # 1xx come before the answer
                    side.headers.setdefault(opened[0], (headers, (opened[1], stop)))
        elif isinstance(frame, RstStreamFrame):
            side.resets[stream] = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            side.goaway = frame.error_code
        if "END_STREAM" in frame.flags:
            side.ended.add(stream)
        at = stop
    return side


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
