"""Variations of an input by a seed: of plain bytes, and of HTTP/2 frames whose lengths stay right.

A byte changed at random in frames nearly always breaks a length, and all behind it is never read; so frames are taken
apart first.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from planes.mesh.frames import HEADER, HEADER_SIZE

Change = Callable[[bytes, random.Random], bytes]
_NASTY = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"/", b"%", b"..", b"\xff", b"\x80", b"-1", b"0x0",
    b"99999999999999999999", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x00\x00",
)  # fmt: skip


def plain(data: bytes, draw: random.Random) -> bytes:
    """One to four small changes."""
    made = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        at, kind = draw.randrange(len(made) + 1), draw.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = draw.randrange(256)
        elif kind == 2:
            made[at:at] = draw.choice(_NASTY)
        elif kind == 3:
            del made[at : at + draw.randrange(1, 9)]
        elif kind == 4:
            start = draw.randrange(len(made) + 1)
            made[at:at] = made[start : start + draw.randrange(1, 33)]
        else:
            made[at : at + 4] = draw.choice(_NASTY)
    return bytes(made)


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload); what does not fill a frame at the end is one all the same."""
    found, at = [], 0
    while at + HEADER_SIZE <= len(data):
        high, low, kind, flags, stream = HEADER.unpack_from(data, at)
        size = high << 8 | low
        found.append((kind, flags, stream, data[at + HEADER_SIZE : at + HEADER_SIZE + size]))
        at += HEADER_SIZE + size
    return found


def joined(parts: list[tuple[int, int, int, bytes]]) -> bytes:
    return b"".join(
        HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload
        for kind, flags, stream, payload in parts
    )


def framed(data: bytes, draw: random.Random, *, payloads: Change = plain) -> bytes:
    """One to three changes of frames; now and then of the bytes, whatever that breaks."""
    parts = frames_of(data)
    if not parts or draw.randrange(8) == 0:
        return plain(data, draw)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(parts)) if parts else 0
        kind = draw.randrange(8)
        if not parts or kind == 0:
            parts.insert(at, (draw.randrange(12), draw.choice((0, 1, 4, 5, 8, 0x20, 0x2D)), draw.randrange(8),
                              draw.randbytes(draw.choice((0, 4, 5, 6, 8, 12)))))  # fmt: skip
            continue
        type_, flags, stream, payload = parts[at]
        if kind == 1:
            parts[at] = (type_, flags, stream, payloads(payload, draw))
        elif kind == 2:
            parts[at] = (type_, flags ^ 1 << draw.randrange(8), stream, payload)
        elif kind == 3:
            parts[at] = (type_, flags, draw.choice((0, 1, 2, 3, 5, stream + 2 & 0x7FFFFFFF, 0x7FFFFFFF)), payload)
        elif kind == 4:
            parts[at] = (draw.randrange(12), flags, stream, payload)
        elif kind == 5:
            del parts[at]
        elif kind == 6:
            parts.insert(draw.randrange(len(parts) + 1), parts[at])
        else:
            value = struct.pack(">L", draw.choice((0, 1, 65_535, 2**31 - 1, 2**32 - 1, draw.randrange(2**32))))
            parts[at] = (type_, flags, stream, value + payload[4:])
    return joined(parts)
