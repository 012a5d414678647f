"""When a trial beside a neighbour counts."""

from __future__ import annotations

import pytest

from testbed.beside import Neighbour, covered
from testbed.model.experiment import LoadRecord, Measurement, RequestRow
from testbed.standing import with_rows
from testbed.trial import Outcome


def request(at_s: float, error: str = "") -> RequestRow:
    return RequestRow(
        intended_s=at_s, sent_s=at_s, first_byte_s=at_s + 0.001, last_byte_s=at_s + 0.002, status=0 if error else 200,
        bytes=1, connection=0, error=error,
    )  # fmt: skip


def row(metric: str) -> Measurement:
    return Measurement(
        round=1, trial="t", block=1, plane="none", component="client", metric=metric, unit="ms", value=1.0
    )


OUTCOME = Outcome(
    measurements=(row("latency_p50"), row("cpu_per_1000_requests")),
    requests=tuple(request(10 + n / 10) for n in range(10)),
    reasons=(),
)


def record(begin_s: float, end_s: float, *errors: str) -> LoadRecord:
    rows = tuple(request(begin_s, error) for error in errors)
    return LoadRecord(rows=rows, started_s=begin_s, ended_s=end_s, cpu_s=0.1)


def test_a_neighbour_that_was_there_all_the_while_counts() -> None:
    """Its rate stands beside; what a request cost does not, for its own work is in that."""
    judged = Neighbour(record=record(9.0, 12.0, "", "", "")).judged(OUTCOME)
    values = {m.metric: m.value for m in judged.measurements}

    assert not judged.reasons and all(m.valid for m in judged.measurements)
    assert values["beside_rate"] == pytest.approx(1.0) and values["beside_p99"] == pytest.approx(2.0)
    assert "cpu_per_1000_requests" not in values


@pytest.mark.parametrize(
    ("neighbour", "reason"),
    [
        (Neighbour(record=record(10.45, 12.0, "")), "covered 50% of the window"),
        (Neighbour(record=record(9.0, 12.0, "reset", "reset", "")), "33% of its requests answered"),
        (Neighbour(failure="no sandbox"), "failed: no sandbox"),
        (Neighbour(), "gave no record"),
    ],
    ids=["late", "a casualty itself", "not begun", "gone"],
)
def test_a_trial_without_its_neighbour_does_not_count(neighbour: Neighbour, reason: str) -> None:
    """And says why, in every row."""
    judged = neighbour.judged(OUTCOME)

    assert any(reason in told for told in judged.reasons)
    assert all(not m.valid and reason in m.reason for m in judged.measurements)


def test_how_much_of_the_window_it_covered() -> None:
    """By the requests that were due, not by the clock of either."""
    assert covered(record(10.0, 11.0), OUTCOME) == 1.0
    assert covered(record(10.25, 10.55), OUTCOME) == pytest.approx(0.3)
    assert covered(record(0.0, 1.0), OUTCOME) == 0.0


def test_a_trial_keeps_its_own_reasons() -> None:
    """More rows, or more reasons, never make an invalid trial valid."""
    bad = Outcome(measurements=(row("latency_p50"),), requests=(), reasons=("late",))
    judged = with_rows(bad, [("testbed", "x", "", 1.0)], ["alone"])

    assert judged.reasons == ("late", "alone")
    assert {m.reason for m in judged.measurements} == {"late; alone"}
