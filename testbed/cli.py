"""The verbs as plain functions; `tasks.py` shares them.

Each returns its exit code (README, "Verbs"); data to stdout, the rest to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from testbed import interrupts, rights
from testbed.errors import OF_THE_MACHINE, MachineError, TestbedError, UsageError

ROOT = Path(__file__).resolve().parent.parent
TRIED_AGAIN = 4
"""Tests that may fail while others take the machine, if they pass alone; both are shown."""
TEST_PROCESSES = 4
"""More make the machine so busy that waits run out, and the engine's tests, a third of all, stay with one."""


def exit_with(verb: Callable[..., int | None], *args: object, **options: object) -> None:
    """Run a verb and leave with its code.

    Our errors are one clear text; anything else is a bug and shows its traceback.
    """
    with interrupts.heard():
        try:
            rights.take(verb, *args, **options)
            code = verb(*args, **options) or 0
        except TestbedError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt as interrupt:
            interrupts.sweep_own()
            print(f"interrupted; {str(interrupt) or 'everything of this run was taken down'}", file=sys.stderr)
            code = interrupts.EXIT_CODE
        except BrokenPipeError:
            code = 0  # the reader (head, less) had enough
            sys.stdout = None  # type: ignore[assignment]
        except OSError as error:
            # Files a user named, a full disk, a folder without rights: not bugs of ours.
            if error.filename is None and error.errno not in OF_THE_MACHINE:
                raise
            unnamed = f"writing (labs: {os.environ.get('MESHBED_STATE', 'their default folder')}, or results): "
            where = f"{error.filename}: " if error.filename is not None else unnamed
            print(f"{where}{error.strerror}; check rights, space and spelling", file=sys.stderr)
            code = MachineError.exit_code if error.errno in OF_THE_MACHINE else 1
    sys.exit(code)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def test(only: str = "", fast: bool = False) -> int:
    """pytest over `tests/`, on up to TEST_PROCESSES cores, then what must run alone. A few that fail
    beside others are tried once more alone, and named; each part's own summary counts and
    names what was skipped.
    """
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tier = "not root and not docker and not envoy and not qemu"
    if only:  # mostly little, and begins at once
        return subprocess.run([*argv, "-k", only, *(("-m", tier) if fast else ())], cwd=ROOT).returncode
    shared = ["--dist", "loadscope", "-n", str(min(TEST_PROCESSES, os.cpu_count() or 1))]
    if fast:
        return subprocess.run([*argv, *shared, "-m", tier], cwd=ROOT).returncode
    with tempfile.TemporaryDirectory(prefix="meshbed-test-") as folder:
        told = Path(folder) / "failed"
        environment = {**os.environ, "MESHBED_FAILED_TESTS": str(told)}
        together = subprocess.run([*argv, *shared, "-m", "not alone"], cwd=ROOT, env=environment).returncode
        failed = list(dict.fromkeys(told.read_text().splitlines())) if told.exists() else []
    if together == 1 and 0 < len(failed) <= TRIED_AGAIN:
        say("FAILED BESIDE OTHERS, tried once more with nothing beside them: " + ", ".join(failed))
        together = subprocess.run([*argv, *failed], cwd=ROOT).returncode
    return subprocess.run([*argv, "-m", "alone"], cwd=ROOT).returncode or together


def as_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


def schema(write: bool = False, dry_run: bool = False) -> int:
    from testbed import schemadefs, topofile

    text = schemadefs.as_text(topofile.json_schema()) + "\n"
    file = ROOT / "topologies" / "schema.json"
    if write and dry_run:
        print(f"would write {file}{'' if file.read_text() != text else ', which is the same already'}")
    elif write:
        file.write_text(text)
    else:
        print(text, end="")
    return 0


def doctor(as_json_text: bool = False) -> int:
    from testbed import doctor as machine_doctor
    from testbed.typeset import wants_colour

    checks = machine_doctor.check()
    print(
        machine_doctor.as_json(checks)
        if as_json_text
        else machine_doctor.as_text(checks, colour=wants_colour(sys.stdout))
    )
    return 0


# experiments


def quickstart(
    rounds: int | None = None,
    plane: str = "",
    runtime: str = "auto",
    link: str = "auto",
    seed: int | None = None,
    dry_run: bool = False,
) -> int:
    return experiment_run(
        "quickstart", plane=plane, trials=rounds, runtime=runtime, link=link, seed=seed, dry_run=dry_run
    )


def experiment_list(as_json_text: bool = False) -> int:
    """3 where an installed package's experiment cannot be loaded; the others are listed all the same."""
    from testbed.registry import load, names
    from testbed.store import as_json as plain

    found, broken = {}, []
    for name in names("experiment"):
        try:
            found[name] = load("experiment", name)
        except UsageError as error:
            broken.append(error)
    if as_json_text:
        as_json([plain(experiment) for experiment in found.values()])
    else:
        for name, experiment in found.items():
            least_min = math.ceil(experiment.loaded_s / 60)
            print(f"{name:<16} {experiment.rounds:>2} rounds, over {least_min:>4} min  {experiment.question}")
    for error in broken:
        say(str(error))
    return 3 if broken else 0


def experiment_run(
    name: str,
    *,
    plane: str = "",
    trials: int | None = None,
    runtime: str = "auto",
    link: str = "auto",
    resume: str = "",
    seed: int | None = None,
    until_width: float | None = None,
    budget_min: float | None = None,
    share: float | None = None,
    dry_run: bool = False,
) -> int:
    """Run an experiment, print its table and the report's path.

    1 when a plane breaks its claims, 3 when trials were left out, 4 when no trial of a plane counts.
    """
    from testbed import runs

    return runs.run(
        name,
        planes=[p for p in plane.split(",") if p],
        rounds=trials,
        runtime=runtime,
        link=link,
        resume=resume,
        seed=seed,
        until_width=None if until_width is None else until_width / 100,
        budget_s=None if budget_min is None else budget_min * 60,
        share=None if share is None else share / 100,
        dry_run=dry_run,
    )


def experiment_show(run: str, as_json_text: bool = False) -> int:
    from testbed import runnames, runs

    return runs.show(runnames.find(run), as_json_text=as_json_text)


def claims(as_json_text: bool = False) -> int:
    from testbed import kept, runs
    from testbed.runnames import results_root

    return runs.newest_claims(results_root(), reference=kept.kept_runs(), as_json_text=as_json_text)


def report_build(run: str, dry_run: bool = False) -> int:
    from testbed import report, runnames
    from testbed.store import Run

    path = Run.open(runnames.find(run)).path
    if dry_run:
        print(f"would write {path / 'report.html'} and {path / 'table.md'}")
        return 0
    print(report.build(path))
    if gone := report.missing_requests(Run.open(path)):
        say(f"warning: {report.told_missing(gone)}")
        return 3
    return 0


def report_keep(run: str, dry_run: bool = False) -> int:
    from testbed import kept, runnames

    path = runnames.find(run)
    home = kept.keep(path, dry_run=dry_run)
    print(f"{'would write' if dry_run else 'kept'} {home}")
    return 0


def report_reference(write: bool = False, dry_run: bool = False) -> int:
    from testbed import kept, referencepage, shapes
    from testbed.program import CHECKOUT
    from testbed.store import Run, write_whole

    text = referencepage.page({path.name: shapes.of(Run.open(path)) for path in kept.kept_runs()})
    page = CHECKOUT / "docs" / "reference.md"
    if write and not dry_run:
        write_whole(page, text.encode())
    print(f"{'would write' if dry_run else 'wrote'} {page}" if write else text)
    return 0


def report_shapes(as_json_text: bool = False) -> int:
    from testbed import kept, shapes
    from testbed.store import Run

    runs = {path.name: shapes.of(Run.open(path)) for path in kept.kept_runs()}
    rows = [
        {"shape": shape.text, "result": seen.result.value, "seen": seen.told, "experiments": shape.experiments}
        for shape, seen in shapes.looked(runs)
    ]
    if as_json_text:
        as_json(rows)
        return 0
    for row in rows:
        print(f"{row['result']:<12} {row['shape']}\n{'':<12} {row['seen']}")
    return 0


def report_compare(before: str, after: str, as_json_text: bool = False) -> int:
    from testbed import comparison, runnames, typeset

    compared = comparison.compare(runnames.find(before), runnames.find(after))
    if as_json_text:
        as_json(comparison.as_json(compared))
    else:
        print(typeset.as_text(comparison.as_table(compared), colour=typeset.wants_colour(sys.stdout)))
    return 0


# images


def image_build(base: str = "auto", fresh: bool = False, dry_run: bool = False, as_json_text: bool = False) -> int:
    """0 also where the image is there already. Raises MachineError without an engine, or without any base."""
    from testbed.docker import bases, engine, image

    connected = engine.connect()
    try:
        found = None if fresh else image.find(connected, base=base)
        if dry_run and found is None:
            tried = bases.plan(connected, base)
            if as_json_text:
                as_json({"reference": None, "tried": [{"base": name, "how": how} for name, how in tried]})
            else:
                print("would build on the first of: " + ", ".join(f"{name} ({how})" for name, how in tried))
            return 0
        built = found or image.build(connected, base=base, fresh=fresh, progress=say)
    finally:
        connected.close()
    if as_json_text:
        as_json(dataclasses.asdict(built))
        return 0
    made = f"built in {built.seconds:.1f} s" if found is None else "there already"
    print(f"{built.reference}: {made}, {built.size_bytes / 1e6:.0f} MB, on {built.base} ({built.base_kind})")
    print(f"digest {built.digest}")
    return 0


# labs


def lab_up(
    topology: str,
    plane: str = "none",
    runtime: str = "auto",
    link: str = "auto",
    name: str = "",
    keylog: bool = False,
    dry_run: bool = False,
    as_json_text: bool = False,
) -> int:
    from testbed import labs

    return labs.up(
        topology,
        plane=plane,
        runtime=runtime,
        link=link,
        name=name,
        keylog=keylog,
        dry_run=dry_run,
        json_text=as_json_text,
    )


def lab_down(name: str = "", dry_run: bool = False) -> int:
    from testbed import labs

    return labs.down(name, dry_run=dry_run)


def lab_list(as_json_text: bool = False) -> int:
    from testbed import labs

    return labs.list_all(as_json_text)


def lab_inspect(name: str = "", as_json_text: bool = False) -> int:
    from testbed import labs

    return labs.inspect(name, as_json_text)


def words_behind_dashes() -> list[str]:
    """The words after `--` as the shell gave them; invoke's own remainder has lost which belonged together."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


def shell() -> str:
    return os.environ.get("SHELL") or "/bin/sh"


def lab_exec(workload: str, words: list[str], name: str = "") -> int:
    from testbed import labs

    if not words:
        raise UsageError("nothing to run; write it behind --: ./inv lab.exec client -- curl http://10.96.0.10:8080/")
    return labs.execute(name, workload, words)


def lab_prove(topology: str, client: str, service: str, name: str = "", as_json_text: bool = False) -> int:
    from testbed import labs, liveproof

    return liveproof.prove(labs.topology_of(topology), client, service, name=name, json_text=as_json_text)


def lab_graph(topology: str, as_json_text: bool = False) -> int:
    from testbed import labs

    return labs.graph(topology, as_json_text)


def lab_gc(dry_run: bool = False, everything: bool = False, as_json_text: bool = False) -> int:
    from testbed.runtime import ownership

    removed = ownership.gc(dry_run=dry_run, everything=everything)
    if as_json_text:
        as_json([{**dataclasses.asdict(left), "removed": not dry_run} for left in removed])
        return 0
    for left in removed:
        print(f"{'would remove' if dry_run else 'removed'} {left.kind} {left.name}: {left.why}")
    say(f"{len(removed)} leftovers" + (" found" if dry_run else " removed"))
    return 0


def link_show(name: str = "", as_json_text: bool = False) -> int:
    from testbed import livelinks

    return livelinks.show(name, as_json_text)


def link_set(
    a: str, b: str, name: str = "", dry_run: bool = False, as_json_text: bool = False, **fields: float | None
) -> int:
    from testbed import livelinks

    given = {key: value for key, value in fields.items() if value is not None}
    return livelinks.change(name, a, b, given, dry_run=dry_run, json_text=as_json_text)


def capture_start(
    lab: str,
    where: str = "",
    out: str = "",
    snaplen: int = 0,
    limit_mib: int = 512,
    dry_run: bool = False,
    as_json_text: bool = False,
) -> int:
    from testbed import captures

    places = [place for place in where.split(",") if place]
    return captures.begin(
        lab, places, out=out, snaplen=snaplen, limit_mib=limit_mib, dry_run=dry_run, json_text=as_json_text
    )


def capture_stop(lab: str = "", dry_run: bool = False, as_json_text: bool = False) -> int:
    from testbed import captures

    return captures.finish(lab, dry_run=dry_run, json_text=as_json_text)


def capture_verify(pcap: str, keylog: str = "", as_json_text: bool = False) -> int:
    from testbed.verify.dissect import verify_file

    path = Path(pcap)
    if not path.is_file():
        raise UsageError(f"{pcap}: no such file; captures of a run are in results/<experiment>/<run>/captures/")
    found = verify_file(path, Path(keylog) if keylog else None)
    print(found.json if as_json_text else found.text)
    return 0


def fuzz(target: str = "", *, seconds: int | None = None, as_json_text: bool = False) -> int:
    """In processes of their own: atheris takes a whole one over."""
    words = ["--target", target] if target else []
    words += ["--seconds", str(seconds)] if seconds is not None else []
    words += ["--json"] if as_json_text else []
    return subprocess.run([sys.executable, "-m", "fuzz.run", *words], cwd=ROOT).returncode


def bench(what: str, arguments: list[str]) -> int:
    """The project measuring itself, with a peer beside it: `bringup`, `links`, `proxy`."""
    return subprocess.run([sys.executable, "-m", f"testbed.bench.{what}", *arguments], cwd=ROOT).returncode
