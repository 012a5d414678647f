"""The search for the highest rate that holds, against machines whose answer is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.capacity import Capacity, Goal, Probe, Try, decide
from testbed.errors import UsageError

GOAL = Goal(p99_ms=10.0)


def search(goal: Goal, machine: Callable[[float], Probe], *, probe_s: float = 3.0) -> tuple[Capacity, list[Probe]]:
    probes: list[Probe] = []
    while True:
        step = decide(goal, probes, elapsed_s=len(probes) * probe_s)
        if isinstance(step, Capacity):
            return step, probes
        probes.append(machine(step.rate_rps))
        assert len(probes) < 200


def exact(capacity_rps: float) -> Callable[[float], Probe]:
    return lambda rate: Probe(rate_rps=rate, p99_ms=5.0 if rate <= capacity_rps else 50.0)


@given(st.floats(10, 20_000))
def test_the_answer_holds_and_the_next_one_above_does_not(capacity_rps: float) -> None:
    """Whatever the capacity: within the precision below it, found with two probes a rate."""
    found, probes = search(GOAL, exact(capacity_rps))

    assert found.rate_rps <= capacity_rps
    assert found.failed_rps is None or capacity_rps < found.failed_rps <= found.rate_rps * 1.16
    assert found.failed_rps is not None or capacity_rps == found.rate_rps == 20_000
    assert len(probes) <= 2 * 14


def test_none_and_all() -> None:
    """A target that holds nothing has capacity 0; one that holds everything has the highest that was tried."""
    nothing, _ = search(GOAL, exact(1))
    everything, _ = search(GOAL, exact(1e9))

    assert (nothing.rate_rps, nothing.failed_rps) == (0.0, 10.0)
    assert (everything.rate_rps, everything.failed_rps) == (20_000, None)


def test_a_reason_fails_a_rate_however_low_its_latency() -> None:
    """A late generator or unanswered requests: the rate was not held."""
    assert not Probe(rate_rps=1, p99_ms=1, reasons=("generator late",)).holds(GOAL)
    found, _ = search(GOAL, lambda rate: Probe(rate_rps=rate, p99_ms=1, reasons=("late",) if rate > 500 else ()))

    assert 430 < found.rate_rps <= 500


def test_one_hiccup_does_not_fail_a_rate() -> None:
    """One probe in eight fails by the host's fault: in 50 searches the median answer is that without hiccups."""
    answers = []
    for seed in range(50):
        draw = random.Random(seed)

        def machine(rate: float, draw: random.Random = draw) -> Probe:
            hiccup = draw.random() < 1 / 8
            return Probe(rate_rps=rate, p99_ms=50.0 if rate > 1000 or hiccup else 5.0)

        answers.append(search(GOAL, machine)[0].rate_rps)
    clean = search(GOAL, exact(1000))[0].rate_rps

    assert sorted(answers)[25] == clean
    assert sum(answer < clean / 2 for answer in answers) <= 5
    assert max(answers) <= 1000


def test_it_ends_with_its_budget_and_says_what_is_known() -> None:
    """The highest that held so far, and why no more is known."""
    found, probes = search(Goal(p99_ms=10, budget_s=14), exact(5000))

    assert found == Capacity(rate_rps=400, failed_rps=None, why="14 s were spent")
    assert len(probes) == 5


def test_the_history_is_all_there_is() -> None:
    """A search gone on with from its probes asks the same next question."""
    _, probes = search(GOAL, exact(777))
    for length in range(len(probes)):
        assert decide(GOAL, probes[:length], elapsed_s=0) == Try(rate_rps=probes[length].rate_rps)


@pytest.mark.parametrize(
    "goal", [Goal(p99_ms=0), Goal(p99_ms=1, begin_rps=1), Goal(p99_ms=1, precision=0), Goal(p99_ms=1, budget_s=0)]
)
def test_a_goal_that_cannot_be_is_refused(goal: Goal) -> None:
    """Before the first probe."""
    with pytest.raises(UsageError, match="capacity: "):
        goal.check()
