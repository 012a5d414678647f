"""A capture of many places -> when each request, and its answer, was whole at each of them. Pure.

A connection is read once, where it can be read best, and looked up by its bytes' numbers wherever else it was captured:
so a place needs neither keys nor a beginning of its own. Bytes that a place never saw give None there. A byte counts
from when it was first seen: what comes again tells nothing, but behind the place where it was lost the repetition is
the first, and so the wait for it is that of the place between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from testbed.hops.messages import Said, Span, said
from testbed.observe.keylog import KeyLog, parse_key_log
from testbed.observe.pcapng import Recording
from testbed.observe.streams import Address, ByteStream, Connection, Mark, follow
from testbed.verify.evidence import hear


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One request at one place, in one connection."""

    interface: str
    """`<sandbox>:<device>`, as the capture calls it."""
    client: Address
    server: Address
    asked_ns: int | None
    """When its last byte was there; None where that is not known."""
    answered_ns: int | None

    @property
    def order(self) -> int:
        return min((t for t in (self.asked_ns, self.answered_ns) if t is not None), default=0)


def sightings(recording: Recording, key_log: str = "") -> dict[str, list[Sighting]]:
    """By request id. Secrets inside the capture and those of `key_log` are both used; requests without id are left
    out."""
    keys = parse_key_log(recording.key_log + "\n" + key_log)
    names = [interface.name for interface in recording.interfaces]
    found: dict[str, list[Sighting]] = {}
    loops = {number for number, name in enumerate(names) if name.endswith(":lo")}
    for connections in _same(_joined(follow(recording.packets, recording.interfaces).connections, loops)).values():
        for one in _read_best(connections, keys):
            if not one.request:
                continue
            for connection in connections:
                sighting = Sighting(
                    interface=names[connection.interface],
                    client=connection.client,
                    server=connection.server,
                    asked_ns=whole_at(connection.forward, one.asked),
                    answered_ns=whole_at(connection.backward, one.answered),
                )
                if sighting.asked_ns is not None or sighting.answered_ns is not None:
                    found.setdefault(one.request, []).append(sighting)
    return found


def _joined(connections: Sequence[Connection], loops: Collection[int]) -> list[Connection]:
    """A redirected connection as one. On loopback its packets bear the proxy's address and the answers that which the
    client asked for: the kernel turns the one back behind the other's capture point, so each direction looks like a
    connection of its own."""
    asking: dict[tuple[int, Address], Connection] = {}
    out: list[Connection] = []
    for connection in connections:
        if connection.interface not in loops:
            out.append(connection)
            continue
        here = (connection.interface, connection.client)
        if connection.opening_seen and not connection.backward.marks:
            asking[here] = connection
        elif not connection.opening_seen and not connection.forward.marks and (first := asking.pop(here, None)):
            out.append(replace(first, backward=connection.backward))
        else:
            out.append(connection)
    return [*out, *asking.values()]


Key = tuple[Address, Address, int, int]


def _same(connections: Iterable[Connection]) -> Mapping[Key, list[Connection]]:
    """What is one connection, captured at several places, by both ends. A port that is used again is another connection
    (its number among those); one whose beginning was not seen at a place has other offsets, and stands for itself."""
    groups: dict[Key, list[Connection]] = {}
    used: dict[tuple[int, Address, Address], int] = {}
    for connection in connections:
        here = (connection.interface, connection.client, connection.server)
        number = used[here] = used.get(here, -1) + 1
        alone = -1 if connection.opening_seen else connection.interface
        groups.setdefault((connection.client, connection.server, number, alone), []).append(connection)
    return groups


def _read_best(connections: Sequence[Connection], keys: KeyLog) -> list[Said]:
    """From the place that saw most of it; from the next one where that cannot be read."""
    best: list[Said] = []
    by_loss = sorted(connections, key=lambda c: bool(c.forward.gaps) + bool(c.backward.gaps))
    for connection in by_loss:
        read = said(hear(connection, keys))
        if sum(1 for one in read if one.answered) > sum(1 for one in best if one.answered) or not best:
            best = read
        if best and not (connection.forward.gaps or connection.backward.gaps):
            break  # nobody can have seen more
    return best


def whole_at(stream: ByteStream, spans: Sequence[Span]) -> int | None:
    """When all of these ranges had been seen for the first time; None where some of it never was, or for none."""
    times = [_covered(stream, start, stop) for start, stop in spans]
    known = [time_ns for time_ns in times if time_ns is not None]
    return max(known) if known and len(known) == len(times) else None


def _covered(stream: ByteStream, start: int, stop: int) -> int | None:
    marks = sorted(_over(stream, start, stop), key=lambda mark: mark.time_ns)
    left = [(start, stop)]
    for mark in marks:
        left = [
            piece
            for low, high in left
            for piece in ((low, min(high, mark.start)), (max(low, mark.stop), high))
            if piece[0] < piece[1]
        ]
        if not left:
            return mark.time_ns
    return None


def _over(stream: ByteStream, start: int, stop: int) -> list[Mark]:
    marks, found = stream.marks, []
    for index in range(bisect_left(marks, stop, key=lambda m: m.start) - 1, -1, -1):
        mark = marks[index]
        if mark.start + stream.longest_mark <= start:
            break
        if mark.stop > start:
            found.append(mark)
    return found
