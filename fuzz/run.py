"""Coverage-guided runs of the targets: `./inv fuzz.run`. One process a target, for atheris knows one per process.

New inputs that reach new code stay in `build/fuzz/<target>/`; one that breaks a promise is there as `crash-…`, and is
put into the corpus as `found-…` once it is understood.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict, dataclass

from fuzz.targets import CORPUS, TARGETS, Target
from testbed.program import CHECKOUT

WORK = CHECKOUT / "build" / "fuzz"
INSTRUMENTED = ["planes", "testbed.model", "testbed.observe", "testbed.topofile", "testbed.policyfile",
                "testbed.trafficfile", "testbed.trafficshapes", "testbed.routefile", "testbed.yamlpos",
                "testbed.topofields", "testbed.topowaypoints", "testbed.resourceitems"]  # fmt: skip
INPUT_TIMEOUT_S = 10
MEMORY_MB = 1024
"""Of the whole process, atheris and all; libFuzzer ends it as a finding."""
HOW_TO_GET = (
    "atheris is not installed, so nothing can be run by coverage; Python 3.11 to 3.13 on Linux have wheels:\n"
    "  .venv/bin/python -m pip install --require-hashes -r requirements-fuzz.lock\n"
    "The corpora and a walk without coverage are in the test suite: ./inv test --only test_fuzz"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    target: str
    executions: int
    seconds: int
    edges: int
    corpus: int
    finding: str
    """File of the input that broke a promise, or the log where there is none; empty if all went well."""


def available() -> bool:
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode == 0


def run(target: Target, seconds: int, *, seed: int) -> Outcome:
    folder = WORK / target.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "fuzz.run", "--inside", target.name, str(folder), str(CORPUS / target.name),
        f"-max_total_time={seconds}", f"-max_len={target.max_bytes}", f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MB}", f"-seed={seed}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
        "-close_fd_mask=1",
    ]  # fmt: skip
    before = {path.name for path in folder.glob("*-*")}
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, errors="replace")
    (folder.parent / f"{target.name}.log").write_text(done.stderr)
    found = sorted(p for p in folder.glob("*-*") if p.name not in before and p.name.split("-")[0] in (
        "crash", "timeout", "oom"
    ))  # fmt: skip
    numbers = [int(n) for n in re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)]
    told = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    took = re.search(r"Done \d+ runs in (\d+) second", done.stderr)
    return Outcome(
        target=target.name,
        executions=int(told[1]) if told else max(numbers, default=0),
        seconds=int(took[1]) if took else seconds,
        edges=int(edges[-1]) if edges else 0,
        corpus=sum(1 for _ in folder.iterdir()),
        finding=str(found[0]) if found else f"{folder}.log" if done.returncode else "",
    )


def inside(name: str, arguments: list[str]) -> None:
    """The process that atheris takes over."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = TARGETS[name]
        check = target.check

    def one(data: bytes) -> None:
        check(data)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        made = target.change(data, draw) if draw.randrange(3) else atheris.Mutate(data, most)
        return made[:most]

    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=changed)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description="coverage-guided fuzzing of the parsers")
    parser.add_argument("--target", nargs="*", default=list(TARGETS), metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=20, help="of each target (20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.target if name not in TARGETS]
    if unknown:
        print(f"no target {', '.join(unknown)}; known: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if not available():
        print(HOW_TO_GET, file=sys.stderr)
        return 5
    os.environ["PYTHONPATH"] = os.pathsep.join((str(CHECKOUT), os.environ.get("PYTHONPATH", "")))
    broken = 0
    for name in arguments.target:
        outcome = run(TARGETS[name], arguments.seconds, seed=arguments.seed)
        broken += bool(outcome.finding)
        if arguments.json:
            print(json.dumps(asdict(outcome)), flush=True)
        else:
            told = f"FOUND {outcome.finding}" if outcome.finding else "nothing"
            print(f"{name}: {outcome.executions} executions, {outcome.seconds} s, {outcome.edges} edges, "
                  f"{outcome.corpus} inputs, {told}", flush=True)  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
