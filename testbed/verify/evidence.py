"""A capture read all the way up: per segment its TCP connections, opened TLS, HTTP/2 conversations, and canary
sightings. Pure.

This is what `judge` weighs. Nothing in here knows a claim.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from testbed.observe import h2frames, keylog, tlsrecords
from testbed.observe.h2frames import Conversation, Exchange
from testbed.observe.keylog import KeyLog, TlsConnection
from testbed.observe.pcapng import Packet, Recording
from testbed.observe.streams import ByteStream, Connection, follow
from testbed.verify.segments import Segment

FORWARD, BACKWARD = "forward", "backward"
FIRST_BYTES = 6
"""Of a connection, to tell whether it is TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Bytes that only requests from `source` to `destination` carry, each of `count` requests once.

    If `-<letters and digits>` follows the token in the payload, that names the request; else requests are counted in
    order.
    """

    token: bytes
    source: str
    destination: str
    count: int
    via: tuple[str, ...] = ()
    """Proxies with an address of their own between the two, in order (a waypoint)."""
    replies: int | None = None
    """How often answers repeat the token; None when that is not to be judged."""
    requests: frozenset[str] | None = None
    """Names of its requests where several canaries share a token, for it is only known afterwards which endpoint
    answered which; None: all that bear the token."""

    def owns(self, sighting: Sighting) -> bool:
        """What bears the token and no name may be anybody's: then it is everybody's."""
        return self.requests is None or not sighting.request or sighting.request in self.requests

    @property
    def legs(self) -> tuple[tuple[str, str], ...]:
        stops = (self.source, *self.via, self.destination)
        return tuple(itertools.pairwise(stops))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One TCP connection at one segment, with as much of its inside as could be had."""

    connection: Connection
    tls: TlsConnection | None
    """None when it does not begin with TLS hellos."""
    conversation: Conversation | None
    """HTTP/2 inside the TLS, or spoken in clear; None if it is neither or could not be opened."""
    is_cut: bool = False
    """A direction of the TLS stops inside a record: what was in it is not known."""
    foreign: bool = False
    """A direction of the TLS holds bytes that are in no record."""

    @property
    def _streams(self) -> tuple[ByteStream, ByteStream]:
        return self.connection.forward, self.connection.backward

    @property
    def is_empty(self) -> bool:
        """Nothing was said, as far as can be known."""
        return not any(s.data or s.gaps or s.stray for s in self._streams)

    @property
    def began_before(self) -> bool:
        """Its first bytes are not in the capture, so that nobody knows what it is; cleartext HTTP/2 is known by its
        preface."""
        forward = self.connection.forward
        headless = not self.connection.opening_seen or (bool(forward.gaps) and forward.whole_until() < FIRST_BYTES)
        return self.tls is None and self.conversation is None and headless

    @property
    def is_whole(self) -> bool:
        return not any(s.gaps or s.stray for s in self._streams)

    @property
    def is_certain(self) -> bool:
        """No byte came with two values."""
        return not any(s.conflicts for s in self._streams)

    @property
    def is_records(self) -> bool:
        """All that was said stands in TLS records, also where the handshake was before the capture."""
        if self.tls is not None:
            return not self.foreign
        spoken = [s.data for s in self._streams if s.data]
        return self.began_before and all(tlsrecords.middle_of_tls(d) and _ends_in_records(d) for d in spoken)

    @property
    def tunnels(self) -> tuple[Exchange, ...]:
        return tuple(e for e in self.conversation.exchanges if e.is_connect) if self.conversation else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """What one segment gave."""

    segment: Segment
    packets: tuple[Packet, ...]
    heard: tuple[Heard, ...]
    unread: int
    """Packets that may hold a part of something that was not put together (fragments, packets in packets, cut ones)."""
    drops: int | None
    """None when the capture does not say: then nothing can be concluded from absence."""
    cut: bool = False

    @property
    def is_complete(self) -> bool:
        return self.drops == 0 and not self.cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    file: str
    listenings: tuple[Listening, ...]
    has_keys: bool
    roots: bytes = b""
    """PEM of the mesh's authorities; empty: who signed certificates is not judged."""

    def at(self, segment: Segment) -> Listening | None:
        return next((x for x in self.listenings if x.segment.name == segment.name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One occurrence of a token."""

    request: str
    """Name after the token, or `` when it has none."""
    direction: str
    packets: tuple[int, ...]
    time_ns: int
    heard: Heard | None
    """None for a packet outside every TCP stream."""
    exchange: Exchange | None = None
    in_head: bool = False
    """In a header block of that exchange; else in its DATA."""


def gather(
    recording: Recording, segments: Sequence[Segment], *, file: str, key_log: str = "", roots: bytes = b""
) -> Evidence:
    """Secrets inside the capture and those of `key_log` are both used."""
    keys = keylog.parse_key_log(recording.key_log + "\n" + key_log)
    traffic = follow(recording.packets, recording.interfaces)
    by_name: dict[str, set[int]] = {}
    for number, interface in enumerate(recording.interfaces):
        by_name.setdefault(interface.name, set()).add(number)
    unread = set(traffic.unread)
    listenings = []
    for segment in segments:
        numbers = by_name.get(segment.name, set())
        told = [recording.drops.get(n) for n in numbers]
        packets = tuple(p for p in recording.packets if p.interface in numbers)
        listenings.append(
            Listening(
                segment=segment,
                packets=packets,
                unread=sum(p.number in unread for p in packets) if unread else 0,
                heard=tuple(hear(c, keys) for c in traffic.connections if c.interface in numbers),
                drops=None if not told or None in told else sum(told),
                cut=recording.cut,
            )
        )
    return Evidence(file=file, listenings=tuple(listenings), has_keys=bool(keys), roots=roots)


def hear(connection: Connection, keys: KeyLog) -> Heard:
    tls = keylog.open_connection(connection, keys)
    if tls is not None:
        inside = (tls.client.data, tls.server.data)
    else:
        inside = (connection.forward.data, connection.backward.data)
    conversation = h2frames.converse(*inside) if h2frames.begins_h2(inside[0]) else None
    ends = []
    if tls is not None:
        for stream in (connection.forward, connection.backward):
            limit = stream.whole_until()
            stop, goes_on = tlsrecords.ending(stream.data, limit)
            ends.append((stop < limit, goes_on))
    return Heard(
        connection=connection,
        tls=tls,
        conversation=conversation,
        is_cut=any(rest and goes_on for rest, goes_on in ends),
        foreign=any(rest and not goes_on for rest, goes_on in ends),
    )


def _ends_in_records(data: bytes) -> bool:
    return tlsrecords.ending(data, len(data))[1]


def in_clear(listening: Listening, token: bytes) -> list[Sighting]:
    """Every occurrence that needs no key: in reassembled streams, in cleartext HTTP/2 as it is read (HPACK may have
    coded a field, framing may have split a body), and in single packets of any kind.

    One occurrence is one sighting: a retransmission of it adds its packet number and no count.
    """
    found: list[Sighting] = []
    for heard in listening.heard:
        for direction, stream in ((FORWARD, heard.connection.forward), (BACKWARD, heard.connection.backward)):
            read: list[tuple[int, int]] = []
            if heard.tls is None and heard.conversation is not None:
                for sighting, spans in _in_conversation(heard, heard.conversation, token, direction, stream):
                    found.append(sighting)
                    read += spans
            plain = [
                span
                for span in _occurrences(stream.data, token)
                if not any(a < span[1] and span[0] < b for a, b in read)
            ]
            # A retransmission with other bytes, of which a receiver may have taken either.
            other = [span for span in _occurrences(stream.other, token) if stream.data[span[0] : span[1]] != token]
            for start, stop, request in (*plain, *other):
                found.append(
                    Sighting(
                        request=request,
                        direction=direction,
                        packets=stream.carriers(start, stop),
                        time_ns=stream.first_seen_ns(start, stop),
                        heard=heard,
                    )
                )
    seen = {number for sighting in found for number in sighting.packets}
    for packet in listening.packets:
        if token in packet.data and packet.number not in seen:
            found.append(
                Sighting(request="", direction="", packets=(packet.number,), time_ns=packet.time_ns, heard=None)
            )
    return found


def opened(listening: Listening, token: bytes) -> list[Sighting]:
    """Every occurrence inside decrypted TLS: where it is HTTP/2, in the header lists and DATA of its streams (and of
    HTTP/2 inside a tunnel), else in the application bytes."""
    found: list[Sighting] = []
    for heard in listening.heard:
        if heard.tls is None:
            continue
        for direction, plaintext in ((FORWARD, heard.tls.client), (BACKWARD, heard.tls.server)):
            if heard.conversation is not None:
                found += (s for s, _ in _in_conversation(heard, heard.conversation, token, direction, plaintext))
                continue
            for start, stop, request in _occurrences(plaintext.data, token):
                found.append(
                    Sighting(
                        request=request,
                        direction=direction,
                        packets=plaintext.carriers(start, stop),
                        time_ns=plaintext.first_seen_ns(start, stop),
                        heard=heard,
                    )
                )
    return found


def first_stops(evidence: Evidence, token: bytes, client: str) -> dict[str, str]:
    """Request -> address that `client` (an address) sent it to, as the first place that saw it says.

    Which of several proxies a request took is known only from the packets.
    """
    first: dict[str, tuple[int, str]] = {}
    for listening in evidence.listenings:
        for sighting in [*in_clear(listening, token), *opened(listening, token)]:
            if sighting.direction != FORWARD or sighting.heard is None or not sighting.request:
                continue
            connection = sighting.heard.connection
            seen = (sighting.time_ns, connection.server[0])
            if connection.client[0] == client and seen <= first.get(sighting.request, seen):
                first[sighting.request] = seen
    return {request: address for request, (_, address) in first.items()}


Spans = list[tuple[int, int]]


def _in_conversation(
    heard: Heard, conversation: Conversation, token: bytes, direction: str, bytes_of: keylog.Plaintext | ByteStream
) -> Iterator[tuple[Sighting, Spans]]:
    """With the ranges that held it of `bytes_of`, which is what the conversation was read from."""
    for exchange in conversation.exchanges:
        for spans, request, in_head in _in_exchange(exchange, token, direction):
            sighting = Sighting(
                request=request,
                direction=direction,
                packets=tuple(sorted({n for span in spans for n in bytes_of.carriers(*span)})),
                time_ns=max(bytes_of.first_seen_ns(*span) for span in spans),
                heard=heard,
                exchange=exchange,
                in_head=in_head,
            )
            yield sighting, spans


def _in_exchange(exchange: Exchange, token: bytes, direction: str) -> Iterator[tuple[Spans, str, bool]]:
    """(where, name of the request, whether in a header block) of each occurrence."""
    sent = direction == FORWARD
    for block in exchange.asked if sent else exchange.answered:
        for name, value in block.headers:
            for text in (name, value):
                for _, _, request in _occurrences(text.encode(), token):
                    yield [block.span], request, True
    body = exchange.sent if sent else exchange.received
    inner = _inner(exchange)
    if inner is not None:
        for deeper in inner.exchanges:
            for spans, request, _ in _in_exchange(deeper, token, direction):
                yield [outer for span in spans for outer in body.spans(*span)], request, False
        return
    for start, stop, request in _occurrences(body.data, token):
        yield body.spans(start, stop), request, False


def _inner(exchange: Exchange) -> Conversation | None:
    """HTTP/2 spoken inside a tunnel (gRPC between ambient workloads), if all of it could be read."""
    if not exchange.is_connect or not h2frames.begins_h2(exchange.sent.data):
        return None
    found = h2frames.converse(exchange.sent.data, exchange.received.data)
    return found if not found.problem else None


_NAME = re.compile(rb"-([0-9A-Za-z]{1,40})")


def _occurrences(data: bytes, token: bytes) -> Iterator[tuple[int, int, str]]:
    at = data.find(token)
    while at >= 0:
        stop = at + len(token)
        name = _NAME.match(data, stop)
        yield at, stop, name[1].decode() if name else ""
        at = data.find(token, stop)
