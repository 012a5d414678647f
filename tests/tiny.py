"""The verbs in a process of their own with an experiment that takes seconds; it says on stderr which phase begins.

python -m tests.tiny experiment.run tiny --plane none
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.quickstart import EXPERIMENT
from tests.loose import gates

ROOT = Path(__file__).parent.parent
TINY = dataclasses.replace(
    EXPERIMENT,
    name="tiny",
    rounds=1,
    aa_pair=False,
    load=dataclasses.replace(EXPERIMENT.load, rate_rps=50, warmup_s=0.5, window_s=1.0),
)


def announced(phase: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def told(*args: object, **options: object) -> object:
        print(f"PHASE {phase}", file=sys.stderr, flush=True)
        return function(*args, **options)

    return told


def begin(*argv: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """In a session of its own, so that a test can press Ctrl-C for the whole group, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny", *argv],
        cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )  # fmt: skip


def reach(verb: subprocess.Popen[str], phase: str) -> str:
    """Reads stderr until the phase begins; what was read."""
    assert verb.stderr is not None
    said = ""
    for line in verb.stderr:
        said += line
        if line.strip() == f"PHASE {phase}":
            return said
    raise AssertionError(f"{phase} was never reached:\n{said}")


def main() -> None:
    from testbed import deploy, lab, proof, registry, report, runs, sweep, trial

    registry.BUILT_IN["experiment"]["tiny"] = "tests.tiny:TINY"
    # A busy test machine may be late; what is tested with this is the way, not the figures.
    loose = gates()
    runs.Gates = lambda: loose  # type: ignore[assignment, misc]
    lab.start = announced("bring-up", lab.start)
    deploy.start = announced("deploy", deploy.start)
    proof.prove = announced("proof", proof.prove)
    sweep.measure = announced("probing", sweep.measure)
    trial.run = announced("load", trial.run)
    report.build = announced("report", report.build)

    from testbed.__main__ import main as verbs

    verbs()


if __name__ == "__main__":
    main()
