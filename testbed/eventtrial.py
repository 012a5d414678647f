"""A trial in which something happens: streams driven, the event carried out, each stream's fate counted.

What fails because of the event is the result, so it cannot make a trial invalid; the machine can (`eventfidelity`;
drivers kept from the processor, the event late), and so can a plane that failed before anything happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from testbed import eventfidelity, events, stages, trial
from testbed.certificateevents import LIFE_LEFT
from testbed.deploy import Deployment, extra_sandboxes
from testbed.errors import PeerError
from testbed.eventseen import EVENT
from testbed.fidelity import Gates, Level
from testbed.load import streamdriver
from testbed.load.streamplan import CONNECTIONS_A_STREAM
from testbed.model.event import OF_CERTIFICATES, Event, Stage, Stream
from testbed.model.experiment import Cell, Experiment, LinkReading, Measurement
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.outage import fate, is_broken

MOST_GAP_S = 0.25
"""A driver kept from the processor for longer has seen a failure of the machine's."""
MOST_LATE_S = 0.25
"""An event that comes later than asked by more is another one."""
FAILED_BEFORE_SHARE = 0.02
SLOW_S = 0.3
"""A request that takes longer although nothing has happened waits for a processor: more of them are an overload."""
AFTER_S = 0.9
"""The window lasts at least so long after what was to happen has."""
MOST_LONGER_S = 60.0
"""Than the window asked for."""


def run(
    deployment: Deployment,
    experiment: Experiment,
    cell: Cell,
    *,
    plane: str,
    deployed: str,
    round_number: int,
    block: int,
    folder: Path,
    readings: Sequence[LinkReading],
    gates: Gates,
) -> trial.Outcome:
    """`deployed` is the block's plane, `plane` its name in the table; `readings` are of the links at rest before it.

    The deployment is left as the event leaves it; the next trial begins with what it asks for.
    """
    topology = deployment.lab.topology
    wanted, after = begins_as(experiment, cell, topology, deployed), _leads_to(experiment, cell, topology, deployed)
    life_s = cell.leaf_lifetime_s
    # A tunnel that an earlier trial opened would spare this one a handshake.
    of_certificates = any(event.kind in OF_CERTIFICATES for event in cell.events)
    if deployment.placement != wanted or of_certificates or life_s or deployment.renewer is not None:
        events.deploy_anew(deployment, wanted, deployment.stack, leaf_lifetime_s=life_s)
    load = cell.load
    drivers = streamdriver.start(
        deployment.lab.running, topology, experiment.streams, most_s=load.warmup_s + load.window_s + MOST_LONGER_S,
        response_bytes=load.response_bytes, folder=folder,
    )  # fmt: skip
    done: list[tuple[Event, events.Done]] = []
    placed = deployment.placement
    watch = eventfidelity.Watch.of(deployment.lab)
    watch.start()
    try:
        start_s = drivers.go()
        window_s = start_s + load.warmup_s
        for event, target in zip(cell.events, after, strict=True):
            time.sleep(max(0.0, window_s + event.at_s - time.monotonic()))
            client = experiment.streams[0].client
            done.append((event, events.carry_out(deployment, event, target=target, client=client)))
        # A slow machine takes longer over an event and its drains: what comes after is as long all the same.
        end_s = max(window_s + load.window_s, time.monotonic() + AFTER_S)
        rows, max_gap_s = drivers.rows(end_s)
    except BaseException:
        deployment.placement = replace(deployment.placement, plane="")  # whatever it is now, it is to be made anew
        raise
    finally:
        drivers.end()
        watch.stop()
    values: list[tuple[str, str, str, float]] = []
    reasons = machine_reasons(done, window_s, max_gap_s)
    if dead := deployment.dead():
        raise PeerError(f"after the event: {', '.join(dead)}")
    event_s = done[0][1].began_s if done else end_s
    early: list[str] = []
    for index, found in enumerate(rows):
        stream = found.stream
        kept = [r for r in found.rows if window_s <= r.intended_s < end_s]
        seen = fate(
            kept, event_s=event_s, end_s=end_s, held=stream.held, connections=stream.connections,
            connects=found.connects - sum(is_broken(r) for r in found.rows if r.intended_s < window_s),
        )  # fmt: skip
        most = max(1, FAILED_BEFORE_SHARE * sum(r.intended_s < event_s for r in kept))
        slow = sum(r.last_byte_s - r.sent_s > SLOW_S for r in kept if r.intended_s < event_s - SLOW_S)
        if slow > most:
            early.append(f"{stream.name}: {slow} took over {SLOW_S:g} s before anything happened: overloaded")
        if seen.failed_before > most and not stream.meant_to_fail:
            early.append(f"{stream.name}: {seen.failed_before} failed before anything happened")
        values += [
            (stream.name, "first_connection", "", float(index * CONNECTIONS_A_STREAM)),
            (stream.name, "requests_since", "", float(seen.requests)),
            (stream.name, "behind_struck", "", float(is_behind(stream, topology, placed, done))),
            (stream.name, "meant_to_fail", "", float(stream.meant_to_fail)),
            (stream.name, "failed", "", float(seen.failed)),
            (stream.name, "failed_before", "", float(seen.failed_before)),
            (stream.name, "longest_gap", "s", seen.longest_gap_s),
            (stream.name, "recovery", "s", math.nan if seen.recovery_s is None else seen.recovery_s),
            (stream.name, "recovered", "", float(seen.recovery_s is not None)),
            (stream.name, "last_success", "s", math.nan if seen.last_success_s is None else seen.last_success_s),
            (stream.name, "first_failure", "s", math.nan if seen.first_failure_s is None else seen.first_failure_s),
        ]
        if stream.held:
            values += [
                (stream.name, "connections_held", "", float(stream.connections)),
                (stream.name, "connections_broken", "", float(seen.broken)),
                (stream.name, "connections_moved", "", float(seen.moved)),
            ]
    for _, was in done:
        values += [
            (EVENT, "clock", "s", was.began_s),
            (EVENT, "began", "s", was.began_s - window_s),
            (EVENT, "lasted", "s", was.ended_s - was.began_s),
            (EVENT, "components", "", float(len(was.components))),
            (EVENT, "proxies_restarted", "", float(len(was.proxies_restarted))),
            (EVENT, "workloads_restarted", "", float(len(was.workloads_restarted))),
            *((EVENT, *one) for one in was.told),
        ]
    after_it = watch.look_after()
    certificate, seen_of_machine = watch.certificate(
        gates, start_s=start_s, event_s=event_s, end_s=end_s, before=readings,
        rows=[r for found in rows for r in found.rows], failures=[*reasons, *early],
    )  # fmt: skip
    values += [*trial.link_values(readings, seen_of_machine), *trial.machine_values(seen_of_machine, 0)]
    if seen_of_machine.send_lag_p99_ms is not None:
        values.append(("client", "send_lag_p99", "ms", seen_of_machine.send_lag_p99_ms))
    reasons = list(certificate.causes(Level.FAIL))
    told = "; ".join(reasons)
    labels = {
        "round": round_number, "trial": trial.name(round_number, block, plane, cell.name), "block": block,
        "plane": plane, "cell": cell.name, "valid": not reasons,
    }  # fmt: skip
    measurements = [
        Measurement(component=component, metric=metric, unit=unit, value=value, reason=told, **labels)
        for component, metric, unit, value in values
    ]
    return trial.Outcome(
        measurements=(*measurements, *trial.certificate_rows(certificate, labels, told)),
        requests=tuple(r for found in rows for r in found.rows if window_s <= r.intended_s < end_s),
        reasons=tuple(reasons),
        certificate=certificate,
        links_after=tuple(after_it),
    )


def machine_reasons(done: Sequence[tuple[Event, events.Done]], window_s: float, max_gap_s: float) -> list[str]:
    """What makes a trial invalid that the plane has no part in."""
    reasons = []
    if max_gap_s > MOST_GAP_S:
        reasons.append(f"a driver was kept from the processor for {max_gap_s:.2f} s")
    for event, was in done:
        late_s = was.began_s - window_s - event.at_s
        if late_s > MOST_LATE_S:
            reasons.append(f"{event.kind} came {late_s:.2f} s late")
        if any(metric == LIFE_LEFT and value <= 0 for metric, _, value in was.told):
            reasons.append("certificates ended before the CA came round to renewing them")
    return reasons


def is_behind(
    stream: Stream, topology: Topology, placement: Placement, done: Sequence[tuple[Event, events.Done]]
) -> bool:
    """Whether what was struck serves either end of it, by the placement: whom it should touch."""
    struck = {name for _, was in done for name in was.components}
    service = topology.service(stream.target.partition(":")[0])
    ends = {stream.client, *service.endpoints}
    return any(
        service.name in p.serves if p.own_address is not None else not ends.isdisjoint(p.serves)
        for p in placement.proxies
        if p.name in struck
    )


def begins_as(experiment: Experiment, cell: Cell, topology: Topology, plane: str) -> Placement:
    """What a trial of the cell finds deployed."""
    made = _placed(experiment, cell.before, topology, plane)
    for target in _leads_to(experiment, cell, topology, plane):
        if target is not None:
            made = stages.with_identities_of(made, target)
    return made


def _leads_to(experiment: Experiment, cell: Cell, topology: Topology, plane: str) -> list[Placement | None]:
    """Of each of its events."""
    return [
        None if event.stage is None else _placed(experiment, event.stage, topology, plane) for event in cell.events
    ]


def _placed(experiment: Experiment, stage: Stage | None, topology: Topology, plane: str) -> Placement:
    made = stages.of(stage, topology, plane)[1]
    return stages.prepared(made, experiment.cells, drain_s=experiment.drain_s)


def sandboxes(experiment: Experiment, topology: Topology, plane: str) -> list[tuple[str, str, str]]:
    """Of waypoints, which have to be there from the beginning: `extra_sandboxes` of all that a block becomes."""
    found: dict[str, tuple[str, str, str]] = {}
    for cell in experiment.cells:
        if cell.planes and plane not in cell.planes:
            continue
        for stage in (cell.before, *(event.stage for event in cell.events)):
            for extra in extra_sandboxes(stages.of(stage, topology, plane)[1]):
                found.setdefault(extra[0], extra)
    return list(found.values())
