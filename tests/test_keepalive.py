"""The keepalive decision, with the clock as a number."""

from __future__ import annotations

import pytest

from planes.mesh.keepalive import PING_EVERY_S, PING_TIMEOUT_S, Step, step


@pytest.mark.parametrize(
    ("now_s", "sent_s", "expected"),
    [(100.0, None, Step.PING), (110.0, 100.0, Step.WAIT), (119.9, 100.0, Step.WAIT), (120.0, 100.0, Step.DROP)],
)
def test_a_ping_has_twenty_seconds(now_s: float, sent_s: float | None, expected: Step) -> None:
    """While one is unanswered no other goes out, and at twenty seconds the connection is given up."""
    assert step(now_s, sent_s) is expected


def test_a_silent_peer_is_dropped_at_the_third_beat() -> None:
    """Driven as the session drives it: ping at 10 s, wait at 20 s, drop at 30 s."""
    sent_s, seen = None, []
    for beat in (1, 2, 3):
        now_s = beat * PING_EVERY_S
        seen.append(step(now_s, sent_s))
        sent_s = now_s if seen[-1] is Step.PING else sent_s
    assert seen == [Step.PING, Step.WAIT, Step.DROP]
    assert PING_TIMEOUT_S == 2 * PING_EVERY_S
