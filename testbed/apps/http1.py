"""HTTP/1.1 requests as a pure reader: bytes in, events out. What the web app is made of; no proxy uses it.

Strict where leniency has led to request smuggling (RFC 9112 §6.3, §11.2): a message that could be read in two ways is
malformed. Bounded everywhere, so that no peer can make it hold more than a head and a chunk line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_plus

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_CHUNK_LINE_BYTES = 256
MAX_TRAILER_BYTES = 4 * 1024
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_TARGET = re.compile(rb"[!-~]+\Z")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*\Z")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}\Z")


class Malformed(Exception):
    """The peer's bytes are no HTTP/1.1 request that we take; `status` is the answer before closing."""

    def __init__(self, what: str, status: int = 400) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case; repeated fields joined by a comma (RFC 9110 §5.3)."""
    keep_alive: bool
    body_bytes: int | None
    """Content-Length; None when the body is chunked."""
    expects_continue: bool


@dataclass(frozen=True, slots=True)
class BodyPart:
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RequestEnd:
    pass


Event = RequestHead | BodyPart | RequestEnd
END = RequestEnd()


@lru_cache(maxsize=256)  # one client sends the same head again and again
def parse_head(block: bytes) -> RequestHead:
    """The head without its closing empty line. Raises Malformed."""
    lines = block.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or not _TOKEN.match(words[0]) or not _TARGET.match(words[1]):
        raise Malformed("the request line is not `METHOD target HTTP/1.1`")
    if words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed("the version is neither HTTP/1.1 nor HTTP/1.0", 505 if words[2].startswith(b"HTTP/") else 400)
    headers = _parse_fields(lines[1:])
    is_1_1 = words[2] == b"HTTP/1.1"
    # "A server MUST respond with a 400 [...] to any HTTP/1.1 request message that lacks a Host header field and to any
    # request message that contains more than one" (RFC 9112 §3.2); two Hosts arrive here joined by a comma.
    if (is_1_1 and "host" not in headers) or "," in headers.get("host", ""):
        raise Malformed("an HTTP/1.1 request carries exactly one Host")
    connection = headers.get("connection", "").lower()
    path, _, query = words[1].decode("ascii").partition("?")
    return RequestHead(
        method=words[0].decode("ascii"),
        path=path,
        query=_parse_query(query),
        headers=headers,
        keep_alive="close" not in connection if is_1_1 else "keep-alive" in connection,
        body_bytes=_body_bytes(headers),
        expects_continue=is_1_1 and headers.get("expect", "").lower() == "100-continue",
    )


def _parse_fields(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_HEADERS:
        raise Malformed(f"more than {MAX_HEADERS} header fields", 431)
    headers: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        # `Name : v` and continuation lines are how heads get read in two ways (RFC 9112 §5.1, §5.2).
        if not colon or not _TOKEN.match(raw_name) or not _VALUE.match(raw_value):
            raise Malformed("a header line is not `name: value`")
        name, value = raw_name.decode("ascii").lower(), raw_value.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _body_bytes(headers: dict[str, str]) -> int | None:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if coding.lower() != "chunked":
            raise Malformed(f"transfer coding {coding[:40]!r} is not known here; send chunked", 501)
        return None
    if length is None:
        return 0
    if not length.isascii() or not length.isdigit() or len(length) > 15:
        raise Malformed("Content-Length is not one number")
    return int(length)


def _parse_query(text: str) -> dict[str, str]:
    pairs = (piece.partition("=") for piece in text.split("&") if piece)
    return {unquote_plus(name): unquote_plus(value) for name, _, value in pairs}


class RequestReader:
    """Requests of one connection, in order: `receive` bytes, then `next_event` until it gives None (needs more)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = self._read_head
        self._left = 0
        self._trailer_bytes = 0
        self.last_head_bytes = b""
        """The head last read, its closing empty line included."""

    def __repr__(self) -> str:
        return f"<RequestReader {self._state.__name__[6:]} buffered={len(self._buffer)}>"

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    @property
    def between_requests(self) -> bool:
        return not self._buffer and self._state == self._read_head

    def receive(self, data: bytes) -> None:
        self._buffer += data

    def next_event(self) -> Event | None:
        """Raises Malformed; the connection is of no further use then."""
        return self._state()

    def _read_head(self) -> Event | None:
        while self._buffer.startswith(b"\r\n"):  # "SHOULD ignore at least one empty line" (RFC 9112 §2.2)
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 4)
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Malformed(f"the head is longer than {MAX_HEAD_BYTES} bytes", 431)
            return None
        self.last_head_bytes = bytes(self._buffer[: end + 4])
        head = parse_head(self.last_head_bytes[:-4])
        del self._buffer[: end + 4]
        if head.body_bytes is None:
            self._state = self._read_chunk_size
        else:
            self._left, self._state = head.body_bytes, self._read_sized
        return head

    def _take(self) -> BodyPart | None:
        size = min(self._left, len(self._buffer))
        if not size:
            return None
        del self._buffer[:size]
        self._left -= size
        return BodyPart(size)

    def _read_sized(self) -> Event | None:
        if self._left:
            return self._take()
        self._state = self._read_head
        return END

    def _line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, limit + 2)
        if end < 0:
            if len(self._buffer) > limit:
                raise Malformed("a line of the chunked body is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_chunk_size(self) -> Event | None:
        line = self._line(MAX_CHUNK_LINE_BYTES)
        if line is None:
            return None
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not _CHUNK_SIZE.match(digits):
            raise Malformed("a chunk does not begin with its size in hexadecimal")
        self._left = int(digits, 16)
        self._trailer_bytes = 0
        self._state = self._read_chunk if self._left else self._read_trailers
        return self._state()

    def _read_chunk(self) -> Event | None:
        if self._left:
            return self._take()
        if len(self._buffer) < 2:
            return None
        if self._buffer[:2] != b"\r\n":
            raise Malformed("a chunk is longer than it said")
        del self._buffer[:2]
        self._state = self._read_chunk_size
        return self._state()

    def _read_trailers(self) -> Event | None:
        while (line := self._line(MAX_TRAILER_BYTES)) is not None:
            if not line:
                self._state = self._read_head
                return END
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise Malformed("the trailers are too long", 431)
            _parse_fields([line])
        return None
