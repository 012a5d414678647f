"""Fates of streams, from rows made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.model.experiment import RequestRow
from testbed.outage import fate, longest_gap


def row(sent_s: float, *, took_s: float = 0.01, error: str = "", status: int = 200, connection: int = 0) -> RequestRow:
    status = 0 if error and not error.startswith("status") else status
    return RequestRow(
        intended_s=sent_s, sent_s=sent_s, first_byte_s=sent_s + took_s, last_byte_s=sent_s + took_s, status=status,
        bytes=0, connection=connection, error=error,
    )  # fmt: skip


def test_a_stream_that_nothing_touches_has_lost_nothing() -> None:
    """All zero, and the gap is that between two requests."""
    found = fate([row(at / 10) for at in range(20)], event_s=1.0, end_s=2.0, held=False)

    assert (found.failed, found.failed_before, found.broken, found.moved) == (0, 0, 0, 0)
    assert found.recovery_s == 0.0 and found.requests == 10
    assert found.longest_gap_s == pytest.approx(0.1)
    assert found.first_failure_s is None and found.last_success_s == pytest.approx(0.9)


def test_an_outage_is_counted_from_the_event_to_the_first_success_after_the_last_failure() -> None:
    """Requests 1.0 to 1.4 fail, 1.5 is served."""
    rows = [row(at / 10, error="refused" if 10 <= at < 15 else "") for at in range(20)]
    found = fate(rows, event_s=1.0, end_s=2.0, held=False)

    assert (found.failed, found.requests) == (5, 10)
    assert found.recovery_s == pytest.approx(0.51)
    assert found.longest_gap_s == pytest.approx(0.6)  # from the answer at 0.91
    assert found.first_failure_s == pytest.approx(0.0)


def test_what_was_under_way_at_the_event_is_its_victim() -> None:
    """Sent before, failed after; while what had failed before the event was not."""
    rows = [row(0.2, error="reset"), row(0.95, took_s=1.0, error="timeout"), row(1.5)]
    found = fate(rows, event_s=1.0, end_s=2.0, held=False)

    assert (found.failed_before, found.failed, found.requests) == (1, 1, 2)


def test_a_stream_that_is_never_served_again_has_not_recovered() -> None:
    """And its gap lasts to the window's end."""
    found = fate([row(0.5), row(1.5, error="refused")], event_s=1.0, end_s=2.0, held=False)

    assert found.recovery_s is None and found.last_success_s is None
    assert found.longest_gap_s == pytest.approx(1.49)


def test_an_answer_of_any_status_leaves_a_connection_whole() -> None:
    """503 on connection 0; connection 1 is reset, twice."""
    rows = [
        row(1.1, error="status 503", status=503), row(1.1, error="reset", connection=1),
        row(1.3, error="refused", connection=1), row(1.5), row(1.5, connection=1),
    ]  # fmt: skip
    found = fate(rows, event_s=1.0, end_s=2.0, held=True, connections=2, connects=4)

    assert (found.failed, found.broken, found.moved) == (3, 1, 0)


def test_connections_that_are_opened_anew_without_a_failure_have_moved() -> None:
    """Two held, three opened, nothing failed: one was told to go, and went."""
    found = fate([row(1.1), row(1.2, connection=1)], event_s=1.0, end_s=2.0, held=True, connections=2, connects=3)

    assert (found.broken, found.moved) == (0, 1)


@given(st.lists(st.floats(0, 10), max_size=40))
def test_no_gap_is_longer_than_the_window_and_more_successes_never_make_it_longer(times: list[float]) -> None:
    """With the event at 2 and the end at 10."""
    ordered = sorted(times)
    gap = longest_gap(ordered, event_s=2.0, end_s=10.0)

    assert 0 <= gap <= 10.0
    assert longest_gap(sorted([*ordered, 5.0]), event_s=2.0, end_s=10.0) <= gap
