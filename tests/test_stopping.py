"""When a run has seen enough, and what it costs in false alarms to ask too often."""

from __future__ import annotations

import random

import pytest

from testbed.errors import UsageError
from testbed.stats import Interval, block_interval
from testbed.stopping import POCOCK, StopRule, half_width

NARROW = Interval(low=0.99, estimate=1.0, high=1.01, rounds=8)
WIDE = Interval(low=0.9, estimate=1.0, high=1.1, rounds=8)
NOTHING = Interval(low=float("nan"), estimate=float("nan"), high=float("nan"), rounds=8)


def test_looks_are_few_equally_far_apart_and_end_with_the_last_round() -> None:
    """And none comes before a claim could be made at all."""
    for most in range(12, 200):
        looks = StopRule(most_rounds=most, until_width=0.02).looks
        gaps = [after - before for before, after in zip((0, *looks), looks, strict=False)]

        assert looks[-1] == most
        assert len(looks) <= len(POCOCK)
        assert looks[0] >= 6
        assert max(gaps) - min(gaps) <= 1
    assert StopRule(most_rounds=40).looks == (40,)


def test_more_looks_take_wider_intervals() -> None:
    """One look is the plain 95 %; five are as wide as Pocock's boundary."""
    assert StopRule(most_rounds=40).confidence == pytest.approx(0.95, abs=1e-4)
    assert StopRule(most_rounds=12, until_width=0.1).confidence == pytest.approx(0.9706, abs=1e-4)
    assert StopRule(most_rounds=40, until_width=0.1).confidence == pytest.approx(0.9842, abs=1e-4)


def test_it_stops_at_a_look_once_every_interval_is_narrow() -> None:
    """Not between looks, not while one is wide or missing, at the latest when all rounds are done."""
    rule = StopRule(most_rounds=40, until_width=0.02)

    assert "narrow enough after 8 rounds" in rule.after_round(8, {"a": NARROW, "b": NARROW}, elapsed_s=0)
    assert rule.after_round(9, {"a": NARROW}, elapsed_s=0) == ""
    assert rule.after_round(8, {"a": NARROW, "b": WIDE}, elapsed_s=0) == ""
    assert rule.after_round(8, {"a": NARROW, "b": None}, elapsed_s=0) == ""
    assert rule.after_round(8, {"a": NARROW, "b": NOTHING}, elapsed_s=0) == ""
    assert rule.after_round(8, {}, elapsed_s=0) == ""
    assert "all 40 rounds" in rule.after_round(40, {"a": WIDE}, elapsed_s=0)
    assert StopRule(most_rounds=40).after_round(8, {"a": NARROW}, elapsed_s=1e9) == ""


def test_no_round_begins_that_would_end_beyond_the_budget() -> None:
    """Judged by the mean of those that were; the first is always measured."""
    rule = StopRule(most_rounds=40, budget_s=100)

    assert rule.after_round(3, {}, elapsed_s=75) == ""
    assert "3 rounds took 76 of 100 s" in rule.after_round(3, {}, elapsed_s=76)
    assert rule.after_round(0, {}, elapsed_s=200) == ""


def test_the_width_is_a_share_of_the_ratio() -> None:
    """A plane twice as slow is as narrow at ±4 % of the baseline as another at ±2 %."""
    assert half_width(Interval(low=1.96, estimate=2.0, high=2.04, rounds=9)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (StopRule(most_rounds=0), "least is 1"),
        (StopRule(most_rounds=11, until_width=0.1), "12 rounds at most or more"),
        (StopRule(most_rounds=40, until_width=2), "0.02 is ±2 %"),
        (StopRule(most_rounds=40, budget_s=0), "no round begin"),
    ],
)
def test_a_rule_that_cannot_be_says_why(rule: StopRule, said: str) -> None:
    """Before anything is measured."""
    with pytest.raises(UsageError, match=said):
        rule.check()


def false_alarms(rule: StopRule, confidence: float, *, greedy: bool, repeats: int = 400) -> int:
    """Runs of rounds that differ by nothing but noise, at whose end the interval excludes zero.

    Noise has heavy tails (one trial in twenty meets a hiccup). `greedy` also ends at the first interval
    that excludes zero, as somebody would who wants to find something.
    """
    wrong = 0
    for seed in range(repeats):
        draw = random.Random(seed)

        def trial(draw: random.Random = draw) -> float:
            return draw.gauss(0, 0.02) + (draw.expovariate(1 / 0.2) if draw.random() < 1 / 20 else 0.0)

        values = [trial() - trial() for _ in range(rule.most_rounds)]
        for look in rule.looks:
            found = block_interval(values[:look], seed=seed, confidence=confidence, resamples=500)
            away = not found.holds(0.0)
            if (found.high - found.low) / 2 <= (rule.until_width or 0) or (greedy and away):
                break
        wrong += away
    return wrong


def test_looking_again_and_again_raises_no_more_false_alarms_than_one_look() -> None:
    """In 400 runs at most 5 % false alarms, even for somebody who stops at the first difference; the plain 95 %
    interval, looked at as often, is wrong in more than 8 %: so the test could fail."""
    rule = StopRule(most_rounds=40, until_width=0.01)

    assert false_alarms(rule, rule.confidence, greedy=False) <= 20
    assert false_alarms(rule, rule.confidence, greedy=True) <= 20
    assert false_alarms(rule, 0.95, greedy=True) >= 32
