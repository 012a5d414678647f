"""What keeps a verdict from being more than the packets say: losses, gaps, contradictions, repetitions. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from testbed.model.experiment import Result
from testbed.verify.evidence import Heard, Listening, Sighting
from testbed.verify.wording import names

Verdict = tuple[Result, str, str, Iterable[int]]
"""(result, short value, what was seen, packets)."""


def unless_incomplete(verdict: Verdict, listening: Listening, *, counts: bool) -> Verdict:
    """A capture that lost packets can prove a breach that was seen, never a rule kept nor that something is missing."""
    if listening.is_complete or verdict[0] is Result.NO_EVIDENCE or (verdict[0] is Result.BROKEN and not counts):
        return verdict
    if listening.drops is None:
        why = "the capture does not say how many packets it lost"
    elif listening.drops:
        why = f"the capture lost {listening.drops} packets"
    else:
        why = "the capture file is cut off"
    return Result.NO_EVIDENCE, verdict[1], f"{why}; {verdict[2]}", verdict[3]


def why_unsearched(heard: Sequence[Heard], listening: Listening) -> str:
    """Why not finding a canary proves nothing here; empty when it does."""
    if lacking := [h for h in heard if not h.is_whole]:
        return f"bytes are missing in {names(lacking)}"
    if twofold := [h for h in heard if not h.is_certain]:
        return f"packets contradict each other in {names(twofold)}: which of them counted is not known"
    if other := [h for h in heard if not h.is_records]:
        return f"not TLS, and so perhaps readable by other means than a search: {names(other)}"
    if cut := [h for h in heard if h.is_cut]:
        return f"the capture stops inside a record of {names(cut)}"
    if listening.unread:
        return f"{listening.unread} packets could not be read to their end (fragments, packets in packets, cut ones)"
    return ""


def once(sightings: Iterable[Sighting]) -> list[Sighting]:
    """The first of each request, of those that have names."""
    seen: dict[str, Sighting] = {}
    return [s for s in sightings if not s.request or seen.setdefault(s.request, s) is s]


def repeated_requests(sightings: Iterable[Sighting]) -> list[str]:
    """Requests seen more than once, of those that have names."""
    counts = Counter((s.request, s.direction) for s in sightings if s.request)
    return sorted(request for (request, _), count in counts.items() if count > 1)
