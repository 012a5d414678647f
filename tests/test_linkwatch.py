"""A link under load beside what was asked of it, from echoes and the wire's counters; pure."""

from __future__ import annotations

import pytest

from testbed import linkwatch
from testbed.fidelity import Gates, Level, Readings, judge
from testbed.model.topology import Impairment, Link

PLAIN = Impairment(delay_ms=1.0)
NAMES = ("received", "lost", "tail_dropped", "overflowed", "stale", "write_errors", "latest_us")


def link(**impairment: float) -> Link:
    shaped = Impairment(**{"delay_ms": 1.0, **impairment})
    return Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1", a_to_b=shaped, b_to_a=PLAIN)


def counted(**changed: int) -> dict[str, dict[str, int]]:
    return {"a_to_b": {**dict.fromkeys(NAMES, 0), **changed}, "b_to_a": dict.fromkeys(NAMES, 0)}


def level(found: linkwatch.LinkWindow) -> Level:
    return judge(Readings(during=[found]), Gates()).level


def test_frames_lost_as_asked_pass() -> None:
    """One way of 10,000 frames at 2 %: 200, give or take 14."""
    lossy = link(loss=0.02)
    found = linkwatch.window(lossy, [2_000_000], counted(received=100), counted(received=10_100, lost=210))

    assert (found.received, found.lost, found.asked_lost) == (10_000, 210, pytest.approx(200))
    assert found.deviation == pytest.approx(14.0)
    assert level(found) is Level.PASS
    assert level(linkwatch.window(lossy, [2_000_000], counted(), counted(received=10_000, lost=300))) is Level.FAIL


def test_only_a_new_worst_lateness_is_this_trials() -> None:
    """The wire keeps the worst since it began."""
    old = linkwatch.window(link(), [2_000_000], counted(latest_us=9000), counted(latest_us=9000))
    new = linkwatch.window(link(), [2_000_000], counted(latest_us=9000), counted(latest_us=12_000))

    assert (old.late_ms, new.late_ms) == (0.0, 12.0)


def test_a_full_queue_is_asked_for_only_with_a_rate() -> None:
    """Without one nothing may be dropped at its tail."""
    dropped = counted(received=100, tail_dropped=7)

    assert linkwatch.window(link(), [2_000_000], counted(), dropped).dropped_unasked == 7
    assert linkwatch.window(link(rate_mbit=10), [2_000_000], counted(), dropped).dropped_unasked == 0


def test_a_maker_that_does_not_count_leaves_loss_open() -> None:
    """Its RTT is judged all the same."""
    found = linkwatch.window(link(), [2_000_000, 2_050_000, 2_100_000], {}, {})

    assert found.received is None and found.rtt_p50_ms == pytest.approx(2.05)
    assert found.asked_rtt_ms == 2.0 and found.tolerance_ms == pytest.approx(0.3)


def test_bytes_are_those_of_the_device() -> None:
    """Received ones: what came out of the link."""
    text = "head\nhead\n  to-b: 77 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0\n"

    assert linkwatch.received_bytes(text, "to-b") == 77
    with pytest.raises(ValueError, match="no device to-c"):
        linkwatch.received_bytes(text, "to-c")
