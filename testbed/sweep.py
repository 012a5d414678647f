"""An experiment run: rounds of freshly deployed planes in shuffled order, then proof and boundaries, all into a run's
folder.

In each round the planes come in an order drawn from the run's seed, and each is deployed anew on a fresh lab, so that
drift of the machine and the luck of one deployment show as spread between rounds and not as an effect. The A/A pair is
plane `none` under two names: what the table says between them is what no difference looks like on this machine. A run
may end before its last round by a rule that was fixed before its first (`stopping`).
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from testbed import boundaries, deploy, effects, eventtrial, interrupts, lab, planespec, proof, topofile, trial
from testbed.capacity import Capacity, Goal, Probe, Try, decide
from testbed.deploy import extra_sandboxes
from testbed.errors import MachineError, PeerError, TrialError, UsageError
from testbed.links.gauge import measure
from testbed.model.experiment import Experiment, LinkReading, Load, Result
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.runtime import ownership
from testbed.seams import LinkMaker, Progress, Runtime
from testbed.stopping import StopRule
from testbed.store import Run, as_json

AA_NAME = "none (A/A)"
PROBE_S = 2.0
NO_ANSWER_MS = 1e9
"""Latency of a probe that no request survived; JSON has no infinity."""
SEARCH_BUDGET_S = 75.0
"""Of the search for one plane's capacity: about 20 probes."""
FAILURES_IN_A_ROW = 4
"""Deployments without any record, one after the other: by then it is the machine or the lab, not chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One deployment of one plane in one round."""

    round: int
    number: int
    plane: str
    label: str
    seed: int
    cells: tuple[str, ...] = ("",)
    """In the order in which they are measured."""


def plan_blocks(experiment: Experiment, planes: Sequence[str], seed: int) -> list[Block]:
    """Pure: the whole order of the run from its seed. Both sides of a round send the same schedule (same load seed)."""
    draw = random.Random(seed)
    blocks: list[Block] = []
    for number in range(1, experiment.rounds + 1):
        labelled = [(plane, plane) for plane in planes]
        if experiment.aa_pair and "none" in planes:
            labelled.append(("none", AA_NAME))
        draw.shuffle(labelled)
        load_seed = draw.randrange(2**31)
        for plane, label in labelled:
            cells = [cell.name for cell in experiment.cells if not cell.planes or plane in cell.planes]
            draw.shuffle(cells)
            blocks.append(
                Block(
                    round=number,
                    number=len(blocks) + 1,
                    plane=plane,
                    label=label,
                    seed=load_seed,
                    cells=tuple(cells) or ("",),
                )
            )
    return blocks


def resolve(experiment: Experiment) -> Topology:
    """The experiment's topology with its links overridden."""
    topology = topofile.load(topofile.find(experiment.topology))
    workloads, services = [w.name for w in topology.workloads], [s.name for s in topology.services]
    targets = [experiment.target, *(cell.target for cell in experiment.cells if cell.target)]
    targets += [stream.target for stream in experiment.streams]
    for what, name, known in (
        ("client", experiment.client, workloads),
        *(("client", stream.client, workloads) for stream in experiment.streams),
        *(("target", target.partition(":")[0], services) for target in targets),
    ):
        if name not in known:
            raise UsageError(
                f"experiment {experiment.name}: topology {topology.name} has no {what} {name!r}; "
                f"known: {', '.join(known)}"
            )
    for a, b, fields in experiment.links:
        impairment = Impairment(**fields)
        topology = topology.with_link(a, b, a_to_b=impairment, b_to_a=impairment)
    return topology


def run(
    experiment: Experiment,
    into: Run,
    *,
    topology: Topology,
    planes: Sequence[str],
    runtime: Runtime,
    links: LinkMaker,
    seed: int,
    gates: trial.Gates,
    progress: Progress,
    say: Progress = lambda _line: None,
    rule: StopRule | None = None,
    others: Mapping[str, Runtime] = MappingProxyType({}),
) -> None:
    """Everything that is not yet in the run's folder (so a resumed run goes on where it was).

    `others` are the runtimes of those planes that are not deployed on `runtime`.
    """
    runtimes = {plane: others.get(plane, runtime) for plane in planes}
    placements = {plane: planespec.place(plane, topology) for plane in planes}
    blocks = plan_blocks(experiment, planes, seed)
    done = into.whole_trials()
    failures = 0
    proven = {finding.plane for finding in into.findings()}
    # Proof first: a plane that does not do what it claims is not worth measuring for minutes.
    for plane in planes:
        if plane not in proven:
            interrupts.check()
            progress(f"proof of {plane}")
            _prove(experiment, into, placements[plane], topology, runtimes[plane], links, say)
    if experiment.rate_share is not None:
        experiment = _at_share(experiment, into, placements, topology, runtimes, links, gates, progress, say)
    rule = rule or StopRule(most_rounds=experiment.rounds)
    begun_s, round_number = time.monotonic(), 1
    for block in blocks:
        if block.round != round_number:
            if why := _enough(into, rule, planes, round_number, time.monotonic() - begun_s):
                into.note(stopped={"after_round": round_number, "why": why})
                say(why)
                return
            round_number = block.round
        if not (left := _undone(block, done)):
            continue
        interrupts.check()
        progress(f"round {block.round} of {experiment.rounds}, {block.label}")
        failures += 1
        deployed = (topology, runtimes[block.plane], links)
        for outcome in _measured(experiment, into, block, left, placements, *deployed, gates, say):
            failures = 0 if outcome.requests else failures
            into.append_trial(outcome.measurements, outcome.requests)
            if outcome.reasons:
                say(f"{outcome.measurements[0].trial} does not count: {'; '.join(outcome.reasons)}")
        if failures == FAILURES_IN_A_ROW:
            raise TrialError(
                f"{failures} deployments in a row gave nothing, the last because of: {outcome.reasons[0]}; "
                f"logs: {into.path / 'logs'}"
            )


def _enough(into: Run, rule: StopRule, planes: Sequence[str], done: int, elapsed_s: float) -> str:
    """Why no further round is begun; empty when one is. A resumed run has its budget anew, but no look: at those that
    were it sees what was seen then."""
    looking = rule.until_width is not None and done in rule.looks
    seen = [m for m in into.measurements() if m.round <= done] if looking else []
    ratios = effects.watched(seen, planes, rule) if looking else {}
    return rule.after_round(done, ratios, elapsed_s=elapsed_s)


def steps_left(experiment: Experiment, into: Run, blocks: Sequence[Block]) -> int:
    """How often `run` will call `progress`, unless a rule ends it early."""
    done = into.whole_trials()
    proofs = set(experiment.planes) - {finding.plane for finding in into.findings()}
    searches = (
        set() if experiment.rate_share is None else set(experiment.planes) - set(into.info.get("capacity_rps", ()))
    )
    return len(proofs) + len(searches) + sum(1 for block in blocks if _undone(block, done))


def _undone(block: Block, done: Sequence[str]) -> list[str]:
    """Its cells that no stored trial has."""
    return [cell for cell in block.cells if trial.name(block.round, block.number, block.label, cell) not in done]


def lab_name(into: Run) -> str:
    """Unique among the labs of this machine, readable in `lab.list`."""
    return f"{into.info['experiment'][:12]}-{os.getpid()}-{int(time.monotonic() * 1000) % 100000:05d}"


def _measured(
    experiment: Experiment,
    into: Run,
    block: Block,
    cells: Sequence[str],
    placements: Mapping[str, Placement],
    topology: Topology,
    runtime: Runtime,
    links: LinkMaker,
    gates: trial.Gates,
    say: Progress,
) -> Iterator[trial.Outcome]:
    """One outcome a cell; where the deployment or a cell's load fails, what is left has failed with it."""
    left = list(cells)
    try:
        for outcome in _measure(
            experiment, into, block, cells, placements[block.plane], topology, runtime, links, gates, say
        ):
            left.pop(0)
            yield outcome
    except (PeerError, TrialError) as error:
        blame_a_full_disk(error, into.path, ownership.state_root())
        for cell in left:
            yield trial.failed(str(error), plane=block.label, round_number=block.round, block=block.number, cell=cell)


def _measure(
    experiment: Experiment,
    into: Run,
    block: Block,
    cells: Sequence[str],
    placement: Placement,
    topology: Topology,
    runtime: Runtime,
    links: LinkMaker,
    gates: trial.Gates,
    say: Progress,
) -> Iterator[trial.Outcome]:
    logs = into.path / "logs" / f"r{block.round:02d}-b{block.number:02d}-{block.plane}"
    logs.mkdir(parents=True, exist_ok=True)
    of = {cell.name: cell for cell in experiment.cells}
    if experiment.streams:
        extra = eventtrial.sandboxes(experiment, topology, block.plane)
        placement = eventtrial.begins_as(experiment, of[cells[0]], topology, block.plane)
    else:
        extra = extra_sandboxes(placement)
    with (
        lab.up(topology, runtime=runtime, links=links, name=lab_name(into), logs=logs, extra=extra) as running,
        deploy.deploy(running, placement) as deployment,
    ):
        readings: list[LinkReading] = measure(running.running, running.links)
        say(asked_and_measured(readings))
        for number, cell in enumerate(cells):
            if experiment.streams:
                yield eventtrial.run(
                    deployment,
                    experiment,
                    of[cell],
                    plane=block.label,
                    deployed=block.plane,
                    round_number=block.round,
                    block=block.number,
                    folder=running.folder / f"load-{number}",
                    readings=readings,
                )
                continue
            yield trial.run(
                deployment,
                of_cell(experiment, cell),
                plane=block.label,
                round_number=block.round,
                block=block.number,
                seed=block.seed,
                folder=running.folder / f"load-{number}",
                readings=readings,
                gates=gates,
                cell=cell,
            )


def _at_share(
    experiment: Experiment,
    into: Run,
    placements: Mapping[str, Placement],
    topology: Topology,
    runtimes: Mapping[str, Runtime],
    links: LinkMaker,
    gates: trial.Gates,
    progress: Progress,
    say: Progress,
) -> Experiment:
    """With the same absolute rate for every plane: a share of what the slowest one holds. Kept in run.json, so that a
    resumed run does not search again. Raises TrialError where a plane holds no rate at all."""
    known: dict[str, float] = dict(into.info.get("capacity_rps", {}))
    for plane, placement in placements.items():
        if plane in known:
            continue
        interrupts.check()
        progress(f"capacity of {plane}")
        found, probes = _search(experiment, into, placement, topology, runtimes[plane], links, gates)
        say(f"capacity of {plane}: {found.rate_rps:g}/s after {len(probes)} probes; {found.why}")
        known[plane] = found.rate_rps
        searched = {**into.info.get("capacity_probes", {}), plane: probes}
        into.note(capacity_rps=known, capacity_probes={name: as_json(tried) for name, tried in searched.items()})
    slowest = min(known, key=lambda plane: known[plane])
    if not known[slowest]:
        raise TrialError(f"{slowest} holds no rate with a p99 of {experiment.hold_p99_ms:g} ms, so there is no share")
    assert experiment.rate_share is not None
    rate_rps = experiment.rate_share * known[slowest]
    into.note(rate_rps=rate_rps)
    say(f"every plane gets {rate_rps:.4g}/s: {experiment.rate_share:.0%} of what {slowest} holds")
    return at_rate(experiment, rate_rps)


def at_rate(experiment: Experiment, rate_rps: float) -> Experiment:
    """Its loads sped up or slowed down together, so that `load` has this rate."""
    factor = rate_rps / experiment.load.rate_rps

    def scaled(load: Load) -> Load:
        return replace(load, rate_rps=load.rate_rps * factor)

    cells = tuple(replace(cell, load=scaled(cell.load)) for cell in experiment.cells)
    return replace(experiment, load=scaled(experiment.load), cells=cells)


def _search(
    experiment: Experiment,
    into: Run,
    placement: Placement,
    topology: Topology,
    runtime: Runtime,
    links: LinkMaker,
    gates: trial.Gates,
) -> tuple[Capacity, list[Probe]]:
    """On one deployment; each probe is a short trial judged by the same gates."""
    goal = Goal(p99_ms=experiment.hold_p99_ms, begin_rps=experiment.load.rate_rps, budget_s=SEARCH_BUDGET_S)
    goal.check()
    logs = into.path / "logs" / f"capacity-{placement.plane}"
    logs.mkdir(parents=True, exist_ok=True)
    extra = extra_sandboxes(placement)
    probes: list[Probe] = []
    with (
        lab.up(topology, runtime=runtime, links=links, name=lab_name(into), logs=logs, extra=extra) as running,
        deploy.deploy(running, placement) as deployment,
    ):
        begun_s = time.monotonic()
        while isinstance(step := decide(goal, probes, elapsed_s=time.monotonic() - begun_s), Try):
            interrupts.check()
            load = replace(experiment.load, kind="open", rate_rps=step.rate_rps, warmup_s=0.5, window_s=PROBE_S)
            try:
                tried = trial.run(
                    deployment,
                    replace(experiment, load=load),
                    plane=placement.plane,
                    round_number=0,
                    block=0,
                    seed=len(probes),
                    folder=running.folder / f"probe-{len(probes)}",
                    readings=(),
                    gates=gates,
                )
            except PeerError as error:
                probes.append(Probe(rate_rps=step.rate_rps, p99_ms=NO_ANSWER_MS, reasons=(str(error),)))
                continue
            p99_ms = next(m.value for m in tried.measurements if m.metric == "latency_p99")
            p99_ms = NO_ANSWER_MS if math.isnan(p99_ms) else p99_ms
            probes.append(Probe(rate_rps=step.rate_rps, p99_ms=p99_ms, reasons=tried.reasons))
    return step, probes


def _prove(
    experiment: Experiment,
    into: Run,
    placement: Placement,
    topology: Topology,
    runtime: Runtime,
    links: LinkMaker,
    say: Progress,
) -> None:
    logs = into.path / "logs" / f"proof-{placement.plane}"
    logs.mkdir(parents=True, exist_ok=True)
    extra = extra_sandboxes(placement)
    with (
        lab.up(topology, runtime=runtime, links=links, name=lab_name(into), logs=logs, extra=extra) as running,
        deploy.deploy(running, placement, keylog=True) as deployment,
    ):
        try:
            findings = proof.prove(
                deployment, client=experiment.client, target=experiment.target, captures=into.path / "captures"
            )
        except (PeerError, TrialError) as error:
            blame_a_full_disk(error, into.path, ownership.state_root())
            raise type(error)(f"proof of {placement.plane}: {error}") from error
        findings += boundaries.try_all(deployment, client=experiment.client, packets=findings)
    into.append_findings(findings)
    for finding in findings:
        if finding.result is Result.BROKEN:
            say(f"BROKEN under {finding.plane}: {finding.statement} ({finding.segment}: {finding.value})")


LEAST_FREE_BYTES = 64 * 1024
"""Below this a disk counts as full: programs of the lab then fail in ways of their own."""


def blame_a_full_disk(error: Exception, *folders: Path) -> None:
    """Raises MachineError in the stead of `error` where a program failed because nothing can be written any more."""
    for folder in folders:
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize < LEAST_FREE_BYTES or (found.f_files and not found.f_favail):
            raise MachineError(
                f"{folder}: the disk is full, so {str(error).splitlines()[0]}; free some space, then resume the run"
            ) from error


def of_cell(experiment: Experiment, name: str) -> Experiment:
    """The experiment as it is at one point of its sweep."""
    for cell in experiment.cells:
        if cell.name == name:
            return replace(experiment, load=cell.load, target=cell.target or experiment.target)
    return experiment


def asked_and_measured(readings: Sequence[LinkReading]) -> str:
    """One line before each trial, so that nobody takes what was asked for what was."""
    return "; ".join(
        f"link {r.link} by {r.backend}: RTT {r.rtt_p50_ms:.3f} ms for {r.asked_rtt_ms:g} asked, "
        f"loss {r.loss:.3f} for {r.asked_loss:.3f}{'' if r.within_tolerance else ' OFF'}"
        for r in readings
    )


def with_overrides(
    experiment: Experiment, *, rounds: int | None = None, planes: Sequence[str] = (), share: float | None = None
) -> Experiment:
    if share is not None:
        if not 0 < share <= 1:
            raise UsageError(f"a share of {share:.0%} of the capacity cannot be held; above 0 and at most 100 %")
        experiment = replace(experiment, rate_share=share)
    if rounds is not None:
        experiment = replace(experiment, rounds=rounds)
    if planes:
        experiment = replace(experiment, planes=tuple(planes))
    return experiment
