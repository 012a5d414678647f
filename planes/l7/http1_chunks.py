"""The chunked coding read as a state machine; chunk extensions are dropped, trailers kept (RFC 9112 7.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from planes.l7.codec import Breach
from planes.l7.http1_fields import HEAD_MAX_BYTES, read_trailers, split_lines
from planes.l7.message import Fields

Deliver: TypeAlias = "Callable[[bytes | memoryview], None]"

CHUNK_LINE_MAX_BYTES = 4096
"""Size and extensions. A peer that pads every byte of body with this much is slow, not dangerous."""
SIZE_DIGITS_MAX = 15
"""Below 2**60: no reader's 64 bits overflow. Leading zeros count."""
VIEW_FROM_BYTES = 4096
"""Pieces of a read this long are handed on as views, shorter ones as copies (cheaper than a view up to here)."""
_HEX = b"0123456789abcdefABCDEF"
_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


def piece(data: bytes, start: int, end: int) -> bytes | memoryview:
    """`data[start:end]`, without a copy if it is long."""
    if end - start == len(data):
        return data
    if end - start < VIEW_FROM_BYTES:
        return data[start:end]
    return memoryview(data)[start:end]


def bare_line_feed(data: bytes, start: int) -> bool:
    return data.count(b"\n", start) != data.count(b"\r\n", start)


class ChunkedReader:
    """One body. Give it what came and where to start; it tells how far it got, and wants the rest again with more."""

    __slots__ = ("_left", "_state", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self.trailers: Fields = []

    @property
    def done(self) -> bool:
        return self._state == _DONE

    def read(self, data: bytes, start: int, deliver: Deliver) -> int:
        """The position after what was used. Raises Breach."""
        end = len(data)
        while start < end:
            if self._state == _DATA:
                stop = min(end, start + self._left)
                self._left -= stop - start
                if not self._left:
                    self._state = _DATA_END
                deliver(piece(data, start, stop))
                start = stop
            elif self._state == _DATA_END:
                if data.startswith(b"\r\n", start):
                    start += 2
                    self._state = _SIZE
                elif end - start == 1 and data[start] == 0x0D:
                    return start
                else:
                    raise Breach(400, "chunk longer than its size")
            elif self._state == _SIZE:
                stop = data.find(b"\r\n", start, start + CHUNK_LINE_MAX_BYTES)
                if stop < 0:
                    if end - start >= CHUNK_LINE_MAX_BYTES or bare_line_feed(data, start):
                        raise Breach(400, "invalid chunk line")
                    return start
                self._left = _chunk_size(data[start:stop])
                self._state = _DATA if self._left else _TRAILERS
                start = stop + 2
            else:
                return self._read_trailers(data, start) if self._state == _TRAILERS else start
        return start

    def _read_trailers(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            self._state = _DONE
            return start + 2
        stop = data.find(b"\r\n\r\n", start, start + HEAD_MAX_BYTES)
        if stop < 0:
            if len(data) - start >= HEAD_MAX_BYTES:
                raise Breach(431, "trailers too long")
            if bare_line_feed(data, start):
                raise Breach(400, "bare LF in trailers")
            return start
        self.trailers = read_trailers(data[start:stop])
        self._state = _DONE
        return stop + 4


def _chunk_size(line: bytes) -> int:
    if b";" in line:
        split_lines(line)
        line = line.partition(b";")[0].rstrip(b" \t")
    if not line or len(line) > SIZE_DIGITS_MAX or line.translate(None, _HEX):
        raise Breach(400, "invalid chunk size")
    return int(line, 16)
