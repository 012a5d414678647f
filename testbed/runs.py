"""The experiment verbs: a run from its plan to its report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from testbed import (
    axisclaims,
    cells,
    claims,
    deploy,
    honoured,
    planespec,
    planned,
    report,
    runnames,
    sweep,
    table,
    typeset,
)
from testbed.claimlist import CLAIMS, SOURCES, said_by
from testbed.errors import MachineError, TestbedError, UsageError
from testbed.fidelity import PREFIX, Gates, Level
from testbed.links.probe import choose
from testbed.machine import describe
from testbed.model.experiment import Experiment, Finding, Measurement, Result
from testbed.model.topology import Topology
from testbed.program import CHECKOUT
from testbed.progress import Progress, duration
from testbed.registry import load, names
from testbed.runtime import ownership
from testbed.stopping import StopRule
from testbed.store import Plan, Run, as_json, translated
from testbed.store import runs as stored_runs


def run(
    name: str,
    *,
    planes: Sequence[str] = (),
    rounds: int | None = None,
    runtime: str = "auto",
    link: str = "auto",
    resume: str = "",
    seed: int | None = None,
    until_width: float | None = None,
    budget_s: float | None = None,
    share: float | None = None,
    dry_run: bool = False,
) -> int:
    experiment: Experiment = load("experiment", name)
    if rounds is not None and rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing; the least is 1")
    if len(set(planes)) < len(planes):
        raise UsageError(f"--plane {','.join(planes)} names a plane twice")
    experiment = sweep.with_overrides(experiment, rounds=rounds, planes=planes, share=share)
    runtime_name = "netns" if runtime == "auto" else runtime
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    if resume:
        resume = str(runnames.find(resume))
        planned = Run.open(Path(resume)).info
        if planned.get("kept"):
            raise UsageError(f"{resume} came with the code and is no run to go on with; start one of your own")
        stored = planned["plan"]["experiment"]
        shared = stored.get("rate_share")
        experiment = sweep.with_overrides(experiment, rounds=stored["rounds"], planes=stored["planes"], share=shared)
        seed, runtime_name, link = planned["seed"], planned["runtime"], planned["link_kind"]
        until_width = planned.get("stop_rule", {}).get("until_width")  # a rule changed on the way is none
    rule = StopRule(most_rounds=experiment.rounds, until_width=until_width, budget_s=budget_s)
    rule.check()
    made_runtime = load("runtime", runtime_name)()
    own = {asked: load("runtime", asked)() for asked in set(map(planespec.runtime_of, experiment.planes)) - {""}}
    topology = sweep.resolve(experiment)
    left_out = not_placeable(experiment.planes, topology, by_one_user=runtime_name != "docker" and not dry_run)
    if left_out and (planes or resume or len(left_out) == len(experiment.planes)):
        raise MachineError("\n".join(left_out.values()))
    for plane, why in left_out.items():
        print(f"LEFT OUT: {plane}: {why}", file=sys.stderr)
    experiment = sweep.with_overrides(experiment, planes=[p for p in experiment.planes if p not in left_out])
    if resume:
        must_be_the_same(Path(resume), planned, experiment, topology)
    blocks = sweep.plan_blocks(experiment, experiment.planes, seed)
    undone = {plane: honoured.told(topology.policies, plane) for plane in experiment.planes}
    for plane, lines in undone.items():
        for line in lines:
            print(f"not honoured under {plane}: {line}", file=sys.stderr)
    if dry_run:
        print(f"{experiment.name}: {experiment.question}\ntopology {topology.name}, seed {seed}, {len(blocks)} blocks:")
        for block in blocks:
            print(f"  round {block.round}  {block.label}")
        print(_expected(experiment, blocks, resume))
        return 0
    gates = Gates()
    links = choose(link)
    ownership.state_root()  # what cannot be written to speaks now
    if lacks := [lack for one in (made_runtime, *own.values()) for lack in one.check()] + links.check():
        raise MachineError("\n".join(lacks))  # before a folder is made that would stay empty
    about = {key: text for one in (made_runtime, *own.values()) for key, text in one.about().items()}
    plan = Plan(
        topology=topology,
        seed=seed,
        block_order=tuple(
            tuple(block.label for block in blocks if block.round == number)
            for number in range(1, experiment.rounds + 1)
        ),
        runtime=runtime_name,
        link_kind=links.name,
        planes={
            plane: {"implementation": "planes (Python)", "version": _commit(), "not honoured": "; ".join(lines) or "–"}
            for plane, lines in undone.items()
        },
        proxies={plane: _proxies(plane, topology) for plane in experiment.planes},
        stop_rule=asdict(rule),
        gate=asdict(gates),
        machine={**describe(), **about, "weaker": "; ".join(made_runtime.weaker())},
        commit=_commit(),
        lock_sha256=hashlib.sha256((CHECKOUT / "requirements.lock").read_bytes()).hexdigest(),
        command=f"./inv experiment.run {name} --plane {','.join(experiment.planes)} "
        f"--trials {experiment.rounds} --seed {seed}"
        + ("" if runtime_name == "netns" else f" --runtime {runtime_name}")
        + (f" --until-width {until_width * 100:g}" if until_width else "")
        + (f" --share {share * 100:g}" if share else "")
        + (f" --budget-min {budget_s / 60:g}" if budget_s else ""),
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store = (
        Run.resume(Path(resume), now=now)
        if resume
        else Run.create(runnames.results_root(), experiment, plan, started=now)
    )
    left = sweep.steps_left(experiment, store, blocks)
    with store as into, _steps(total=left, at_least_s=experiment.block_s) as (progress, say):
        if left_out:
            into.note(left_out=left_out)
        for weakness in made_runtime.weaker():
            say(f"warning: {weakness}")
        try:
            sweep.run(
                experiment,
                into,
                topology=topology,
                planes=experiment.planes,
                runtime=made_runtime,
                links=links,
                seed=seed,
                gates=gates,
                progress=progress,
                say=say,
                rule=rule,
                others={plane: own[planespec.runtime_of(plane)] for plane in experiment.planes if "@" in plane},
            )
        except BaseException:
            say(
                f"what was measured so far is in {into.path}; "
                f"go on with ./inv experiment.run {name} --resume {into.path}"
            )
            raise
        into.finish(ended=datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        with translated(store.path, "write the report", mend=f"then ./inv report.build {store.path}"):
            page = report.build(store.path)
        code = show(store.path)
    except BaseException:
        print(f"all was measured; ./inv report.build {store.path} writes the report", file=sys.stderr)
        raise
    print(f"\nreport: {page}")
    return code


def not_placeable(planes: Sequence[str], topology: Topology, *, by_one_user: bool) -> dict[str, str]:
    """Of these planes those that this machine or user cannot have, with why and the mend.

    `by_one_user`: labs may have to do with one user id (`deploy.refuse_shared_id`). Raises UsageError for a plane or
    option that is not known: before anything is built.
    """
    found = {}
    for plane in planes:
        try:
            placement = planespec.place(plane, topology)
            if by_one_user:
                deploy.refuse_shared_id(placement)
        except MachineError as error:
            found[plane] = str(error)
    return found


def _expected(experiment: Experiment, blocks: Sequence[sweep.Block], resume: str) -> str:
    """How long it will take, and how much of a resumed run is there."""
    stored = Run.open(Path(resume)) if resume else None
    done = stored.whole_trials() if stored else ()
    left = [cells for block in blocks if (cells := sweep.undone(block, done))]
    proven = {finding.plane for finding in stored.findings()} if stored else set()
    about_s = planned.about_s(experiment, left, len(set(experiment.planes) - proven))
    there = f"{len(done)} trials are stored, {sum(map(len, left))} are to be measured; " if stored else ""
    spent = f"about {duration(about_s)}, of which {duration(planned.loaded_s(experiment, left))} under load"
    return f"{there}{spent}" + ("; the search for a rate comes on top" if experiment.rate_share else "")


def _proxies(plane: str, topology: Topology) -> list[dict[str, Any]]:
    """What the report draws: where a plane's proxies stand."""
    return [
        {"name": p.name, "role": p.role, "node": p.node, "sandbox": p.sandbox, "serves": list(p.serves)}
        for p in planespec.place(plane, topology).proxies
    ]


def must_be_the_same(path: Path, planned: Mapping[str, Any], experiment: Experiment, topology: Topology) -> None:
    """Rows of two different questions must not meet in one table. Raises UsageError naming what differs."""
    stored, now = planned["plan"]["experiment"], as_json(experiment)
    if planned["experiment"] != experiment.name:
        raise UsageError(f"{path} is a run of {planned['experiment']}, not of {experiment.name}")
    differing = [key for key in now if stored.get(key) != now[key] and key not in ("question", "claims")]
    differing += ["topology file"] if planned["plan"]["topology"] != as_json(topology) else []
    if differing:
        raise UsageError(f"{path} was made with another {', '.join(differing)}; start a new run")


def _summary(stored: Run, measurements: Sequence[Measurement]) -> table.Summary:
    return table.summarise(measurements, order=stored.info["plan"]["experiment"]["planes"])


def show(path: Path, *, as_json_text: bool = False) -> int:
    """The table of a run on stdout, and the code that a script may rely on (see `verdict`)."""
    stored = Run.open(path)
    measurements, findings = stored.measurements(), stored.findings()
    code = verdict(measurements, findings)
    if as_json_text:
        named = stored.info["plan"]["experiment"].get("claims", ())
        judged = axisclaims.judge(named, stored.info, measurements, findings)
        rows = {
            "run": stored.info,
            "exit_code": code,
            "measurements": measurements,
            "findings": findings,
            "claims": judged,
        }
        print(
            json.dumps(
                {key: [as_json(x) for x in v] if isinstance(v, list) else v for key, v in rows.items()}, indent=1
            )
        )
        return code
    summary = _summary(stored, measurements)
    named = stored.info["plan"]["experiment"].get("claims", ())
    built = cells.table_of(stored.info, measurements, findings)
    if swept := cells.names(stored.info):
        summary = _summary(stored, cells.of(measurements, swept[0]))
    judged = axisclaims.judge([i for i in named if i in CLAIMS], stored.info, measurements, findings)
    made = claims.with_claims(built, named, summary, findings, stored.info.get("planes", {}), judged)
    print(typeset.as_text(made, colour=typeset.wants_colour(sys.stdout)))
    return code


def newest_claims(root: Path, *, reference: Sequence[Path] = (), as_json_text: bool = False) -> int:
    """Every claim with its experiments and the verdict of the newest run that has evidence of it. Runs of `reference`
    came with the code: they speak where none of the user's own does."""
    newest: dict[str, tuple[claims.Judged, Path, str]] = {}
    for path in (*reference, *stored_runs(root)):
        try:
            stored = Run.open(path)
            named = [id_ for id_ in stored.info["plan"]["experiment"].get("claims", ()) if id_ in CLAIMS]
            judged = axisclaims.judge(named, stored.info, stored.measurements(), stored.findings())
        except TestbedError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        made = stored.info.get("planes", {})
        for one in judged:  # a run without the planes that it takes does not unsay what another showed
            if one.verdict is not claims.Verdict.NO_EVIDENCE or one.claim.id not in newest:
                newest[one.claim.id] = (one, path, claims.made_of(one, made))
    speaking = experiments_by_claim()
    rows = []
    for id_, claim in CLAIMS.items():
        one, path, on = newest.get(id_, (None, None, ""))
        rows.append(
            asdict(claim)
            | {
                "experiments": speaking.get(id_, []),
                "verdict": (one.verdict if one else claims.Verdict.NO_EVIDENCE).value,
                "measured": one.measured if one else "",
                "on": on,
                "run": str(path) if path else None,
                "reference": path in reference,
            }
        )
    if as_json_text:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        run = f"reference run of {Path(row['run']).name}" if row["reference"] else row["run"]
        print(f"{row['id']:<28} {row['verdict']:<12} {row['text']} ({', '.join(row['sources'])})")
        asked = ", ".join(row["experiments"])
        if row["run"] and row["verdict"] != claims.Verdict.NO_EVIDENCE:
            print(f"{'':<41} {row['measured']}\n{'':<41} on {row['on'] or '–'}; {run}")
        elif row["run"]:
            print(f"{'':<41} {row['measured']}; {run}")
        elif asked:
            print(f"{'':<41} no run yet: ./inv experiment.run {row['experiments'][0]}")
        else:
            print(f"{'':<41} not yet: no experiment speaks to it; it takes: {row['decided_by']}")
    judged_of = sum(row["verdict"] != claims.Verdict.NO_EVIDENCE for row in rows)
    silent = sum(not row["experiments"] for row in rows)
    print(f"\n{judged_of} of {len(rows)} claims judged, {silent} without experiment")
    print(said_by(SOURCES))
    return 0


def experiments_by_claim() -> dict[str, list[str]]:
    """Claim → experiments that speak to it, quick forms first."""
    found: dict[str, list[str]] = {}
    for name in sorted(names("experiment"), key=lambda n: (n.endswith("-full"), n)):
        for id_ in load("experiment", name).claims:
            found.setdefault(id_, []).append(name)
    return found


def verdict(measurements: Sequence[Measurement], findings: Sequence[Finding]) -> int:
    """1: a plane does not do what it claims; packets or a probe showed it, whatever the figures are.

    4: a plane has no valid trial (of a cell, where there are several). 3: trials were left out, a certificate warns, or
    a claim has no evidence. 0: nothing to say.
    """
    if any(f.result is Result.BROKEN for f in findings):
        return 1
    if {(m.plane, m.cell) for m in measurements} - {(m.plane, m.cell) for m in measurements if m.valid}:
        return 4
    warned = any(not m.valid or (m.metric.startswith(PREFIX) and m.value >= Level.WARN) for m in measurements)
    return 3 if warned or any(f.result is Result.NO_EVIDENCE for f in findings) else 0


@contextlib.contextmanager
def _steps(total: int, *, at_least_s: float) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Two `seams.Progress`: one ends the step before and begins the next, the other says a line that stays."""
    shown = Progress(sys.stderr, total=total, noun="step", now=time.monotonic(), at_least_s=at_least_s)
    begun = False

    def begin(what: str) -> None:
        nonlocal begun
        now = time.monotonic()
        if begun:
            shown.step(now)
        begun = True
        shown.start(what, now)

    try:
        yield begin, shown.say
        if begun:
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
