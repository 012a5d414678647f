"""Progress lines: live on a terminal, plain elsewhere, time handed in."""

from __future__ import annotations

import io

import pytest

from testbed.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_each_step_is_a_plain_line_with_the_time_left() -> None:
    """Two steps of 10 s out of 4 leave 20 s; no escape reaches a log."""
    out = io.StringIO()
    progress = Progress(out, total=4, now=0.0)
    for n in range(3):
        progress.start(f"plane-{n}", n * 10.0)
        progress.step(n * 10.0 + 10)
    progress.close(30.0)

    assert out.getvalue().splitlines() == [
        "trial 1/4 plane-0",
        "trial 2/4 plane-1, 30 s left",
        "trial 3/4 plane-2, 20 s left",
        "3 of 4 trials in 30 s",
    ]


def test_short_first_steps_do_not_promise_a_short_run() -> None:
    """Proofs of 2 s come before trials of which one knows that they take 6."""
    out = io.StringIO()
    progress = Progress(out, total=11, now=0.0, at_least_s=6.0)
    progress.start("proof", 0.0)
    progress.step(2.0)
    progress.start("round 1", 2.0)

    assert out.getvalue().splitlines()[-1] == "trial 2/11 round 1, 1 min 00 s left"


def test_notes_do_not_flood_a_log() -> None:
    """Inside a step a plain line comes at most every ten seconds."""
    out = io.StringIO()
    progress = Progress(out, total=1, now=0.0)
    progress.start("p", 0.0)
    for second in range(25):
        progress.note(f"at {second}", float(second))

    assert [line.split("at ")[-1] for line in out.getvalue().splitlines()[1:]] == ["10", "20"]


def test_on_a_terminal_one_line_is_redrawn_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live line never ends in a newline; what is said stays; NO_COLOR leaves no colour."""
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    progress = Progress(out, total=2, now=0.0)
    progress.start("p", 0.0)
    progress.say("kept\x1b[2J")
    progress.start("q", 1.0)
    progress.close(1.5)

    assert out.getvalue() == "\r\x1b[Ktrial 1/2 p\r\x1b[Kkept [2J\n\r\x1b[Ktrial 1/2 q\r\x1b[K"


def test_short_work_says_nothing_at_its_end() -> None:
    """Under two seconds there is no summary line."""
    out = io.StringIO()
    Progress(out, total=1, now=0.0).close(1.9)

    assert out.getvalue() == ""
    assert (duration(59.4), duration(61), duration(600)) == ("59 s", "1 min 01 s", "10 min 00 s")
