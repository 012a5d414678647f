"""Header blocks, beside the hpack library: equal fields while both accept, and both refuse the same one."""

from __future__ import annotations

import hpack

from planes.l7.hpack import Decoder
from planes.l7.hpack_tables import CompressionError

_MOST = 1 << 20


def check(data: bytes) -> None:
    """Blocks with their length in front, one byte; the last may be cut."""
    ours, theirs = Decoder(_MOST), hpack.Decoder(max_header_list_size=_MOST)
    at = 0
    while at < len(data):
        block = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        try:
            got: object = [tuple(field) for field in ours.decode(block) or ()]
        except CompressionError:
            got = "refused"
        try:
            wanted: object = [(bytes(n), bytes(v)) for n, v in theirs.decode(block, raw=True)]
        except (hpack.HPACKError, IndexError, UnicodeDecodeError):
            wanted = "refused"
        assert got == wanted, f"{got!r:.300} and to the library {wanted!r:.300}"
        if got == "refused":
            return
        assert ours._bytes <= 4096, "the table outgrew its limit"
        assert ours._bytes == sum(len(n) + len(v) + 32 for n, v in ours._entries), "the table is miscounted"
