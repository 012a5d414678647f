"""How findings name packets, connections and lists in a line that people read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from testbed.verify.evidence import Heard, Sighting


def packets_of(sightings: Iterable[Sighting]) -> set[int]:
    return {number for s in sightings for number in s.packets}


def starts(heard: Sequence[Heard]) -> set[int]:
    """First packet of each connection: enough to find it."""
    return {h.connection.first_packet for h in heard}


def names(heard: Sequence[Heard]) -> str:
    return some([h.connection.name for h in heard])


def some(texts: Sequence[str], limit: int = 3) -> str:
    rest = len(texts) - limit
    return "; ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")


def more(packets: Sequence[int]) -> str:
    if not packets:
        return ""
    shown = ", ".join(map(str, packets[:8]))
    return f"; packets {shown}" + (f", … ({len(packets)} in all)" if len(packets) > 8 else "")
