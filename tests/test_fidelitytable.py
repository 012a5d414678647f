"""The certificates of a run in its table: counts, causes by weight, and the code that a script may rely on."""

from __future__ import annotations

import math

from testbed import fidelitytable, runs, table
from testbed.model.experiment import Measurement
from tests.synthetic import row


def check(plane: str, round_: int, name: str, level: float, reason: str = "", **more: object) -> Measurement:
    return row(plane, round_, f"fidelity.{name}", level, "host", reason=reason, **more)


ROWS = [
    *(row(plane, n, "latency_p50", 1.0) for plane in ("none", "x") for n in (1, 2, 3)),
    *(check("none", n, "busy", 0.0) for n in (1, 2, 3)),
    check("x", 1, "busy", 0.0),
    check("x", 2, "busy", 1.0, "host 88% busy"),
    check("x", 3, "busy", 2.0, "host 99% busy"),
    check("x", 3, "steal", 1.0, "the hypervisor stole 3.0% of the cores"),
    check("x", 2, "steal", 1.0, "the hypervisor stole 5.0% of the cores"),
    check("x", 1, "psi", math.nan, "psi: not available: this kernel has no /proc/pressure"),
]


def test_trials_are_counted_by_their_worst_check() -> None:
    """And causes that differ in figures only are one, the worst first."""
    built = fidelitytable.with_fidelity(table.Table(blocks=(), notes=("first",)), ROWS, ["none", "x"])
    (block,) = built.blocks
    none, x = block.rows

    assert block.head == ("plane", "pass", "warn", "fail", "what, worst first")
    assert [c.lines for c in none] == [("none",), ("3",), ("0",), ("0",), ("–",)]
    assert [c.lines[0] for c in x[:4]] == ["x", "1", "1", "1"]
    assert x[4].lines == ("busy FAIL, steal",) and x[4].tone == "bad"
    assert built.notes[x[4].note - 1] == (
        "x: FAIL 1 × host 99% busy; WARN 2 × the hypervisor stole 3.0 to 5.0% of the cores; WARN 1 × host 88% busy"
    )
    assert "no /proc/pressure" in built.notes[x[0].note - 1]


def test_a_run_of_before_has_no_certificates() -> None:
    """Its table is as it was."""
    bare = table.Table(blocks=(), notes=())

    assert fidelitytable.with_fidelity(bare, [row("none", 1, "latency_p50", 1.0)]) is bare


def test_more_causes_than_fit_are_counted() -> None:
    """All of them are in the report."""
    many = [check("x", 1, f"c{n}", 1.0, f"{'abcdef'[n]} is odd") for n in range(6)]
    built = fidelitytable.with_fidelity(table.Table(blocks=(), notes=()), many)

    assert built.notes[0].endswith("d is odd; and 2 more")


def test_a_warning_is_3_and_a_plane_without_a_trial_4() -> None:
    """What a script may rely on; what is not available is no warning."""
    told = [m for m in ROWS if m.plane == "none"]
    unread = check("none", 1, "psi", math.nan, "not available")

    assert runs.verdict([*told, unread], []) == 0
    assert runs.verdict([*told, check("none", 1, "busy", 1.0, "host 88% busy")], []) == 3
    failed = check("x", 1, "busy", 2.0, "host 99% busy", valid=False)
    assert runs.verdict([*told, failed], []) == 4
