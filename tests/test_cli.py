"""The verbs: help for every argument, exit codes, where text goes."""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks
from testbed import cli
from testbed.errors import Bug, MachineError, PeerError, TestbedError, TrialError, UsageError

ROOT = Path(__file__).parent.parent


def verb(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", sorted(tasks.namespace.task_names))
def test_every_verb_says_what_it_does_and_what_each_argument_means(name: str) -> None:
    """What `--help` prints."""
    task = tasks.namespace[name]
    arguments = [p for p in inspect.signature(task.body).parameters if p != "c"]

    assert inspect.getdoc(task.body)
    assert {a.replace("_", "-") for a in arguments} == {h.replace("_", "-") for h in task.help}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (TrialError("x"), 4),
        (MachineError("x"), 5),
        (PeerError("x"), 1),
        (Bug("x"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "/results"), 5),
    ],
)
def test_each_error_ends_with_its_code_and_one_text(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr; stdout is for data."""

    def failing() -> Callable[[], None]:
        raise error

    with pytest.raises(SystemExit) as end:
        cli.exit_with(failing)

    printed = capsys.readouterr()
    assert end.value.code == code
    assert printed.out == ""
    assert printed.err.strip()


def test_errors_of_ours_are_a_family() -> None:
    """So that one `except` at the edge is enough."""
    assert all(issubclass(kind, TestbedError) for kind in (UsageError, TrialError, MachineError, PeerError, Bug))


@pytest.mark.parametrize(
    "argv",
    [
        ("nope",),
        ("lab.up",),
        ("experiment.run", "nope"),
        ("experiment.run", "quickstart", "--plane", "nope"),
        ("experiment.run", "quickstart", "--trials", "0"),
        ("experiment.run", "quickstart", "--link", "nope"),
        ("experiment.run", "quickstart", "--runtime", "nope"),
        ("capture.verify", "/nope.pcapng"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_so_on_stderr(argv: tuple[str, ...]) -> None:
    """Before anything is built."""
    ended = verb(*argv)

    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
