"""The gauge's verdicts on raw probe results."""

from __future__ import annotations

import math

import pytest

from testbed.links.gauge import Probed, judge, percentile
from testbed.model.topology import GilbertElliott, Impairment, Link


def link(a_to_b: Impairment, b_to_a: Impairment | None = None) -> Link:
    return Link(
        a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1", a_to_b=a_to_b, b_to_a=b_to_a or Impairment()
    )


def probed(rtt_ms: float, answered: int = 200, sent: int = 200) -> Probed:
    return Probed(sent=sent, rtts_ns=[round(rtt_ms * 1e6)] * answered)


@pytest.mark.parametrize(("rtt_ms", "within"), [(10.29, True), (10.51, False), (9.49, False), (10.49, True)])
def test_delay_is_judged_by_five_percent(rtt_ms: float, within: bool) -> None:
    """At 10 ms the tolerance is half a millisecond either way."""
    assert judge(link(Impairment(delay_ms=6), Impairment(delay_ms=4)), probed(rtt_ms)).within_tolerance is within


@pytest.mark.parametrize(("rtt_ms", "within"), [(0.49, True), (0.51, False)])
def test_short_delays_are_judged_by_a_floor(rtt_ms: float, within: bool) -> None:
    """Below 6 ms the floor of 0.3 ms counts."""
    assert judge(link(Impairment(delay_ms=0.2)), probed(rtt_ms)).within_tolerance is within


@pytest.mark.parametrize(("answered", "within"), [(180, True), (200, False), (140, False)])
def test_loss_is_judged_by_binomial_bounds(answered: int, within: bool) -> None:
    """10 % of 200 is 20, four sigma are 17."""
    reading = judge(link(Impairment(delay_ms=1, loss=0.1)), probed(1.0, answered))
    assert reading.within_tolerance is within
    assert reading.loss == pytest.approx(1 - answered / 200)


@pytest.mark.parametrize(("rtt_ms", "within"), [(13.4, True), (13.6, False), (6.6, True), (6.4, False)])
def test_jitter_of_both_directions_widens_what_is_within(rtt_ms: float, within: bool) -> None:
    """Half a millisecond for 10 ms, and one standard deviation of each: 1 and 2."""
    asked = link(Impairment(delay_ms=6, jitter_ms=1), Impairment(delay_ms=4, jitter_ms=2))
    assert judge(asked, probed(rtt_ms)).within_tolerance is within


def test_loss_nobody_asked_for_is_not_within() -> None:
    """Two lost of 200 on a link without loss is a broken link."""
    assert not judge(link(Impairment(delay_ms=1)), probed(1.0, 198)).within_tolerance


def test_both_directions_lose() -> None:
    """Asked loss of the round trip is that of two lines in a row."""
    assert judge(link(Impairment(loss=0.1), Impairment(loss=0.5)), probed(0, 90)).asked_loss == pytest.approx(0.55)


def test_bursty_loss_may_spread_wider() -> None:
    """The same count is out of bounds for independent loss and within for bursts of the same mean."""
    bursty = link(Impairment(gilbert_elliott=GilbertElliott(p=0.01, r=0.09)))
    assert judge(bursty, probed(0.01, 155)).within_tolerance
    assert not judge(link(Impairment(loss=0.1)), probed(0.01, 155)).within_tolerance


def test_a_slow_line_adds_the_probe_itself() -> None:
    """98 bytes at 0.1 Mbit/s take 7.84 ms, which is asked for."""
    assert judge(link(Impairment(rate_mbit=0.1)), probed(7.9)).within_tolerance


def test_a_silent_link_is_not_within() -> None:
    """No answer at all gives no percentile and no tolerance."""
    reading = judge(link(Impairment(delay_ms=1)), probed(0, 0))
    assert math.isnan(reading.rtt_p50_ms)
    assert not reading.within_tolerance


def test_a_link_that_is_to_lose_all_is_within_when_silent() -> None:
    """Without answers the loss alone is judged; half of it asked does not excuse silence."""
    assert judge(link(Impairment(delay_ms=1, loss=1.0)), probed(0, 0)).within_tolerance
    assert not judge(link(Impairment(delay_ms=1, loss=0.5)), probed(0, 0)).within_tolerance


def test_percentile_is_nearest_rank() -> None:
    """Of ten, p50 is the fifth and p90 the ninth."""
    assert [percentile(range(1, 11), share) for share in (0.5, 0.9)] == [5, 9]
