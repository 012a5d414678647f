"""The same bytes in pieces, by a seed drawn from the bytes themselves, so that a finding comes again."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import pairwise

SINGLY_MAX_BYTES = 256
"""Up to here a way of one byte at a time is taken, too."""


def seed_of(data: bytes) -> int:
    return zlib.crc32(data)


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Some ways to cut `data`; never one with an empty piece."""
    if 0 < len(data) <= SINGLY_MAX_BYTES:
        yield [data[at : at + 1] for at in range(len(data))]
    draw = random.Random(seed_of(data))
    for most in (2, 7):
        at = sorted({0, len(data), *(draw.randrange(len(data) + 1) for _ in range(most))})
        yield [data[a:b] for a, b in pairwise(at)]
