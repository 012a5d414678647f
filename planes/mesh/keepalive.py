"""When an HBONE connection is pinged and when it is given up: every 10 s, with 20 s to answer (facts/hbone 1.6)."""

from __future__ import annotations

from enum import StrEnum

PING_EVERY_S = 10.0
PING_TIMEOUT_S = 20.0


class Step(StrEnum):
    PING = "ping"
    WAIT = "wait"
    DROP = "drop"


def step(now_s: float, ping_sent_s: float | None) -> Step:
    """`ping_sent_s` is when the ping went out that is still unanswered; None when there is none."""
    if ping_sent_s is None:
        return Step.PING
    return Step.DROP if now_s - ping_sent_s >= PING_TIMEOUT_S else Step.WAIT
