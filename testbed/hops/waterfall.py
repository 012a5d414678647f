"""Sightings along a way -> how long each hop of a request took, there and back, and what no hop explains. Pure.

A request is at a place once all of it is (its last byte), so each hop's time is from whole to whole and their sum is
the whole time, to the nanosecond. A place that did not see a request makes both hops beside it unknown: never zero, and
never added to a neighbour; what they took is the remainder. The ends are the load generator's own times, brought to the
packets' clock; its total is taken from its own clock alone, so that the sum can be checked against it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from testbed.hops.route import APP, CLIENT, Hop, Place, Way
from testbed.hops.sightings import Sighting
from testbed.stats import percentile

THERE, BACK, AT = "→", "←", "·"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """As its sender knows it, on the packets' clock."""

    id: str
    intended_ns: int
    sent_ns: int
    done_ns: int

    @property
    def total_ns(self) -> int:
        return self.done_ns - self.intended_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One bar of a waterfall."""

    kind: str
    name: str
    direction: str
    """`→` with the request, `←` with the answer, `·` between both."""
    start_ns: int | None
    """From when the request was intended; None where its beginning was not seen."""
    duration_ns: int | None
    """None: unknown, for one of its ends was not seen, or they contradict each other."""

    @property
    def label(self) -> str:
        return f"{self.direction} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    request: Request
    parts: tuple[Part, ...]
    edge_ns: int | None = None
    """From the request to the answer at the place next to the client; None where it did not see both."""

    @property
    def known_ns(self) -> int:
        return sum(part.duration_ns for part in self.parts if part.duration_ns is not None)

    @property
    def remainder_ns(self) -> int:
        """What no known part explains; negative if parts add up to more."""
        return self.request.total_ns - self.known_ns

    @property
    def is_whole(self) -> bool:
        return all(part.duration_ns is not None for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When one request passed the places of a way; None where that is not known."""

    asked: tuple[int | None, ...]
    answered: tuple[int | None, ...]
    """In the order of places, not of time."""
    seen: int
    """Places that saw the request at all."""


def along(way: Way, seen: Iterable[Sighting]) -> Moments:
    """Which sighting belongs to which place. A device that is crossed on several legs is told by whom a connection goes
    to; a request that was sent again on one leg (a retry) counts as it came first, its answer as it came last."""
    by_interface: dict[str, list[Sighting]] = {}
    for sighting in seen:
        by_interface.setdefault(sighting.interface, []).append(sighting)
    crossings: dict[str, int] = {}
    for place in way.places:
        crossings[place.interface] = crossings.get(place.interface, 0) + 1
    asked, answered, places = [], [], 0
    for place in way.places:
        mine = [s for s in by_interface.get(place.interface, ()) if crossings[place.interface] == 1 or _on(s, place)]
        asks = [s.asked_ns for s in mine if s.asked_ns is not None]
        answers = [s.answered_ns for s in mine if s.answered_ns is not None]
        asked.append(min(asks) if asks else None)
        answered.append(max(answers) if answers else None)
        places += bool(mine)
    return Moments(asked=tuple(asked), answered=tuple(answered), seen=places)


def _on(sighting: Sighting, place: Place) -> bool:
    return sighting.server[0] in place.towards


def fall(ways: Sequence[Way], request: Request, seen: Iterable[Sighting]) -> Waterfall:
    """Along the way that most places speak for, the first of several; `ways` holds one at least."""
    seen = list(seen)
    way, moments = max(((way, along(way, seen)) for way in ways), key=lambda found: found[1].seen)
    there = list(zip(way.hops, itertools.pairwise(moments.asked), strict=True))
    back = list(zip(way.hops, itertools.pairwise(moments.answered), strict=True))
    own = Hop(kind=CLIENT, name=f"load generator at {way.client}")
    app = Hop(kind=APP, name=f"application {way.server}")
    late = Hop(kind=CLIENT, name="waiting to be sent")
    rows: list[tuple[Hop, str, int | None, int | None]] = [
        (late, THERE, request.intended_ns, request.sent_ns),
        (own, THERE, request.sent_ns, moments.asked[0]),
        *((hop, THERE, start, end) for hop, (start, end) in there),
        (app, AT, moments.asked[-1], moments.answered[-1]),
        *((hop, BACK, start, end) for hop, (end, start) in reversed(back)),
        (own, BACK, moments.answered[0], request.done_ns),
    ]
    out, home = moments.asked[0], moments.answered[0]
    return Waterfall(
        request=request,
        parts=tuple(_part(*row, zero_ns=request.intended_ns) for row in rows),
        edge_ns=None if out is None or home is None else home - out,
    )


def _part(hop: Hop, direction: str, start: int | None, end: int | None, *, zero_ns: int) -> Part:
    known = start is not None and end is not None and end >= start
    return Part(
        kind=hop.kind,
        name=hop.name,
        direction=direction,
        start_ns=None if start is None else start - zero_ns,
        duration_ns=end - start if known else None,  # type: ignore[operator]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Typical:
    """One part over all requests of a window."""

    kind: str
    label: str
    median_ns: float | None
    known: int
    requests: int


def typical(falls: Sequence[Waterfall]) -> list[Typical]:
    """The median of each part over those requests of which it is known, in the order of the way. Medians of parts do
    not add up to the median of the whole."""
    found: dict[tuple[str, str], list[int | None]] = {}
    for one in falls:
        for part in one.parts:
            found.setdefault((part.kind, part.label), []).append(part.duration_ns)
    out = []
    for (kind, label), values in found.items():
        known = [value for value in values if value is not None]
        middle = statistics.median(known) if known else None
        out.append(Typical(kind=kind, label=label, median_ns=middle, known=len(known), requests=len(values)))
    return out


def at_percentile(falls: Sequence[Waterfall], percent: float) -> Waterfall | None:
    """The request whose whole time is nearest to that percentile of all, whatever is known of it."""
    if not falls:
        return None
    wanted = percentile([float(one.request.total_ns) for one in falls], percent)
    return min(falls, key=lambda one: (abs(one.request.total_ns - wanted), one.request.intended_ns))


def all_falls(
    ways: Sequence[Way], requests: Iterable[Request], seen: Mapping[str, Sequence[Sighting]]
) -> list[Waterfall]:
    """Of every request, those that no place saw too."""
    return [fall(ways, request, seen.get(request.id, ())) for request in requests]
