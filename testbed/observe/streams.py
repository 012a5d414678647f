"""Packets -> TCP byte streams that know which packets carried which bytes. Pure.

One connection is followed per capture point (interface) and 4-tuple; a SYN on a used 4-tuple starts another one.
Frames are taken apart by struct and not by scapy, which takes a hundred times as long, and a proof window has
tens of thousands. Bytes that arrive twice are kept as they came first; bytes that never came are zeros and listed in
`gaps`, so that no reader mistakes them for data; so are bytes at the end that a FIN or the peer's acknowledgement tells
of. What is not TCP is counted, never guessed at, and told apart where it could hold a stream: fragments, IP in IP, what
the capture cut.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from struct import Struct
from typing import NamedTuple

from testbed.observe.pcapng import ETHERNET, RAW_IP, Interface, Packet

FIN, SYN, RST, ACK = 1, 2, 4, 16
MAX_GAP_BYTES = 16 << 20
"""A segment further ahead than this is not of the stream (TCP windows of the testbed stay below)."""
_TCP = Struct("!HHIIBBH").unpack_from
_ETHERNET_IPV4 = Struct("!12xHBxHxxHxB").unpack_from
"""EtherType, version and header length, total length, fragment, protocol."""
_TCP_BEHIND_PORTS = Struct("!IIBB").unpack_from

Address = tuple[str, int]


class Segment(NamedTuple):
    """One TCP packet. Tuples, this and `Mark`: made for every packet, at a quarter of a dataclass's cost."""

    packet: int
    time_ns: int
    interface: int
    source: Address
    destination: Address
    sequence: int
    acknowledged: int
    """Of no meaning without the ACK flag."""
    flags: int
    payload: bytes
    wire_length: int
    """Payload bytes on the wire; more than len(payload) where the capture cut the packet."""


class Mark(NamedTuple):
    """Bytes `start`..`stop` of a stream were in this packet (again, if another mark covers them too)."""

    start: int
    stop: int
    packet: int
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteStream:
    data: bytes = b""
    marks: tuple[Mark, ...] = ()
    """By start, then packet."""
    gaps: tuple[tuple[int, int], ...] = ()
    stray: tuple[int, ...] = ()
    """Packets whose sequence numbers lie too far off to belong."""
    conflicts: tuple[int, ...] = ()
    """Packets that repeat a byte with another value: never in honest traffic."""
    other: bytes = b""
    """As `data`, but with the last value of each byte that came with several; empty without conflicts."""
    longest_mark: int = 0
    """Bytes in the biggest packet: how far back a search among the marks has to look."""

    def carriers(self, start: int, stop: int) -> tuple[int, ...]:
        """Numbers of the packets that carried any byte of `start`..`stop`, retransmissions included, ascending."""
        return tuple(sorted({m.packet for m in self._marks_over(start, stop)}))

    def first_seen_ns(self, start: int, stop: int) -> int:
        """When the last of these bytes was first there; 0 if none was."""
        times = [m.time_ns for m in self._marks_over(start, stop)]
        return max(times) if times else 0

    def _marks_over(self, start: int, stop: int) -> list[Mark]:
        end = bisect_left(self.marks, stop, key=lambda m: m.start)
        found = []
        for index in range(end - 1, -1, -1):
            mark = self.marks[index]
            if mark.start + self.longest_mark <= start:
                break
            if mark.stop > start:
                found.append(mark)
        return found

    def whole_until(self) -> int:
        """Up to where the bytes are complete."""
        return self.gaps[0][0] if self.gaps else len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """`client` opened it. `forward` runs from client to server."""

    interface: int
    client: Address
    server: Address
    opening_seen: bool
    """The SYN was captured; otherwise who is the client is a guess (whoever spoke first) and the start may be
    missing."""
    forward: ByteStream
    backward: ByteStream
    first_packet: int
    last_packet: int

    @property
    def name(self) -> str:
        return f"{self.client[0]}:{self.client[1]}>{self.server[0]}:{self.server[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    connections: tuple[Connection, ...]
    not_tcp: tuple[int, ...]
    """Packets that are not TCP over IP, or are fragments: nothing was reassembled from them."""
    unread: tuple[int, ...] = ()
    """Those of them that may hold a part of something: fragments, packets in packets, and what the capture cut."""


LONE_PROTOCOLS = (1, 2, 17, 58)
"""ICMP, IGMP, UDP, ICMPv6: their packets hold what they say."""
IPV6_OPTIONS = (0, 43, 60)
"""Hop-by-hop, routing, destination: headers before the one that matters (RFC 8200 §4.1)."""


def may_hold_a_part(packet: Packet, link_type: int = ETHERNET) -> bool:
    """Of a packet that gave no segment: whether others would be needed to know what it carried."""
    if len(packet.data) < packet.wire_length:
        return True
    at, kind = _network(packet.data, link_type)
    data = packet.data
    if kind == b"\x08\x00" and len(data) >= at + 20:
        fragment = (data[at + 6] << 8 | data[at + 7]) & 0x3FFF
        return bool(fragment) or data[at + 9] not in LONE_PROTOCOLS
    if kind == b"\x86\xdd" and len(data) >= at + 40:
        return _behind_options(data, at)[0] not in LONE_PROTOCOLS
    return False


def _network(data: bytes, link_type: int) -> tuple[int, bytes]:
    """(where the network header begins, its EtherType; empty for a link that is not known)."""
    if link_type == ETHERNET:
        at, kind = 14, data[12:14]
        while kind in (b"\x81\x00", b"\x88\xa8"):  # 802.1Q tags
            kind, at = data[at + 2 : at + 4], at + 4
        return at, kind
    if link_type == RAW_IP:
        return 0, b"\x08\x00" if data[:1] and data[0] >> 4 == 4 else b"\x86\xdd"
    return 0, b""


def _behind_options(data: bytes, at: int) -> tuple[int, int]:
    """(protocol, where its header begins) of an IPv6 packet."""
    protocol, behind = data[at + 6], at + 40
    while protocol in IPV6_OPTIONS and len(data) >= behind + 2:
        protocol, behind = data[behind], behind + 8 + data[behind + 1] * 8
    return protocol, behind


def segment_of(packet: Packet, link_type: int = ETHERNET) -> Segment | None:
    """The TCP segment in a frame, or None when it holds none (ARP, UDP, a fragment, too short)."""
    data = packet.data
    if link_type == ETHERNET and len(data) >= 54:  # the usual case, read at once
        kind, first, total, fragment, protocol = _ETHERNET_IPV4(data)
        if kind == 0x0800 and first == 0x45 and protocol == 6 and total and not fragment & 0x3FFF:
            sequence, acknowledged, offset, flags = _TCP_BEHIND_PORTS(data, 38)
            at, end = 34 + (offset >> 4) * 4, 14 + total
            return Segment(
                packet.number, packet.time_ns, packet.interface, *_ends(data[26:38]), sequence, acknowledged, flags,
                data[at:end], end - at if end > at else 0,
            )  # fmt: skip
    at, kind = _network(data, link_type)
    if kind == b"\x08\x00" and len(data) >= at + 20:
        header = (data[at] & 15) * 4
        total = data[at + 2] << 8 | data[at + 3] or packet.wire_length - at  # 0: BIG TCP super-frame
        if data[at + 9] != 6 or (data[at + 6] << 8 | data[at + 7]) & 0x3FFF:
            return None
        source, destination = _dotted(data[at + 12 : at + 16]), _dotted(data[at + 16 : at + 20])
        end, at = at + total, at + header
    elif kind == b"\x86\xdd" and len(data) >= at + 40:
        protocol, behind = _behind_options(data, at)
        if protocol != 6:
            return None
        total = data[at + 4] << 8 | data[at + 5] or packet.wire_length - at - 40
        source, destination = _colons(data[at + 8 : at + 24]), _colons(data[at + 24 : at + 40])
        end, at = at + 40 + total, behind
    else:
        return None
    if len(data) < at + 20:
        return None
    source_port, destination_port, sequence, acknowledged, offset, flags, _ = _TCP(data, at)
    at += (offset >> 4) * 4
    return Segment(
        packet=packet.number,
        time_ns=packet.time_ns,
        interface=packet.interface,
        source=(source, source_port),
        destination=(destination, destination_port),
        sequence=sequence,
        acknowledged=acknowledged,
        flags=flags,
        payload=data[at:end],
        wire_length=max(0, end - at),
    )


@lru_cache(maxsize=1 << 16)
def _ends(raw: bytes) -> tuple[Address, Address]:
    """Of the two addresses of an IPv4 header and the ports behind it."""
    source, destination = _dotted(raw[:4]), _dotted(raw[4:8])
    return (source, raw[8] << 8 | raw[9]), (destination, raw[10] << 8 | raw[11])


def _dotted(raw: bytes) -> str:
    return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"


def _colons(raw: bytes) -> str:
    if raw[:12] == bytes(10) + b"\xff\xff":
        return _dotted(raw[12:])
    return str(ipaddress.IPv6Address(raw))


@dataclass(slots=True)
class _Half:
    """One direction while it is being put together; offsets count from the byte after the SYN."""

    base: int | None = None
    data: bytearray = field(default_factory=bytearray)
    known: list[tuple[int, int]] = field(default_factory=list)
    """Disjoint ascending spans of bytes that came."""
    marks: list[Mark] = field(default_factory=list)
    stray: list[int] = field(default_factory=list)
    conflicts: list[int] = field(default_factory=list)
    end: int = 0
    """Offset that the sender is known to have reached (FIN, or a packet cut by the snaplen)."""
    acknowledged: int = 0
    """Offset that its peer says to have received."""
    last_acknowledgement: int = -1
    fin: int | None = None
    longest: int = 0
    pieces: list[bytes] = field(default_factory=list)
    """In order behind `data`, not yet in it."""
    next: int | None = None
    """Where they end; None if there are none."""
    other: bytearray | None = None

    def _came(self) -> int:
        return len(self.data) if self.next is None else self.next

    def _offset(self, sequence: int) -> int:
        """Serial arithmetic (RFC 9293 §3.4) around what has come so far: a stream may pass 4 GiB, a packet may come
        from before."""
        assert self.base is not None
        came = self._came()
        start = (sequence - self.base) & 0xFFFFFFFF
        start += came & ~0xFFFFFFFF
        if start - came > 1 << 31:
            start -= 1 << 32
        elif came - start > 1 << 31:
            start += 1 << 32
        return start

    def extend(self, sequence: int, payload: bytes, packet: int, time_ns: int) -> bool:
        """The usual case at little cost: what follows in order. False if it does not; `put` knows what to do then."""
        came = self.next
        if came is None:
            if not self.known or self.other is not None or self.known[-1][1] != len(self.data):
                return False
            came = len(self.data)
        if (sequence - self.base - came) & 0xFFFFFFFF:
            return False
        if payload:
            size = len(payload)
            self.next = stop = came + size
            self.pieces.append(payload)
            if size > self.longest:
                self.longest = size
            self.marks.append(Mark(came, stop, packet, time_ns))
        return True

    def _settle(self) -> None:
        if self.next is not None:
            self.data += b"".join(self.pieces)
            self.known[-1] = (self.known[-1][0], self.next)
            self.end = max(self.end, self.next)
            self.pieces.clear()
            self.next = None

    def acknowledge(self, number: int) -> None:
        """To be asked after `extend` or `put` of what came with it."""
        if number == self.last_acknowledgement:
            return
        self.last_acknowledgement = number
        if self.base is not None:
            at = self._offset(number)
            if self.acknowledged < at <= self._came() + MAX_GAP_BYTES:
                self.acknowledged = at

    def put(self, segment: Segment) -> None:
        payload, sequence = segment.payload, segment.sequence
        if self.next is not None:  # what came since, in order
            self._settle()
        if segment.flags & SYN:
            sequence += 1
            self.base = sequence & 0xFFFFFFFF
        if segment.flags & FIN and self.base is not None:
            at = self._offset(sequence) + segment.wire_length
            if 0 <= at <= len(self.data) + MAX_GAP_BYTES:
                self.fin = at
                self.end = max(self.end, at)
        if not segment.wire_length:
            return
        if self.base is None:
            self.base = sequence
        start = self._offset(sequence)
        if start == -1 and segment.wire_length == 1:
            return  # a keep-alive probe repeats the byte before the first
        if start < 0 or start > len(self.data) + MAX_GAP_BYTES:
            self.stray.append(segment.packet)
            return
        stop = start + len(payload)
        self.end = max(self.end, start + segment.wire_length)
        if not payload:
            return
        self.marks.append(Mark(start, stop, segment.packet, segment.time_ns))
        self.longest = max(self.longest, len(payload))
        if start == len(self.data):
            self.data += payload
            if self.other is not None:
                self.other += payload
            self._know(start, stop)
            return
        if stop > len(self.data):
            self.data += bytes(stop - len(self.data))
        self._fill(start, stop, payload, segment.packet)
        if self.other is None and self.conflicts:
            self.other = bytearray(self.data)
        if self.other is not None:
            self.other += bytes(len(self.data) - len(self.other))
            self.other[start:stop] = payload
        self._know(start, stop)

    def _fill(self, start: int, stop: int, payload: bytes, packet: int) -> None:
        """Write what is new; compare what is not."""
        at = start
        for low, high in [*self.known, (1 << 62, 1 << 62)]:
            if high <= at:
                continue
            free = min(low, stop)
            if at < free:
                self.data[at:free] = payload[at - start : free - start]
                at = free
            if at >= stop:
                return
            both = min(high, stop)
            if self.data[at:both] != payload[at - start : both - start] and packet not in self.conflicts:
                self.conflicts.append(packet)
            at = both
            if at >= stop:
                return

    def _know(self, start: int, stop: int) -> None:
        known = self.known
        if known and known[-1][1] == start:
            known[-1] = (known[-1][0], stop)
            return
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*known, (start, stop)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        self.known = merged

    def close(self) -> ByteStream:
        self._settle()
        gaps, at = [], 0
        for low, high in self.known:
            if low > at:
                gaps.append((at, low))
            at = high
        # A FIN takes a number of its own, which is acknowledged, too.
        end = max(self.end, self.acknowledged if self.fin is None else min(self.acknowledged, self.fin))
        if end > at:
            gaps.append((at, end))
        return ByteStream(
            data=bytes(self.data),
            marks=tuple(sorted(self.marks, key=itemgetter(0, 2))),
            gaps=tuple(gaps),
            stray=tuple(self.stray),
            conflicts=tuple(self.conflicts),
            other=bytes(self.other or b""),
            longest_mark=self.longest,
        )


@dataclass(slots=True)
class _Open:
    interface: int
    client: Address
    server: Address
    opening_seen: bool
    first: int
    last: int = 0
    syn: int | None = None
    forward: _Half = field(default_factory=_Half)
    backward: _Half = field(default_factory=_Half)

    def close(self) -> Connection:
        return Connection(
            interface=self.interface,
            client=self.client,
            server=self.server,
            opening_seen=self.opening_seen,
            forward=self.forward.close(),
            backward=self.backward.close(),
            first_packet=self.first,
            last_packet=self.last,
        )


def follow(packets: Iterable[Packet], interfaces: tuple[Interface, ...]) -> Traffic:
    """Connections in the order of their first packet."""
    opened: list[_Open] = []
    live: dict[tuple[int, Address, Address], _Open] = {}
    not_tcp, unread = [], []
    link_types = [i.link_type for i in interfaces]
    lanes: dict[tuple[int, bytes], tuple[_Open, _Half, _Half]] = {}
    """By addresses and ports as they stand in the packet: so most packets need be taken apart no further."""
    for packet in packets:
        link_type = link_types[packet.interface]
        lane = None
        if link_type == ETHERNET and len(data := packet.data) >= 54:
            kind, first, total, fragment, protocol = _ETHERNET_IPV4(data)
            if kind == 0x0800 and first == 0x45 and protocol == 6 and total and not fragment & 0x3FFF:
                lane = (packet.interface, data[26:38])
                known = lanes.get(lane)
                if known is not None and 14 + total <= len(data):
                    sequence, acknowledged, offset, flags = _TCP_BEHIND_PORTS(data, 38)
                    connection, sender, receiver = known
                    payload = data[34 + (offset >> 4) * 4 : 14 + total]
                    if not flags & (SYN | FIN | RST) and sender.extend(
                        sequence, payload, packet.number, packet.time_ns
                    ):
                        connection.last = packet.number
                        if flags & ACK and acknowledged != receiver.last_acknowledgement:
                            receiver.acknowledge(acknowledged)
                        continue
        segment = segment_of(packet, link_type)
        if segment is None:
            not_tcp.append(packet.number)
            if may_hold_a_part(packet, link_type):
                unread.append(packet.number)
            continue
        key = (segment.interface, segment.source, segment.destination)
        connection = live.get(key)
        opening = segment.flags & (SYN | ACK) == SYN
        if connection is None or (opening and connection.syn != segment.sequence):
            if segment.flags & RST and connection is None:
                continue
            client, server = segment.source, segment.destination
            if segment.flags & (SYN | ACK) == SYN | ACK:  # the SYN itself was missed, the answer tells who asked
                client, server = server, client
            connection = _Open(segment.interface, client, server, opening, packet.number)
            opened.append(connection)
            live[(segment.interface, client, server)] = live[(segment.interface, server, client)] = connection
            lanes.clear()
        if opening:
            connection.syn = segment.sequence
        connection.last = packet.number
        sender, receiver = connection.forward, connection.backward
        if segment.source != connection.client:
            sender, receiver = receiver, sender
        if lane is not None:
            lanes[lane] = (connection, sender, receiver)
        sender.put(segment)
        if segment.flags & ACK:
            receiver.acknowledge(segment.acknowledged)
    return Traffic(connections=tuple(c.close() for c in opened), not_tcp=tuple(not_tcp), unread=tuple(unread))
