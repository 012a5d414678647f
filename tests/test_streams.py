"""Byte streams from packets in any order, with the packets that carried each byte."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether

from testbed.observe.pcapng import ETHERNET, RAW_IP, Interface, Packet
from testbed.observe.streams import Traffic, follow, segment_of
from tests.recorded import CLIENT, SERVER, TO_CLIENT, TO_SERVER, Laid, frame, tcp


def followed(lay: Laid) -> Traffic:
    return follow(lay.packets, tuple(lay.interfaces))


def one(segments: list[bytes]) -> Traffic:
    lay = Laid()
    lay.point("a:eth0")
    for segment in segments:
        lay.add(0, segment)
    return followed(lay)


def packet(data: bytes) -> Packet:
    return Packet(number=1, interface=0, time_ns=0, data=data, wire_length=len(data))


def test_both_directions_come_out_whole() -> None:
    """Sequence numbers wrap on the way."""
    (connection,) = one(tcp([(TO_SERVER, b"q" * 5000), (TO_CLIENT, b"r" * 70)], CLIENT, SERVER, 1400)).connections

    assert (connection.client, connection.server, connection.opening_seen) == (CLIENT, SERVER, True)
    assert connection.forward.data == b"q" * 5000 and connection.backward.data == b"r" * 70
    assert connection.forward.gaps == () and connection.forward.stray == ()


@given(st.data())
def test_any_order_and_repetition_gives_the_same_bytes(data: st.DataObject) -> None:
    """Whatever the network did, the stream is what a receiver would have read, and the carriers truly carry."""
    text = bytes(range(200))
    frames = tcp([(TO_SERVER, text)], CLIENT, SERVER, data.draw(st.integers(7, 60)))
    body = data.draw(st.permutations([*frames[2:], *data.draw(st.lists(st.sampled_from(frames[2:])))]))
    laid = [*frames[:2], *body]

    (connection,) = one(laid).connections

    assert connection.forward.data == text and not connection.forward.conflicts and not connection.forward.gaps
    start = data.draw(st.integers(0, 199))
    carriers = connection.forward.carriers(start, start + 1)
    assert carriers == tuple(
        n for n, f in enumerate(laid, 1) if bytes([start]) in f[54:] and f[34:36] == frames[0][34:36]
    )


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=12))
def test_overlaps_and_gaps_are_what_a_byte_map_says(pieces: list[tuple[int, int]]) -> None:
    """Compared with marking single bytes in a list."""
    text = bytes(range(1, 141))
    known = [False] * 140
    frames = [frame(CLIENT, SERVER, 99, 2, b"")]
    for start, length in pieces:
        frames.append(frame(CLIENT, SERVER, 100 + start, 24, text[start : start + length]))
        known[start : start + length] = [True] * length

    stream = one(frames).connections[0].forward

    reached = max((i + 1 for i, k in enumerate(known) if k), default=0)
    assert stream.data == bytes(text[i] if known[i] else 0 for i in range(reached))
    assert {i for a, b in stream.gaps for i in range(a, b)} == {i for i in range(reached) if not known[i]}


def test_a_repetition_with_other_bytes_is_reported() -> None:
    """The first bytes stay; the packet that contradicts them is named."""
    frames = [
        frame(CLIENT, SERVER, 9, 2, b""),
        frame(CLIENT, SERVER, 10, 24, b"abc"),
        frame(CLIENT, SERVER, 10, 24, b"axc"),
    ]

    stream = one(frames).connections[0].forward

    assert stream.data == b"abc" and stream.conflicts == (3,)


def test_capture_points_and_reused_ports_are_kept_apart() -> None:
    """The same 4-tuple at two places is two connections, and a second SYN a third."""
    lay = Laid()
    lay.point("a:x")
    lay.point("b:y")
    lay.exchange([(TO_SERVER, b"one")], points=[0, 1])
    again = tcp([(TO_SERVER, b"two")], CLIENT, SERVER, 1400)
    again[0] = frame(CLIENT, SERVER, 5000, 2, b"")
    again[2] = frame(CLIENT, SERVER, 5001, 24, b"two")
    for segment in again[:3]:
        lay.add(0, segment)

    connections = followed(lay).connections

    assert [(c.interface, c.forward.data) for c in connections] == [(0, b"one"), (1, b"one"), (0, b"two")]


def test_a_cut_packet_leaves_a_gap() -> None:
    """Bytes beyond the snaplen are missing, not zero."""
    whole = frame(CLIENT, SERVER, 10, 24, bytes(range(100)))
    lay = Laid()
    lay.point("a:x")
    lay.add(0, frame(CLIENT, SERVER, 9, 2, b""))
    lay.packets.append(Packet(number=2, interface=0, time_ns=1, data=whole[:94], wire_length=len(whole)))

    stream = followed(lay).connections[0].forward

    assert stream.data == bytes(range(40)) and stream.gaps == ((40, 100),)


def test_scapy_agrees_on_frames() -> None:
    """IPv4 with options, VLAN tags, no link layer; and what is not TCP is left alone."""
    tcp_layer = TCP(sport=1, dport=2, seq=7, flags="PA", options=[("Timestamp", (1, 2))])
    for built, link in (
        (Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / tcp_layer / b"body", ETHERNET),
        (Ether() / Dot1Q(vlan=3) / IP(src="10.0.0.1", dst="10.0.0.2") / tcp_layer / b"body", ETHERNET),
        (IP(src="10.0.0.1", dst="10.0.0.2") / tcp_layer / b"body", RAW_IP),
    ):
        segment = segment_of(packet(bytes(built)), link)
        assert (segment.source, segment.destination) == (("10.0.0.1", 1), ("10.0.0.2", 2))
        assert (segment.sequence, segment.payload) == (7, b"body")
    for other in (Ether() / ARP(), Ether() / IP() / UDP(), Ether() / IP(frag=5) / tcp_layer):
        assert segment_of(packet(bytes(other))) is None


def test_ethernet_padding_is_not_payload() -> None:
    """Short frames are padded to 60 bytes; the IP length says where data ends."""
    assert segment_of(packet(frame(CLIENT, SERVER, 1, 16, b"") + bytes(6))).payload == b""


def test_a_super_frame_without_length_is_read_to_its_end() -> None:
    """BIG TCP writes 0 into the IP length."""
    big = bytearray(frame(CLIENT, SERVER, 1, 24, b"x" * 1000))
    struct.pack_into("!H", big, 16, 0)

    assert segment_of(packet(bytes(big))).payload == b"x" * 1000


def test_without_the_syn_the_answer_tells_who_asked() -> None:
    """SYN+ACK comes from the server."""
    frames = tcp([(TO_CLIENT, b"hi")], CLIENT, SERVER, 1400)

    (connection,) = one(frames[1:]).connections

    assert connection.client == CLIENT and not connection.opening_seen and connection.backward.data == b"hi"


def test_interfaces_are_those_of_the_packets() -> None:
    """A link type nobody can read gives nothing, and says so."""
    lay = Laid()
    lay.interfaces.append(Interface(name="x", link_type=147))
    lay.add(0, frame(CLIENT, SERVER, 1, 2, b""))

    assert followed(lay).not_tcp == (1,)
