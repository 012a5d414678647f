"""Our HPACK against the hpack library: the same blocks give the same fields, the same tables, the same refusals."""

from __future__ import annotations

import hpack
import hpack.huffman_constants
import hpack.table
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planes.l7 import hpack_tables
from planes.l7.hpack import Decoder, Encoder, Secret
from planes.l7.hpack_tables import CompressionError
from planes.mesh.frames import integer

NAMES = st.one_of(
    st.sampled_from([name for name, _ in hpack_tables.STATIC] + [b"x-request-id", b"traceparent", b"x-a"]),
    st.binary(min_size=1, max_size=20), st.just(b"n" * 130),
)  # fmt: skip
VALUES = st.one_of(st.sampled_from([b"GET", b"", b"200", b"a" * 127, b"b" * 300, b"text/html"]), st.binary(max_size=60))
LISTS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def oracle() -> hpack.Decoder:
    return hpack.Decoder(max_header_list_size=1 << 20)


def plain(fields: list | None) -> list | None:
    return None if fields is None else [tuple(field) for field in fields]


def decoded(decoder: hpack.Decoder, block: bytes) -> list | str:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except (hpack.HPACKError, IndexError, UnicodeDecodeError):
        return "refused"


def ours(decoder: Decoder, block: bytes) -> list | str | None:
    try:
        return plain(decoder.decode(block))
    except CompressionError:
        return "refused"


def test_the_fixed_tables_are_the_rfcs():
    """Static table and Huffman code as the library has them, which took them from the RFC's appendices."""
    assert tuple(hpack.table.HeaderTable.STATIC_TABLE) == hpack_tables.STATIC
    assert list(hpack_tables.HUFFMAN_LENGTHS) == hpack.huffman_constants.REQUEST_CODES_LENGTH


@settings(max_examples=200, deadline=None)
@given(lists=st.lists(LISTS, max_size=6), huffman=st.booleans(), sizes=st.lists(st.integers(0, 4096), max_size=6))
def test_what_the_library_encodes_we_decode(lists: list, huffman: bool, sizes: list[int]):
    """Dynamic table, evictions, size updates and Huffman strings over a whole connection."""
    encoder, decoder = hpack.Encoder(), Decoder(1 << 20)
    for turn, fields in enumerate(lists):
        if turn < len(sizes):
            encoder.header_table_size = sizes[turn]
        assert plain(decoder.decode(encoder.encode(fields, huffman=huffman))) == fields


@settings(max_examples=200, deadline=None)
@given(lists=st.lists(LISTS, max_size=8), sizes=st.lists(st.none() | st.integers(0, 9000), max_size=8))
def test_what_we_encode_the_library_decodes(lists: list, sizes: list):
    """Each list is sent twice, so that the second time comes from the table; limits of the peer are kept to."""
    encoder, theirs = Encoder(), oracle()
    for turn, fields in enumerate(lists):
        if turn < len(sizes) and sizes[turn] is not None:
            theirs.max_allowed_table_size = sizes[turn]
            encoder.limit(sizes[turn])
        for _ in range(3):
            assert decoded(theirs, encoder.encode(fields)) == fields


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Well- and ill-formed representations after one another: what random bytes seldom hit."""
    out = b""
    huffman = hpack.huffman.HuffmanEncoder(
        hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
    )

    def string() -> bytes:
        text = draw(st.binary(max_size=40))
        if draw(st.booleans()):
            return integer(len(text), 7, 0) + text
        coded = huffman.encode(text) + draw(st.sampled_from([b""] * 8 + [b"\xff", b"\xfe", b"\x00"]))
        return integer(len(coded), 7, 0x80) + coded

    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.integers(0, 9))
        if kind < 4:
            out += integer(draw(st.integers(0, 75)), 7, 0x80)
        elif kind < 9:
            first, bits = draw(st.sampled_from([(0x40, 6), (0, 4), (0x10, 4)]))
            number = draw(st.just(0) | st.integers(0, 75))
            out += integer(number, bits, first) + (string() if not number else b"") + string()
        else:
            out += integer(draw(st.integers(0, 4200)), 5, 0x20)
    return out[: len(out) - draw(st.sampled_from([0] * 9 + [1, 2]))]


@settings(max_examples=500, deadline=None)
@given(many=st.lists(blocks() | st.binary(max_size=60), max_size=8))
@example(many=[b"\x80"])
@example(many=[b"\x00\x85\xff\xff\xff\xff\xff\x01a"])
def test_arbitrary_blocks_mean_the_same_to_both(many: list[bytes]):
    """Equal fields while both accept, and both refuse the same block: what is shared is never out of step."""
    decoder, theirs = Decoder(1 << 20), oracle()
    for block in many:
        got, wanted = ours(decoder, block), decoded(theirs, block)
        assert got == wanted
        if wanted == "refused":
            return


def test_a_repeated_field_becomes_one_byte():
    """First and second time as a literal, from then on by its index; a request id never enters the table."""
    encoder = Encoder()
    fields = [(b":method", b"GET"), (b"user-agent", b"load"), (b"x-request-id", b"1234")]
    blocks = [encoder.encode(fields) for _ in range(4)]
    request_id = b"\x00\x0cx-request-id\x041234"
    assert blocks[0] == b"\x82\x0f\x2b\x04load" + request_id
    assert blocks[1] == b"\x82\x7a\x04load" + request_id
    assert blocks[2] == blocks[3] == b"\x82\xbe" + request_id


def test_never_indexed_fields_stay_so():
    """RFC 7541 6.2.3: one that came as never indexed leaves as such, even where its plain twin is in the table."""
    name, value = b"x-key", b"hush"
    (secret,) = Decoder(1 << 20).decode(b"\x10\x05x-key\x04hush")
    encoder = Encoder()
    for _ in range(3):
        encoder.encode([(name, value)])
    block = encoder.encode([secret])
    assert secret == (name, value) and isinstance(secret, Secret)
    assert block[0] & 0xF0 == 0x10
    assert encoder.encode([(b"cookie", b"a=b")])[0] & 0xF0 == 0x10


def test_too_long_a_list_keeps_the_table_right():
    """The list is refused, and what it put into the table is there for the next block."""
    decoder, encoder = Decoder(2_000), hpack.Encoder()
    long = [(b"x-%d" % number, b"y" * 100) for number in range(30)]
    assert decoder.decode(encoder.encode(long)) is None
    assert plain(decoder.decode(encoder.encode(long[-2:]))) == long[-2:]


def test_a_bomb_of_indices_is_counted():
    """A thousand one-byte references to a long entry are as long a list as if they were spelled out."""
    decoder = Decoder(64 << 10)
    assert decoder.decode(b"\x40\x01a" + integer(3_000, 7, 0) + b"v" * 3_000) is not None
    assert decoder.decode(b"\xbe" * 1_000) is None


@pytest.mark.parametrize("block", [b"\x80", b"\xff", b"\xbe", b"\x40\x01", b"\x82\x20", b"\x3f\xe2\x1f", b"\x00\x05a"])
def test_what_is_no_block_is_refused(block: bytes):
    """Index 0, endless integers, references to nothing, cut strings, late or too great size updates."""
    with pytest.raises(CompressionError):
        Decoder(1 << 20).decode(block)
