"""What a call that cannot be understood is told: what, where, and the mend, with code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from testbed.program import CHECKOUT

WRONG = {
    "lab.upp pair": "no verb is called 'lab.upp'; did you mean 'lab.up'? ./inv --list names all",
    "frobnicate": "no verb is called 'frobnicate'; ./inv --list names all",
    "--lst": "no option is called '--lst'; ./inv --list names all",
    "lab.up pair --plain none": "lab.up: no option is called '--plain'; did you mean '--plane'? known: --dry-run, ",
    "lab.up pair sidecar": "lab.up: 'sidecar' is one word too many, and no verb; ./inv --help lab.up",
    "lab.up": "lab.up: TOPOLOGY must be given; ./inv --help lab.up",
    "report.compare": "report.compare: BEFORE AFTER must be given; ./inv --help report.compare",
    "lab.up pair --plane": "lab.up: --plane takes a value; ./inv --help lab.up",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_call_is_told_what_and_how(words: str) -> None:
    """As typed; nothing is begun."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *words.split()], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(WRONG[words]) and done.stderr.count("\n") == 1
