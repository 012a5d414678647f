"""The steps of a job, as data: what is hidden from a program, and in which order it loses its rights."""

from __future__ import annotations

import pytest

from testbed.runtime import launch


def test_only_the_topmost_of_hidden_folders_is_covered() -> None:
    """What is in another is gone with it; a name that only begins alike is not in it."""
    assert launch.covers(["/tmp", "/run/labs", "/tmp/labs", "/tmpfiles"]) == ["/tmp", "/run/labs", "/tmpfiles"]


def test_what_is_shown_comes_back_at_its_own_path() -> None:
    """After all covers, each folder on the way made once, and only below the cover."""
    steps = list(launch.cover(["/tmp", "/run/labs"], {"/run/labs/a/p/x": 7, "/run/labs/a/p/y": 8}))
    made = [arguments[0] for name, arguments, _ in steps if name == "mkdir"]

    assert [name for name, _, _ in steps][:2] == ["mount", "mount"]
    assert made == [b"/run/labs/a", b"/run/labs/a/p", b"/run/labs/a/p/x", b"/run/labs/a/p/y"]
    assert [arguments[:4:3] for name, arguments, _ in steps if name == "move_mount"] == [
        (7, b"/run/labs/a/p/x"),
        (8, b"/run/labs/a/p/y"),
    ]


@pytest.mark.parametrize(("uid", "single"), [(20000, False), (0, False), (20000, True)])
def test_no_right_is_lost_before_the_last_call_that_needs_one(uid: int, single: bool) -> None:
    """Ambient capabilities come after the change of user, which clears them; no_new_privs is last."""
    steps = launch.drop(["net_raw"], uid, single_uid=single)
    names = [name for name, _, _ in steps]

    assert ("setresuid" in names) is not single
    assert names[-3:] == ["capset", "prctl", "prctl"]
    assert sum(name == "prctl" for name in names) == (2 if single else 3 if uid else 43)


def test_a_program_that_path_does_not_have_is_named() -> None:
    """Before any child is there."""
    with pytest.raises(FileNotFoundError, match="No such file in PATH: ghost"):
        launch.execute([], ["ghost"], {})
