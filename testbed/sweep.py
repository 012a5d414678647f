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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from testbed import (
    boundaries,
    boundarypairs,
    deploy,
    effects,
    eventtrial,
    interrupts,
    lab,
    planespec,
    points,
    proof,
    standing,
    trial,
    variants,
)
from testbed.attack import tried
from testbed.capacity import Capacity, Goal, Probe, Try, decide
from testbed.deploy import Deployment, extra_sandboxes
from testbed.errors import MachineError, PeerError, TrialError, UsageError
from testbed.fidelity import Gates
from testbed.links.gauge import measure
from testbed.model.experiment import Experiment, LinkReading, Load, Result
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.running import Running
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
    topology = variants.resolve(experiment.topology)
    workloads, services = [w.name for w in topology.workloads], [s.name for s in topology.services]
    here = [cell for cell in experiment.cells if not cell.topology]
    beside = [cell.beside for cell in here if cell.beside is not None]
    targets = [experiment.target, *(one.target for one in (*here, *beside, *experiment.streams) if one.target)]
    clients = [experiment.client, *(one.client for one in (*beside, *experiment.streams))]
    for what, name, known in (
        *(("client", name, workloads) for name in clients),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every step of a run is given: the question, where its answers go, and what it is asked on."""

    experiment: Experiment
    into: Run
    topology: Topology
    placements: Mapping[str, Placement]
    """By plane, as `runtimes`."""
    runtimes: Mapping[str, Runtime]
    links: LinkMaker
    gates: Gates
    say: Progress

    @contextmanager
    def deployed(
        self, plane: str, logs: str, *, keylog: bool = False, extra: Sequence[tuple[str, str, str]] = ()
    ) -> Iterator[Deployment]:
        """A plane on a fresh lab, with sandboxes for what is to come (`extra`); what its programs print goes to `logs`
        in the run's folder."""
        folder = self.into.path / "logs" / logs
        folder.mkdir(parents=True, exist_ok=True)
        placement = self.placements[plane]
        with (
            lab.up(
                self.topology, runtime=self.runtimes[plane], links=self.links, name=lab_name(self.into), logs=folder,
                extra=extra or extra_sandboxes(placement),
            ) as running,
            deploy.deploy(running, placement, keylog=keylog) as deployment,
        ):  # fmt: skip
            yield deployment


def run(
    experiment: Experiment,
    into: Run,
    *,
    topology: Topology,
    planes: Sequence[str],
    runtime: Runtime,
    links: LinkMaker,
    seed: int,
    gates: Gates,
    progress: Progress,
    say: Progress = lambda _line: None,
    rule: StopRule | None = None,
    others: Mapping[str, Runtime] = MappingProxyType({}),
) -> None:
    """Everything that is not yet in the run's folder (so a resumed run goes on where it was).

    `others` are the runtimes of those planes that are not deployed on `runtime`.
    """
    setting = Setting(
        experiment=experiment,
        into=into,
        topology=topology,
        placements={plane: planespec.place(plane, topology) for plane in planes},
        runtimes={plane: others.get(plane, runtime) for plane in planes},
        links=links,
        gates=gates,
        say=say,
    )
    blocks = plan_blocks(experiment, planes, seed)
    done = into.whole_trials()
    failures = 0
    proven = {finding.plane for finding in into.findings()}
    # Proof first: a plane that does not do what it claims is not worth measuring for minutes.
    for plane in planes:
        if plane not in proven:
            interrupts.check()
            progress(f"proof of {plane}")
            _prove(setting, plane)
    if experiment.rate_share is not None:
        setting = replace(setting, experiment=_at_share(setting, progress))
    rule = rule or StopRule(most_rounds=experiment.rounds)
    begun_s, round_number = time.monotonic(), 1
    seen = Running(cell=experiment.cells[0].name if experiment.cells else "")
    seen.add(into.measurements())
    for block in blocks:
        if block.round != round_number:
            say(f"round {round_number} of {experiment.rounds}; {seen.told()}")
            if why := _enough(into, rule, planes, round_number, time.monotonic() - begun_s):
                into.note(stopped={"after_round": round_number, "why": why})
                say(why)
                return
            round_number = block.round
        if not (left := undone(block, done)):
            continue
        interrupts.check()
        progress(f"round {block.round} of {experiment.rounds}, {block.label}")
        failures += 1
        for outcome in _measured(setting, block, left):
            failures = 0 if outcome.requests or not outcome.reasons else failures
            into.append_trial(outcome.measurements, outcome.requests)
            seen.add(outcome.measurements)
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
    return len(proofs) + len(searches) + sum(1 for block in blocks if undone(block, done))


def undone(block: Block, done: Sequence[str]) -> list[str]:
    """Its cells that no stored trial has."""
    return [cell for cell in block.cells if trial.name(block.round, block.number, block.label, cell) not in done]


def lab_name(into: Run) -> str:
    """Unique among the labs of this machine, readable in `lab.list`."""
    return f"{into.info['experiment'][:12]}-{os.getpid()}-{int(time.monotonic() * 1000) % 100000:05d}"


def _measured(setting: Setting, block: Block, cells: Sequence[str]) -> Iterator[trial.Outcome]:
    """One outcome a cell; where the deployment or a cell's load fails, what is left has failed with it."""
    for own, names in points.deployments(setting.experiment, cells):
        here = setting
        if own:
            topology, placement = points.placed(block.plane, own)
            here = replace(setting, topology=topology, placements={block.plane: placement})
        left = list(names)
        try:
            for outcome in _measure(here, block, names):
                left.pop(0)
                yield outcome
        except (PeerError, TrialError) as error:
            blame_a_full_disk(error, setting.into.path, ownership.state_root())
            for cell in left:
                yield trial.failed(
                    str(error), plane=block.label, round_number=block.round, block=block.number, cell=cell
                )


def _eventful(setting: Setting, block: Block, cells: Sequence[str]) -> Iterator[trial.Outcome]:
    """Trials in which something happens, one after another in one lab."""
    experiment, topology = setting.experiment, setting.topology
    first = eventtrial.begins_as(experiment, points.find(experiment, cells[0]), topology, block.plane)
    here = replace(setting, placements={**setting.placements, block.plane: first})
    extra = eventtrial.sandboxes(experiment, topology, block.plane)
    logs = f"r{block.round:02d}-b{block.number:02d}-{block.plane}"
    with here.deployed(block.plane, logs, extra=extra) as deployment:
        running = deployment.lab
        readings = measure(running.running, running.links)
        setting.say(asked_and_measured(readings))
        for number, cell in enumerate(cells):
            outcome = eventtrial.run(
                deployment, experiment, points.find(experiment, cell), plane=block.label, deployed=block.plane,
                round_number=block.round, block=block.number, folder=running.folder / f"load-{number}",
                readings=readings, gates=setting.gates,
            )  # fmt: skip
            readings = list(outcome.links_after)
            yield outcome


def _measure(setting: Setting, block: Block, cells: Sequence[str]) -> Iterator[trial.Outcome]:
    experiment = setting.experiment
    if experiment.streams:
        yield from _eventful(setting, block, cells)
        return
    logs = f"r{block.round:02d}-b{block.number:02d}-{block.plane}"
    keylog = any(cell.traced for cell in experiment.cells)  # for all of them, so that they differ by the capture alone
    with setting.deployed(block.plane, logs, keylog=keylog) as deployment:
        running = deployment.lab
        stands = standing.rows(deployment) if experiment.axis.name else []
        rest: trial.AtRest | None = None
        for number, cell in enumerate(cells):
            point, folder = of_cell(experiment, cell), running.folder / f"load-{number}"
            if points.set_links(deployment, experiment, cell) or (rest is None and not points.is_idle(point, cell)):
                probes = trial.probes(running.links)
                rest = trial.at_rest(
                    deployment, point, lambda n=probes: measure(running.running, running.links, probes=n)
                )
                setting.say(asked_and_measured(rest.readings))
            which = {"plane": block.label, "round_number": block.round, "block": block.number, "seed": block.seed}
            under_load = partial(
                trial.run, deployment, point, **which, folder=folder, rest=rest, gates=setting.gates, cell=cell
            )
            outcome = points.measured(deployment, point, cell, under_load, stands=stands, **which, folder=folder)
            if rest is not None and outcome.links_after:
                rest = replace(rest, readings=outcome.links_after)
            yield outcome


def _at_share(setting: Setting, progress: Progress) -> Experiment:
    """With the same absolute rate for every plane: a share of what the slowest one holds. Kept in run.json, so that a
    resumed run does not search again. Raises TrialError where a plane holds no rate at all."""
    experiment, into, say = setting.experiment, setting.into, setting.say
    known: dict[str, float] = dict(into.info.get("capacity_rps", {}))
    for plane in setting.placements:
        if plane in known:
            continue
        interrupts.check()
        progress(f"capacity of {plane}")
        found, probes = _search(setting, plane)
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


def _search(setting: Setting, plane: str) -> tuple[Capacity, list[Probe]]:
    """On one deployment; each probe is a short trial judged by the same gates."""
    experiment = setting.experiment
    goal = Goal(p99_ms=experiment.hold_p99_ms, begin_rps=experiment.load.rate_rps, budget_s=SEARCH_BUDGET_S)
    goal.check()
    probes: list[Probe] = []
    with setting.deployed(plane, f"capacity-{plane}") as deployment:
        begun_s = time.monotonic()
        while isinstance(step := decide(goal, probes, elapsed_s=time.monotonic() - begun_s), Try):
            interrupts.check()
            load = replace(experiment.load, kind="open", rate_rps=step.rate_rps, warmup_s=0.5, window_s=PROBE_S)
            try:
                tried = trial.run(
                    deployment,
                    replace(experiment, load=load),
                    plane=plane,
                    round_number=0,
                    block=0,
                    seed=len(probes),
                    folder=deployment.lab.folder / f"probe-{len(probes)}",
                    gates=setting.gates,
                )
            except PeerError as error:
                probes.append(Probe(rate_rps=step.rate_rps, p99_ms=NO_ANSWER_MS, reasons=(str(error),)))
                continue
            p99_ms = next(m.value for m in tried.measurements if m.metric == "latency_p99")
            p99_ms = NO_ANSWER_MS if math.isnan(p99_ms) else p99_ms
            probes.append(Probe(rate_rps=step.rate_rps, p99_ms=p99_ms, reasons=tried.reasons))
    return step, probes


def _prove(setting: Setting, plane: str) -> None:
    experiment, into = setting.experiment, setting.into
    with setting.deployed(plane, f"proof-{plane}", keylog=True) as deployment:
        try:
            findings = proof.prove(
                deployment, client=experiment.client, target=experiment.target, captures=into.path / "captures"
            )
        except (PeerError, TrialError) as error:
            blame_a_full_disk(error, into.path, ownership.state_root())
            raise type(error)(f"proof of {plane}: {error}") from error
        findings += boundaries.try_all(deployment, client=experiment.client, packets=findings)
    if experiment.attackers:
        app, neighbour = experiment.attackers
        findings += tried.try_all(
            setting.placements[plane], setting.topology, runtime=setting.runtimes[plane], links=setting.links,
            name=lab_name(into), logs=into.path / "logs" / f"attack-{plane}", app=app, neighbour=neighbour,
            say=setting.say,
        )  # fmt: skip
    if experiment.pairs:
        findings += boundarypairs.try_all(
            plane, runtime=setting.runtimes[plane], links=setting.links, name=lab_name(into),
            logs=into.path / "logs" / f"pairs-{plane}", table=into.path / boundarypairs.FILE,
            sets=[one for one in boundarypairs.SETS if one.name in experiment.pairs], say=setting.say,
        )  # fmt: skip
    into.append_findings(findings)
    for finding in findings:
        if finding.result is Result.BROKEN:
            setting.say(f"BROKEN under {finding.plane}: {finding.statement} ({finding.segment}: {finding.value})")


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
