"""An experiment run: rounds of freshly deployed planes in shuffled order, then proof and boundaries, all into a run's
folder.

In each round the planes come in an order drawn from the run's seed, and each is deployed anew on a fresh lab, so that
drift of the
machine and the luck of one deployment show as spread between rounds and not as an effect. The A/A pair is plane `none`
under two names: what the table says between them is what no difference looks like on this machine.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from testbed import boundaries, deploy, interrupts, lab, planespec, proof, topofile, trial
from testbed.deploy import extra_sandboxes
from testbed.errors import MachineError, PeerError, TrialError, UsageError
from testbed.links.gauge import measure
from testbed.model.experiment import Experiment, LinkReading, Result
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.runtime import ownership
from testbed.seams import LinkMaker, Progress, Runtime
from testbed.store import Run

AA_NAME = "none (A/A)"
FAILURES_IN_A_ROW = 4
"""Trials without any record, one after the other: by then it is the machine or the lab, not chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One deployment of one plane in one round."""

    round: int
    number: int
    plane: str
    label: str
    seed: int


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
            blocks.append(Block(round=number, number=len(blocks) + 1, plane=plane, label=label, seed=load_seed))
    return blocks


def resolve(experiment: Experiment) -> Topology:
    """The experiment's topology with its links overridden."""
    topology = topofile.load(topofile.find(experiment.topology))
    workloads, services = [w.name for w in topology.workloads], [s.name for s in topology.services]
    for what, name, known in (
        ("client", experiment.client, workloads),
        ("target", experiment.target.partition(":")[0], services),
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
) -> None:
    """Everything that is not yet in the run's folder (so a resumed run goes on where it was)."""
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
            _prove(experiment, into, placements[plane], topology, runtime, links, say)
    for block in blocks:
        name = trial.name(block.round, block.number, block.label)
        if name in done:
            continue
        interrupts.check()
        progress(f"round {block.round} of {experiment.rounds}, {block.label}")
        try:
            outcome = _measure(experiment, into, block, placements[block.plane], topology, runtime, links, gates, say)
            failures = 0
        except (PeerError, TrialError) as error:
            blame_a_full_disk(error, into.path, ownership.state_root())
            failures += 1
            outcome = trial.failed(str(error), plane=block.label, round_number=block.round, block=block.number)
        into.append_trial(outcome.measurements, outcome.requests)
        if outcome.reasons:
            say(f"{name} does not count: {'; '.join(outcome.reasons)}")
        if failures == FAILURES_IN_A_ROW:
            raise TrialError(
                f"{failures} trials in a row gave nothing, the last because of: {outcome.reasons[0]}; "
                f"logs: {into.path / 'logs'}"
            )


def lab_name(into: Run) -> str:
    """Unique among the labs of this machine, readable in `lab.list`."""
    return f"{into.info['experiment'][:12]}-{os.getpid()}-{int(time.monotonic() * 1000) % 100000:05d}"


def _measure(
    experiment: Experiment,
    into: Run,
    block: Block,
    placement: Placement,
    topology: Topology,
    runtime: Runtime,
    links: LinkMaker,
    gates: trial.Gates,
    say: Progress,
) -> trial.Outcome:
    logs = into.path / "logs" / f"r{block.round:02d}-b{block.number:02d}-{block.plane}"
    logs.mkdir(parents=True, exist_ok=True)
    extra = extra_sandboxes(placement)
    with (
        lab.up(topology, runtime=runtime, links=links, name=lab_name(into), logs=logs, extra=extra) as running,
        deploy.deploy(running, placement) as deployment,
    ):
        readings: list[LinkReading] = measure(running.running, running.links)
        say(asked_and_measured(readings))
        return trial.run(
            deployment,
            experiment,
            plane=block.label,
            round_number=block.round,
            block=block.number,
            seed=block.seed,
            folder=running.folder / "load",
            readings=readings,
            gates=gates,
        )


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


def asked_and_measured(readings: Sequence[LinkReading]) -> str:
    """One line before each trial, so that nobody takes what was asked for what was."""
    return "; ".join(
        f"link {r.link} by {r.backend}: RTT {r.rtt_p50_ms:.3f} ms for {r.asked_rtt_ms:g} asked, "
        f"loss {r.loss:.3f} for {r.asked_loss:.3f}{'' if r.within_tolerance else ' OFF'}"
        for r in readings
    )


def with_overrides(experiment: Experiment, *, rounds: int | None = None, planes: Sequence[str] = ()) -> Experiment:
    if rounds is not None:
        experiment = replace(experiment, rounds=rounds)
    if planes:
        experiment = replace(experiment, planes=tuple(planes))
    return experiment
