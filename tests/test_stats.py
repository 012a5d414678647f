"""Statistics against numpy, against textbook values, and against what they promise."""

from __future__ import annotations

import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.stats import (
    aa_check,
    bootstrap_interval,
    median,
    paired_differences,
    paired_interval,
    paired_ratios,
    percentile,
    percentiles,
    wilson_interval,
)

numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=1, max_size=200), st.floats(0, 100))
def test_percentile_is_numpys_linear_one(values: list[float], percent: float) -> None:
    """Definition 7 of Hyndman & Fan, as numpy computes it."""
    assert percentile(values, percent) == pytest.approx(float(numpy.percentile(values, percent)), rel=1e-9, abs=1e-6)


@given(st.lists(numbers, min_size=1), st.lists(st.floats(0, 100), min_size=2))
def test_percentiles_rise_and_stay_within_the_values(values: list[float], percents: list[float]) -> None:
    """A higher percent never gives a lower value, and none lies outside the data."""
    found = percentiles(values, sorted(percents))

    assert found == sorted(found)
    assert min(values) <= found[0] and found[-1] <= max(values)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 100.1), ([1.0], float("nan"))])
def test_percentile_of_nothing_or_outside_is_refused(values: list[float], percent: float) -> None:
    """No silent zero for an empty trial."""
    with pytest.raises(ValueError):
        percentile(values, percent)


def test_differences_pair_by_round_and_skip_lonely_rounds() -> None:
    """A round in which one of the two was left out counts for neither."""
    plane, none = {1: 5.0, 2: 7.0, 4: 9.0}, {4: 1.0, 1: 2.0, 3: 0.0}

    assert paired_differences(plane, none) == [3.0, 8.0]
    assert paired_ratios({1: 6.0, 2: 1.0}, {1: 2.0, 2: 0.0}) == [3.0]


@given(st.lists(numbers, min_size=1, max_size=12), st.integers())
def test_bootstrap_interval_is_seeded_and_holds_the_data_range(values: list[float], seed: int) -> None:
    """The same seed gives the same interval; its ends lie within the data."""
    first = bootstrap_interval(values, draw=random.Random(seed).random, resamples=50)

    assert first == bootstrap_interval(values, draw=random.Random(seed).random, resamples=50)
    assert min(values) <= first.low <= first.high <= max(values)
    assert first.estimate == median(values)


def test_bootstrap_interval_agrees_with_numpys_resampling() -> None:
    """An independent percentile bootstrap of the same values ends at about the same ends."""
    values = [random.Random(number).gauss(10, 2) for number in range(31)]
    ours = bootstrap_interval(values, draw=random.Random(1).random)
    resampled = numpy.median(numpy.random.default_rng(1).choice(values, (10_000, len(values))), axis=1)

    low, high = numpy.percentile(resampled, [2.5, 97.5])
    assert ours.low == pytest.approx(low, abs=0.3)
    assert ours.high == pytest.approx(high, abs=0.3)


def test_bootstrap_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """200 samples of 20 values: between 88 % and 99 % of the 95 % intervals hold the true median."""
    held = 0
    for seed in range(200):
        chance = random.Random(seed)
        values = [chance.gauss(5, 1) for _ in range(20)]
        held += bootstrap_interval(values, draw=chance.random, resamples=300).holds(5.0)

    assert 0.88 <= held / 200 <= 0.99


def test_a_shift_common_to_a_round_cancels_in_pairs() -> None:
    """Rounds that differ by seconds do not widen the interval of a constant difference."""
    moods = [0.0, 900.0, -40.0, 7000.0, 12.0, 3.0]
    none = dict(enumerate(moods))
    plane = {number: mood + 2.0 for number, mood in none.items()}

    interval = paired_interval(plane, none, draw=random.Random(1).random, resamples=200)
    assert interval is not None
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((2.0, 2.0, 2.0))
    assert paired_interval({1: 1.0}, {2: 1.0}, draw=random.random) is None


def test_aa_check_tells_noise_from_a_bias() -> None:
    """Noise around zero is consistent; a label that is always slower is not, and the resolution says by how much."""
    none = dict.fromkeys(range(8), 10.0)
    noise = {n: 10.0 + (-1) ** n * 0.5 for n in range(8)}
    biased = dict.fromkeys(range(8), 11.0)

    fair = aa_check(none, noise, draw=random.Random(1).random)
    unfair = aa_check(none, biased, draw=random.Random(1).random)
    assert fair is not None and fair.consistent and fair.resolution == pytest.approx(0.5)
    assert unfair is not None and not unfair.consistent and unfair.resolution == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    """The four examples with which Newcombe compared seven methods."""
    interval = wilson_interval(successes, trials)

    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_a_proportion_and_mirrors(case: tuple[int, int]) -> None:
    """It holds the observed share, stays within 0..1, and failures mirror successes."""
    successes, trials = case
    interval, mirrored = wilson_interval(successes, trials), wilson_interval(trials - successes, trials)

    assert 0 <= interval.low <= successes / trials <= interval.high <= 1
    assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))
