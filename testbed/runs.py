"""The experiment verbs: a run from its plan to its report."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from testbed import report, sweep, table, typeset
from testbed.errors import UsageError
from testbed.links.probe import choose
from testbed.machine import describe
from testbed.model.experiment import Experiment
from testbed.program import CHECKOUT
from testbed.progress import Progress
from testbed.registry import load
from testbed.store import Plan, Run
from testbed.trial import Gates


def run(
    name: str,
    *,
    planes: Sequence[str] = (),
    rounds: int | None = None,
    runtime: str = "auto",
    link: str = "auto",
    resume: str = "",
    seed: int | None = None,
    dry_run: bool = False,
) -> int:
    experiment: Experiment = load("experiment", name)
    if rounds == 0:
        raise UsageError("0 rounds measure nothing; the least is 1")
    experiment = sweep.with_overrides(experiment, rounds=rounds, planes=planes)
    for plane in experiment.planes:
        load("plane", plane)  # an unknown name speaks before anything is built
    topology = sweep.resolve(experiment)
    runtime_name = "netns" if runtime == "auto" else runtime
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    if resume:
        planned = Run.open(Path(resume)).info
        seed = planned["seed"]
        stored = planned["plan"]["experiment"]
        experiment = sweep.with_overrides(experiment, rounds=stored["rounds"], planes=stored["planes"])
    blocks = sweep.plan_blocks(experiment, experiment.planes, seed)
    if dry_run:
        print(f"{experiment.name}: {experiment.question}\ntopology {topology.name}, seed {seed}, {len(blocks)} blocks:")
        for block in blocks:
            print(f"  round {block.round}  {block.label}")
        return 0
    gates = Gates()
    links = choose(link)
    plan = Plan(
        topology=topology,
        seed=seed,
        block_order=tuple(
            tuple(block.label for block in blocks if block.round == number)
            for number in range(1, experiment.rounds + 1)
        ),
        runtime=runtime_name,
        link_kind=links.name,
        planes={plane: {"implementation": "planes (Python)", "version": _commit()} for plane in experiment.planes},
        gate=asdict(gates),
        machine=describe(),
        commit=_commit(),
        lock_sha256=hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest(),
        command=f"./inv experiment.run {name} --plane {','.join(experiment.planes)} "
        f"--trials {experiment.rounds} --seed {seed}",
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store = (
        Run.resume(Path(resume), now=now) if resume else Run.create(sweep.results_root(), experiment, plan, started=now)
    )
    with store as into, _steps(total=len(blocks) + len(experiment.planes)) as progress:
        try:
            sweep.run(
                experiment,
                into,
                topology=topology,
                planes=experiment.planes,
                runtime=load("runtime", runtime_name)(),
                links=links,
                seed=seed,
                gates=gates,
                progress=progress,
            )
        except BaseException:
            print(f"\nwhat was measured so far is in {into.path}; go on with --resume {into.path}", file=sys.stderr)
            raise
        into.finish(ended=datetime.now(UTC).isoformat(timespec="seconds"))
    page = report.build(store.path)
    code = show(store.path)
    print(f"\nreport: {page}")
    return code


def show(path: Path) -> int:
    """The table of a run on stdout. 3 when trials were left out, 4 when a plane has no valid trial."""
    stored = Run.open(path)
    measurements = stored.measurements()
    made = table.build(table.summarise(measurements), stored.findings())
    print(typeset.as_text(made, colour=typeset.wants_colour(sys.stdout)))
    planes = {m.plane for m in measurements}
    if planes - {m.plane for m in measurements if m.valid}:
        return 4
    return 3 if any(not m.valid for m in measurements) else 0


@contextlib.contextmanager
def _steps(total: int) -> Iterator[Callable[[str], None]]:
    """`seams.Progress` over `progress.Progress`: each call ends the step before it and begins one."""
    shown = Progress(sys.stderr, total=total, noun="step", now=time.monotonic())
    begun = False

    def begin(what: str) -> None:
        nonlocal begun
        now = time.monotonic()
        if begun:
            shown.step(now)
        begun = True
        shown.start(what, now)

    try:
        yield begin
        shown.step(time.monotonic())
    finally:
        shown.close(time.monotonic())


def _commit() -> str:
    """`abc1234`, with `+` when the checkout differs from it; empty outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=CHECKOUT, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""
