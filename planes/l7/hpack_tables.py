"""HPACK's fixed parts: integers, the static table, the Huffman code. Source: RFC 7541 §5 and appendices A and B."""

from __future__ import annotations

Field = tuple[bytes, bytes]


class CompressionError(ValueError):
    """Bytes that are no header block: the connection's shared state is lost with them."""


def read_integer(data: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    """The integer whose prefix is in `data[at]`, and where the next thing starts. IndexError: cut short."""
    limit = (1 << prefix_bits) - 1
    value = data[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        byte = data[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:  # nothing that is announced here can be so big; the bytes are endless zeros otherwise
            raise CompressionError("an integer of more than ten bytes")


_NAMES = (
    "accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow"
    " authorization cache-control content-disposition content-encoding content-language content-length content-location"
    " content-range content-type cookie date etag expect expires from host if-match if-modified-since if-none-match"
    " if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization"
    " range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary"
    " via www-authenticate"
)
STATIC: tuple[Field, ...] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"),
    *((name.encode(), b"gzip, deflate" if name == "accept-encoding" else b"") for name in _NAMES.split()),
)  # fmt: skip
"""Entry 1 of the RFC is element 0."""
STATIC_SIZE = len(STATIC)
STATIC_NAMES: dict[bytes, int] = {name: number for number, (name, _) in reversed(list(enumerate(STATIC, 1)))}
"""Name to its lowest index."""

HUFFMAN_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505050606060606"
    "060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605060506060605070706060605"
    "06070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715"
    "1716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits per symbol, 256 is EOS. The code is canonical, so the lengths say it all."""
_EOS = 256


class _Row(dict):
    """From one inner node of the code's tree: byte to (symbols it completes, row of the node then reached).

    Made as bytes are met: whole, the table were 65,536 entries, of which text needs a few thousand.
    """

    __slots__ = ("code", "final", "node")

    def __init__(self, code: _Code, node: list) -> None:
        super().__init__()
        self.code = code
        self.node = node
        self.final = any(node is end for end in code.ends)

    def __missing__(self, byte: int) -> tuple[bytes, _Row]:
        node, symbols = self.node, bytearray()
        for bit in range(7, -1, -1):
            reached = node[byte >> bit & 1]
            if isinstance(reached, list):
                node = reached
                continue
            if reached == _EOS:
                raise CompressionError("EOS inside a Huffman string")
            symbols.append(reached)
            node = self.code.tree
        entry = self[byte] = (bytes(symbols), self.code.row(node))
        return entry


class _Code:
    def __init__(self) -> None:
        self.tree: list = [None, None]
        code = previous = 0
        for length, symbol in sorted((length, symbol) for symbol, length in enumerate(HUFFMAN_LENGTHS)):
            code <<= length - previous
            previous = length
            node = self.tree
            for bit in range(length - 1, 0, -1):
                side = code >> bit & 1
                if node[side] is None:
                    node[side] = [None, None]
                node = node[side]
            node[code & 1] = symbol
            code += 1
        self.ends = [self.tree]
        """Where a string may end: fewer than eight bits since the last symbol, all ones."""
        for _ in range(7):
            self.ends.append(self.ends[-1][1])
        self.rows: dict[int, _Row] = {}

    def row(self, node: list) -> _Row:
        row = self.rows.get(id(node))
        if row is None:
            row = self.rows[id(node)] = _Row(self, node)
        return row


_start: list[_Row] = []


def huffman_decode(data: bytes) -> bytes:
    if not _start:
        code = _Code()
        _start.append(code.row(code.tree))
    row = _start[0]
    out = []
    for byte in data:
        symbols, row = row[byte]
        out.append(symbols)
    if not row.final:
        raise CompressionError("a Huffman string ends inside a symbol")
    return b"".join(out)
