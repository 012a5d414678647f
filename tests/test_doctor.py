"""What the machine can do: every lack has a mend, and no check ever raises."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from testbed import doctor


def test_every_check_answers_and_every_lack_has_a_mend() -> None:
    """On this machine, whatever it is: one answer a check, in order, a mend wherever it is not ok."""
    checks = doctor.check()

    assert [c.name for c in checks] == list(doctor.CHECKS)
    assert all(c.state in (doctor.OK, doctor.WARN, doctor.LACK) and c.what for c in checks)
    assert all(bool(c.mend) == (c.state != doctor.OK) for c in checks)


@pytest.mark.root
def test_an_ordinary_user_gets_answers_too() -> None:
    """Without root nothing raises, and the rights line says what is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes user nobody")
    # Loaded before the change of user: that user may not be able to read this checkout.
    program = (
        "import os; from testbed import doctor; doctor.check()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); print(doctor.as_json(doctor.check()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert checks["rights"]["state"] in (doctor.WARN, doctor.LACK) and "root" in checks["rights"]["mend"]
    assert not [c for c in checks.values() if "could not be checked" in c["what"]]


def test_a_check_that_fails_itself_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A surprise of the machine is reported, not thrown at the reader."""

    def surprise() -> doctor.Answer:
        raise OSError("odd kernel")

    monkeypatch.setattr(doctor, "CHECKS", {"odd": surprise})
    (only,) = doctor.check()

    assert (only.state, only.what) == (doctor.WARN, "could not be checked: OSError: odd kernel")


def test_text_is_aligned_and_counts() -> None:
    """Columns line up, mends stand below, the last line counts."""
    checks = [
        doctor.Check(name="a", state="ok", what="fine"),
        doctor.Check(name="long name", state="lack", what="gone\x1b[2J", mend="do this"),
    ]
    lines = doctor.as_text(checks).splitlines()

    assert lines[0].index("fine") == lines[1].index("gone") == lines[2].index("mend: do this")
    assert lines[-1] == "1 ok, 0 weaker, 1 lacking"
    assert "\x1b" not in doctor.as_text(checks)
