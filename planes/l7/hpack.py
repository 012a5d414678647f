"""HPACK (RFC 7541) for the hot path: a decoder that keeps what it has seen, an encoder that inserts only what repeats.

Both are whole, tables included, and judged against the hpack library by tests. A request's fields are mostly those of
the one before it on the same connection: such a field is one byte in a block, one index here and one look-up there.
"""

from __future__ import annotations

from collections.abc import Iterable

from planes.l7.hpack_tables import (
    STATIC,
    STATIC_NAMES,
    STATIC_SIZE,
    CompressionError,
    Field,
    huffman_decode,
    read_integer,
)  # fmt: skip
from planes.mesh.frames import integer

DEFAULT_TABLE_BYTES = 4096
_OVERHEAD = 32
"""What an entry counts beside its text (RFC 7541 §4.1)."""
_BY_INDEX: tuple[Field | None, ...] = (None, *STATIC)
_MEMO_ENTRIES = 128
_MEMO_BYTES = 64
"""Longer Huffman strings are not kept: they seldom repeat, and a peer must not fill our memory."""


class Secret(tuple):
    """A field that came as never indexed, and must leave so (§6.2.3). Equal to the plain pair, but of another hash: an
    encoder's look-ups then miss it without a test on every field."""

    __slots__ = ()

    def __hash__(self) -> int:
        return ~tuple.__hash__(self)


class Decoder:
    """One direction's blocks, in order. `fresh` holds those fields of the last block that no block had before: what was
    found good when it entered a table is good for ever."""

    __slots__ = ("_allowed", "_bytes", "_entries", "_limit", "_longest", "_memo", "_most", "fresh", "known")

    def __init__(self, max_list_bytes: int, table_bytes: int = DEFAULT_TABLE_BYTES) -> None:
        self.fresh: list[Field] = []
        self.known: dict[bytes, object] = {}
        """For the owner: what short blocks without fresh fields came to. Emptied when the table changes, because the
        same octets then mean other fields."""
        self._most = max_list_bytes
        self._limit = self._allowed = table_bytes
        self._entries: list[Field] = []
        """Oldest first, so that index 62 is [-1]."""
        self._bytes = 0
        self._longest = max(len(name) + len(value) for name, value in STATIC) + _OVERHEAD
        self._memo: dict[bytes, bytes] = {}

    def decode(self, block: bytes) -> list[Field] | None:
        """None: the list is longer than allowed, and the table is as it must be nevertheless."""
        pos, size = 0, len(block)
        entries, static = self._entries, _BY_INDEX
        fields: list[Field] = []
        fresh: list[Field] = []
        self.fresh = fresh
        append = fields.append
        try:
            while pos < size:
                byte = block[pos]
                pos += 1
                if byte > 0x80:
                    if byte <= 0x80 + STATIC_SIZE:
                        append(static[byte & 0x7F])  # type: ignore[arg-type]
                    elif byte < 0xFF:
                        append(entries[0x80 + STATIC_SIZE - byte])
                    else:
                        index, pos = read_integer(block, pos - 1, 7)
                        append(entries[STATIC_SIZE - index])
                    continue
                if byte >= 0x40:
                    if byte == 0x80:
                        raise CompressionError("index 0")
                    if byte == 0x7F:
                        number, pos = read_integer(block, pos - 1, 6)
                    else:
                        number = byte & 0x3F
                elif byte >= 0x20:
                    if fields:
                        raise CompressionError("a table size update behind a field")
                    limit, pos = read_integer(block, pos - 1, 5)
                    self._resize(limit)
                    continue
                elif byte & 0x0F == 0x0F:
                    number, pos = read_integer(block, pos - 1, 4)
                else:
                    number = byte & 0x0F
                if number == 0:
                    length = block[pos]
                    if length < 0x7F:
                        pos += 1 + length
                        name = block[pos - length : pos]
                    else:
                        name, pos = self._string(block, pos)
                elif number <= STATIC_SIZE:
                    name = static[number][0]  # type: ignore[index]
                else:
                    name = entries[STATIC_SIZE - number][0]
                length = block[pos]
                if length < 0x7F:
                    pos += 1 + length
                    value = block[pos - length : pos]
                else:
                    value, pos = self._string(block, pos)
                field = (name, value)
                if byte >= 0x40:
                    self._insert(field)
                elif byte & 0x10:
                    field = Secret(field)
                append(field)
                fresh.append(field)
        except IndexError as cause:
            raise CompressionError("a header block refers to nothing, or is cut short") from cause
        if pos != size:
            raise CompressionError("a header block is cut short")
        # An exact sum costs as much as the decoding; the bound suffices for all but strange blocks.
        if (size << 1) + len(fields) * (_OVERHEAD + self._longest) > self._most and (
            sum(len(name) + len(value) + _OVERHEAD for name, value in fields) > self._most
        ):
            return None
        return fields

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        """A string that is Huffman-coded or long."""
        coded = block[at] >= 0x80
        length, at = read_integer(block, at, 7)
        text = block[at : at + length]
        if len(text) < length:
            raise CompressionError("a header block is cut short")
        if not coded:
            return text, at + length
        value = self._memo.get(text)
        if value is None:
            value = huffman_decode(text)
            if length <= _MEMO_BYTES:
                if len(self._memo) >= _MEMO_ENTRIES:
                    self._memo.clear()
                self._memo[text] = value
        return value, at + length

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + _OVERHEAD
        self._bytes += size
        self._entries.append(field)
        if self.known:
            self.known.clear()
        if size > self._longest:
            self._longest = size
        if self._bytes > self._limit:
            self._evict()

    def _evict(self) -> None:
        entries, at = self._entries, 0
        while self._bytes > self._limit:
            self._bytes -= len(entries[at][0]) + len(entries[at][1]) + _OVERHEAD
            at += 1
        del entries[:at]

    def _resize(self, limit: int) -> None:
        if limit > self._allowed:
            raise CompressionError(f"a table of {limit} bytes, {self._allowed} advertised")
        self._limit = limit
        self.known.clear()
        self._evict()


_INDEXED = tuple(integer(index, 7, 0x80) for index in range(STATIC_SIZE + DEFAULT_TABLE_BYTES // _OVERHEAD + 2))
_DYNAMIC = _INDEXED[STATIC_SIZE:]
_LENGTHS = tuple(integer(length, 7, 0) for length in range(0x7F))
_KNOWN: dict[Field, int] = {field: -number for number, field in reversed(list(enumerate(STATIC, 1)))}
_NEVER_REPEATED = frozenset((b"x-request-id", b"traceparent", b"tracestate", b"grpc-timeout", b"x-b3-spanid",
                             b"x-b3-traceid", b"x-b3-parentspanid"))  # fmt: skip
_SECRET = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))
"""Sent as never indexed whatever they came as: guessing them through a shared table is a known attack (§7.1)."""
_SEEN_ENTRIES = 256
_NAMES_KEPT = 1024
_names: dict[bytes, bytes] = {}
"""Name to the start of its literal without indexing."""


def _start(name: bytes) -> bytes:
    number = STATIC_NAMES.get(name)
    start = integer(number, 4, 0) if number else b"\0" + integer(len(name), 7, 0) + name
    if len(_names) >= _NAMES_KEPT:
        _names.clear()
    _names[name] = start
    return start


class Encoder:
    """One direction's blocks, in order. A field enters the table the second time it is sent, so those that are new each
    time, such as request ids, push nothing out. No Huffman code: it saves bytes, which are cheap between two proxies,
    and costs both of them time."""

    __slots__ = ("_bytes", "_inserted", "_known", "_limit", "_lowest", "_order", "_seen")

    def __init__(self) -> None:
        self._limit = DEFAULT_TABLE_BYTES
        self._lowest: int | None = None
        """The smallest limit since the last block, which must be told before the present one (§4.2)."""
        self._known = dict(_KNOWN)
        """Field to its running number if it is in the dynamic table, to the negative of its index if in the static."""
        self._order: list[Field] = []
        self._inserted = 1
        """Running number of the next entry; an entry's index is this less its own, behind the static ones."""
        self._bytes = 0
        self._seen: set[Field] = set()

    def limit(self, table_bytes: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE; more than the default is not used."""
        limit = min(table_bytes, DEFAULT_TABLE_BYTES)
        if limit != self._limit:
            self._limit = limit
            self._lowest = limit if self._lowest is None else min(limit, self._lowest)
            self._evict()

    def encode(self, fields: Iterable[Field]) -> bytes:
        out: list[bytes] = []
        append = out.append
        known = self._known.get
        if self._lowest is not None:
            for limit in {self._lowest: None, self._limit: None}:
                append(integer(limit, 5, 0x20))
            self._lowest = None
        for field in fields:
            number = known(field)
            if number is None:
                name, value = field
                if len(value) < 0x7F and name in _NEVER_REPEATED and type(field) is tuple:
                    out += (_names.get(name) or _start(name), _LENGTHS[len(value)], value)
                else:
                    self._literal(field, out)
            elif number > 0:
                append(_DYNAMIC[self._inserted - number])
            else:
                append(_INDEXED[-number])
        return b"".join(out)

    def _literal(self, field: Field, out: list[bytes]) -> None:
        name, value = field
        length = _LENGTHS[len(value)] if len(value) < 0x7F else integer(len(value), 7, 0)
        start = _names.get(name) or _start(name)
        if name in _SECRET or type(field) is Secret:
            out += (bytes((start[0] | 0x10,)) + start[1:], length, value)
        elif field not in self._seen or len(name) + len(value) + _OVERHEAD > self._limit >> 2:
            if len(self._seen) >= _SEEN_ENTRIES:
                self._seen.clear()
            self._seen.add(field)
            out += (start, length, value)
        else:
            number = STATIC_NAMES.get(name)
            out += (integer(number, 6, 0x40) if number else b"\x40" + start[1:], length, value)
            self._insert(field)

    def _insert(self, field: Field) -> None:
        self._known[field] = self._inserted
        self._inserted += 1
        self._order.append(field)
        self._bytes += len(field[0]) + len(field[1]) + _OVERHEAD
        if self._bytes > self._limit:
            self._evict()

    def _evict(self) -> None:
        order, at = self._order, 0
        while self._bytes > self._limit:
            self._bytes -= len(order[at][0]) + len(order[at][1]) + _OVERHEAD
            del self._known[order[at]]
            at += 1
        del order[:at]
