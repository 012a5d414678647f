"""The verbs: help for every argument, exit codes, where text goes."""

from __future__ import annotations

import errno
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks
from testbed import cli
from testbed.errors import Bug, MachineError, PeerError, TestbedError, TrialError, UsageError
from tests.labs import needs_root

ROOT = Path(__file__).parent.parent


def verb(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *argv],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("interrupt", "said"),
    [
        (KeyboardInterrupt(), "interrupted; everything of this run was taken down\n"),
        (KeyboardInterrupt("lab x is up"), "interrupted; lab x is up\n"),
    ],
    ids=["as usual", "what stays is told"],
)
def test_an_interrupt_says_what_is_left(
    interrupt: KeyboardInterrupt, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the words of who was interrupted; without any, nothing is."""

    def interrupted() -> None:
        raise interrupt

    with pytest.raises(SystemExit):
        cli.exit_with(interrupted)

    assert capsys.readouterr().err == said


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


def test_a_state_folder_that_cannot_be_made_is_named_with_its_mend(tmp_path: Path) -> None:
    """5, as for every lack of the machine; here its parent is a file."""
    (tmp_path / "file").touch()
    state = tmp_path / "file" / "state"

    for words in (["lab.list"], ["lab.gc", "--dry-run"], ["lab.down"]):
        said = verb(*words, MESHBED_STATE=str(state))
        assert said.returncode == MachineError.exit_code, words
        assert said.stdout == ""
        assert said.stderr.startswith(f"{state}: labs cannot keep their state there (Not a directory); set MESHBED_STA")


@pytest.mark.root
@needs_root
def test_a_state_folder_that_cannot_be_written_to_speaks_before_anything_is_made(tmp_path: Path) -> None:
    """A read-only file system; no lab, and no run's folder that would stay empty."""
    state, results = tmp_path / "state", tmp_path / "results"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(state)], check=True)
    try:
        for words in (["lab.up", "pair"], ["experiment.run", "quickstart", "--plane", "none", "--trials", "1"]):
            said = verb(*words, MESHBED_STATE=str(state), MESHBED_RESULTS=str(results))
            assert said.returncode == MachineError.exit_code, said.stderr
            assert f"{state}: labs cannot keep their state there (it cannot be written to)" in said.stderr
            assert "Traceback" not in said.stderr
    finally:
        subprocess.run(["umount", str(state)], check=True)
    assert not results.exists()


def test_lab_up_says_what_the_plane_leaves_undone() -> None:
    """Before anything is made, so in a dry run too; nothing where there are no policies."""
    said = verb("lab.up", "two-zones", "--dry-run")
    silent = verb("lab.up", "pair", "--dry-run")

    assert "not honoured under none: PeerAuthentication secure/strict, " in said.stderr
    assert "not honoured" not in silent.stderr
