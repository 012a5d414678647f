"""A trial under capture at every edge of a namespace: its requests' waterfalls as rows beside what it measures anyway.

A capture costs CPU, so such a trial is a cell of its own (`Cell.traced`), and stands beside one of the same load
without. Packets and generators read one machine's clocks: frames are stamped by the kernel in ns of CLOCK_REALTIME,
generators read CLOCK_MONOTONIC, and what lies between the two is read before and after the load; how far these readings
are off is in the rows.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from testbed import proof
from testbed.deploy import Deployment
from testbed.errors import Bug
from testbed.hops.readback import PERCENTS, WHOLE, component
from testbed.hops.route import Way, ways
from testbed.hops.sightings import sightings
from testbed.hops.waterfall import Request, Waterfall, all_falls, at_percentile, typical
from testbed.load.plan import request_id
from testbed.model.experiment import Experiment, Measurement, RequestRow
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Point
from testbed.trial import Outcome

SETTLE_S = 0.3
"""The last answers' acknowledgements are still under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC."""

    offset_ns: int
    off_ns: int
    """At most so far off: half of what lay between the readings."""


def read_clock(tries: int = 20) -> Clock:
    """The best of several: a reading that was interrupted says less."""
    found = []
    for _ in range(tries):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        found.append((after - before, real - (before + after) // 2))
    width, offset = min(found)
    return Clock(offset_ns=offset, off_ns=(width + 1) // 2)


def between(before: Clock, after: Clock) -> Clock:
    """Of a stretch: the middle of both ends, off by what it drifted as well."""
    offset = (before.offset_ns + after.offset_ns) // 2
    drift = abs(after.offset_ns - before.offset_ns)
    return Clock(offset_ns=offset, off_ns=max(before.off_ns, after.off_ns) + (drift + 1) // 2)


def requests_of(rows: Sequence[RequestRow], offset_ns: int) -> list[Request]:
    """Those that were answered; the others have no end to explain."""

    def on_packets_clock(at_s: float) -> int:
        return round(at_s * 1e9) + offset_ns

    return [
        Request(
            id=request_id(row.connection, row.intended_s),
            intended_ns=on_packets_clock(row.intended_s),
            sent_ns=on_packets_clock(row.sent_s),
            done_ns=on_packets_clock(row.last_byte_s),
        )
        for row in rows
        if not row.error
    ]


def ways_of(deployment: Deployment, client: str, target: str) -> list[Way]:
    """To any endpoint of the target. Raises UsageError for a target that is none."""
    topology, placement = deployment.lab.topology, deployment.placement
    going = proof.errand(topology, target, "")
    claims = proof.concerned(placement.claims, topology, going, client)
    found = [way for name in going.service.endpoints for way in ways(topology, placement, claims, name)]
    if not found:
        raise Bug(f"plane {placement.plane} claims nothing of {client} calling {target}, so no way is known")
    return found


def points(deployment: Deployment, found: Sequence[Way]) -> list[Point]:
    sandboxes = deployment.lab.running.sandboxes
    names = dict.fromkeys(interface for way in found for interface in way.interfaces)
    split = [name.rpartition(":") for name in names]
    return [Point(sandbox=sandbox, netns=sandboxes[sandbox].netns, device=device) for sandbox, _, device in split]


def run(deployment: Deployment, experiment: Experiment, measure: Callable[[], Outcome], *, folder: Path) -> Outcome:
    """`measure` under capture. Raises PeerError where the capture fails, as any part of a trial may."""
    found = ways_of(deployment, experiment.client, experiment.target)
    file = folder / "hops.pcapng"
    with Capture(points(deployment, found), file) as capture:
        before = read_clock()
        outcome = measure()
        clock = between(before, read_clock())
        time.sleep(SETTLE_S)
        evidence = capture.stop()
    keys = "\n".join(path.read_text("ascii", "replace") for path in deployment.keylogs())
    seen = sightings(pcapng.read(file), keys)
    file.unlink()
    falls = all_falls(found, requests_of(outcome.requests, clock.offset_ns), seen)
    values = [
        *rows_of(falls),
        (WHOLE, "clock_off", "us", clock.off_ns / 1e3),
        (WHOLE, "packets", "", float(evidence.packets)),
        (WHOLE, "packets_lost", "", float(evidence.drops)),
    ]
    first = outcome.measurements[0]
    added = [
        Measurement(
            component=component, metric=metric, unit=unit, value=value, round=first.round, trial=first.trial,
            block=first.block, plane=first.plane, cell=first.cell, valid=first.valid,
            reason="" if first.valid else first.reason,
        )
        for component, metric, unit, value in values
    ]  # fmt: skip
    return replace(outcome, measurements=(*outcome.measurements, *added))


def rows_of(falls: Sequence[Waterfall]) -> list[tuple[str, str, str, float]]:
    """(component, metric, unit, value): of each part its median over requests, the share of requests of which it is
    unknown, and itself in the request at each percentile; NaN where unknown."""
    if not falls:
        return []
    rows: list[tuple[str, str, str, float]] = []
    shown = {percent: one for percent in PERCENTS if (one := at_percentile(falls, percent))}
    for number, part in enumerate(typical(falls)):
        called = component(number, part.kind, part.label)
        middle = math.nan if part.median_ns is None else part.median_ns / 1e3
        rows.append((called, "hop_median", "us", middle))
        rows.append((called, "hop_unknown", "share", 1 - part.known / part.requests))
        for percent, one in shown.items():
            here = [p.duration_ns for p in one.parts if (p.kind, p.label) == (part.kind, part.label)]
            if here:
                rows.append((called, f"hop_in_p{percent}", "us", math.nan if here[0] is None else here[0] / 1e3))
    for percent, one in shown.items():
        rows.append((WHOLE, f"total_in_p{percent}", "us", one.request.total_ns / 1e3))
        rows.append((WHOLE, f"remainder_in_p{percent}", "us", one.remainder_ns / 1e3))
    shares = [one.remainder_ns / one.request.total_ns for one in falls if one.request.total_ns > 0]
    rows.append((WHOLE, "requests", "", float(len(falls))))
    rows.append((WHOLE, "whole", "share", sum(one.is_whole for one in falls) / len(falls)))
    rows.append((WHOLE, "total_median", "us", statistics.median(one.request.total_ns for one in falls) / 1e3))
    if edges := [one.edge_ns for one in falls if one.edge_ns is not None]:
        rows.append((WHOLE, "edge_median", "us", statistics.median(edges) / 1e3))
    if shares:
        rows.append((WHOLE, "remainder_median", "share", statistics.median(shares)))
    return rows
