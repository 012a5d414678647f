"""Statistics against numpy, against textbook values, and against what they promise."""

from __future__ import annotations

import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.stats import (
    MIN_ROUNDS_TO_CLAIM,
    aa_check,
    block_interval,
    bootstrap_interval,
    effect,
    median,
    paired_differences,
    paired_interval,
    paired_ratios,
    percentile,
    percentiles,
    pooled,
    shift_interval,
    trimmed_mean,
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


# -- few rounds, and claims -------------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=1, max_size=40))
def test_trimmed_mean_is_the_mean_of_the_middle(values: list[float]) -> None:
    """A fifth at each end is left out, rounded down: one of five to nine values, none of fewer."""
    cut = len(values) // 5
    middle = sorted(values)[cut : len(values) - cut]

    assert trimmed_mean(values) == pytest.approx(sum(middle) / len(middle), rel=1e-9, abs=1e-6)


def test_a_hiccup_in_one_round_moves_nothing() -> None:
    """Two rounds of twelve on which the host did something else; the mean would be 17 and 83 times as large."""
    calm = [0.9, 1.0, 1.1, 0.95, 1.05, 1.0, 0.98, 1.02, 0.97, 1.03]

    assert trimmed_mean([*calm, 200.0, 1000.0]) == pytest.approx(1.0, abs=0.05)
    found = block_interval([*calm, 200.0, 1000.0])
    assert found.holds(1.0) and found.high < 1.3


@pytest.mark.parametrize("rounds", [6, 8, 12, 20])
@pytest.mark.parametrize("noise", ["gauss", "hiccups"])
def test_block_interval_keeps_its_five_percent_over_few_rounds(rounds: int, noise: str) -> None:
    """600 samples around zero: no more than 7 % of the intervals miss it, which the percentile bootstrap of the median
    does with 8 rounds of Gaussian noise (the last assertion: the test could fail)."""
    missed = plain = 0
    for seed in range(600):
        chance = random.Random(seed)

        def one(chance: random.Random = chance) -> float:
            return chance.gauss(0, 1) + (chance.expovariate(0.1) if noise == "hiccups" and chance.random() < 0.1 else 0)

        values = [one() - one() for _ in range(rounds)]
        missed += not block_interval(values, seed=seed, resamples=600).holds(0.0)
        if (rounds, noise) == (8, "gauss"):
            plain += not bootstrap_interval(values, draw=chance.random, resamples=300).holds(0.0)

    assert missed <= 0.07 * 600
    assert plain > 0.06 * 600 or (rounds, noise) != (8, "gauss")


@given(st.lists(numbers, min_size=1, max_size=12), st.integers(0, 2**32))
def test_block_interval_is_seeded_and_holds_its_estimate(values: list[float], seed: int) -> None:
    """The same seed gives the same interval; one value has none."""
    first = block_interval(values, seed=seed, resamples=50)

    assert first == block_interval(values, seed=seed, resamples=50)
    assert first.low <= first.estimate <= first.high or first.estimate == pytest.approx(first.low)
    assert (len(values) > 1) or (first.low, first.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("rounds", "left"), [(6, 1), (7, 3)])
def test_few_rounds_have_the_interval_of_signed_ranks(rounds: int, left: int) -> None:
    """As tables of Wilcoxon's signed ranks have it at 5 %: T of 0, and of 2 or less, is lopsided."""
    values = [float(2**number) for number in range(rounds)]
    averages = sorted((a + b) / 2 for n, a in enumerate(values) for b in values[n:])
    found = block_interval(values)

    assert (found.low, found.high) == (averages[left - 1], averages[-left])


def test_one_odd_round_of_six_makes_no_interval_beyond_the_rounds() -> None:
    """A resample without any spread but the odd one's would make it several times as wide."""
    found = block_interval([1.0, 1.01, 1.0, 1.02, 0.99, 9.0])

    assert (found.low, found.high) == (0.99, 9.0)


def test_more_confidence_than_few_rounds_have_is_not_made_up_from_ranks() -> None:
    """Six rounds are all on one side by chance once in 32: 98 % takes more than their range."""
    found = block_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], confidence=0.98)

    assert found.low < 1.0 < 6.0 < found.high


def test_more_confidence_is_wider() -> None:
    """What looking several times is paid with."""
    values = [random.Random(number).gauss(0, 1) for number in range(20)]
    plain, careful = block_interval(values), block_interval(values, confidence=0.98)

    assert careful.low < plain.low < plain.high < careful.high


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Tables of Mann & Whitney's U: 2 and less is too lopsided for 5 and 5, 5 and less for 6 and 6.
        ([0.0] * 5, [10.0, 20.0, 30.0, 40.0, 50.0], 10.0, 50.0),
        ([0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1.0, 6.0),
        ([0.0, 100.0], [1.0, 2.0, 3.0], -math.inf, math.inf),
    ],
)
def test_few_rounds_of_two_runs_are_ranked(first: list[float], second: list[float], low: float, high: float) -> None:
    """Between which of all differences the shift lies, by the tables; two rounds say nothing."""
    found = shift_interval(first, second)

    assert (found.low, found.high) == (low, high)


def test_the_rank_sums_are_those_of_the_tables() -> None:
    """Critical values of U at 5 %, two-sided, and one more: from so manieth difference to so manieth from the end."""
    from testbed.stats import _rank_sum_cut

    tables = {(4, 4): 1, (5, 5): 3, (6, 6): 6, (6, 8): 9, (7, 7): 9, (8, 8): 14, (10, 10): 24, (5, 12): 12}
    assert {sizes: _rank_sum_cut(*sizes, 0.95) for sizes in tables} == tables
    assert _rank_sum_cut(3, 3, 0.95) == 0  # the most lopsided of 20 ways comes by chance in a tenth


@pytest.mark.parametrize("rounds", [6, 12])
def test_two_runs_of_the_same_differ_in_a_twentieth_of_cases(rounds: int) -> None:
    """Over 400 made-up pairs of runs, as it promises; and a shift of two standard deviations is mostly found."""
    chance = random.Random(5)
    missed = found = 0
    for _ in range(400):
        first, second = ([chance.gauss(0, 1) for _ in range(rounds)] for _ in range(2))
        missed += not shift_interval(first, second, resamples=500).holds(0)
        found += shift_interval(first, [x + 2 for x in second], resamples=500).low > 0

    assert missed <= 33  # 5 % of 400 and three standard deviations
    assert found > 300


def test_a_shift_has_the_sign_of_the_change() -> None:
    """The second is slower: what is added is positive, whichever method the rounds are enough for."""
    for rounds in (6, 12):
        values = [n / 10 for n in range(rounds)]
        found = shift_interval(values, [x + 5 for x in values])
        assert 4 < found.low < found.estimate < found.high < 6
        assert shift_interval([x + 5 for x in values], values).high < -4


def test_the_pair_pooled_is_one_baseline() -> None:
    """The geometric mean where both halves are, the one that there is where one was left out."""
    assert pooled({1: 1.0, 2: 5.0}, {1: 4.0, 3: 7.0}) == {1: 2.0, 2: 5.0, 3: 7.0}


def noisy(level: float, seed: int, rounds: int = 12, spread: float = 0.01) -> dict[int, float]:
    chance = random.Random(seed)
    return {number: level * math.exp(chance.gauss(0, spread)) for number in range(rounds)}


def test_a_claim_takes_an_interval_beyond_one_and_an_effect_beyond_the_pairs_own() -> None:
    """The same +10 %: claimed beside a quiet pair, below the resolution of one whose halves differ by 20 %, not at all
    without a pair, and not with five rounds."""
    plane, first, second = noisy(1.1, 1), noisy(1.0, 2), noisy(1.0, 3)
    quiet = effect(plane, first, second)
    beside_bias = effect(plane, first, {n: 1.2 * v for n, v in second.items()})
    alone = effect(plane, first, {})
    short = effect({n: v for n, v in plane.items() if n < MIN_ROUNDS_TO_CLAIM - 1}, first, second)
    assert quiet and beside_bias and alone and short

    assert quiet.claimed and quiet.share == pytest.approx(0.1, abs=0.02) and quiet.resolution < 0.03
    assert not beside_bias.claimed and beside_bias.resolution > 0.18
    assert alone.resolution is None and "no A/A pair" in alone.why_not
    assert short.why_not == "5 rounds; a claim takes 6"
    assert effect({}, first, second) is None


def test_noise_alone_is_no_claim() -> None:
    """A third label for the same thing: its interval holds 1."""
    same = effect(noisy(1.0, 4), noisy(1.0, 5), noisy(1.0, 6))

    assert same is not None and not same.claimed
    assert same.why_not in ("the interval holds no difference",) or "below the resolution" in same.why_not


def test_half_as_fast_and_twice_as_fast_are_the_same_distance() -> None:
    """Ratios are averaged as logarithms."""
    base = dict.fromkeys(range(8), 10.0)
    swinging = {n: 20.0 if n % 2 else 5.0 for n in range(8)}
    found = effect(swinging, base, base)

    assert found is not None and found.ratio.estimate == pytest.approx(1.0)
    assert found.ratio.low == pytest.approx(1 / found.ratio.high)


def test_an_effect_is_told_with_its_interval_and_the_resolution_beside_it() -> None:
    """One line for a table, in percent."""
    found = effect(noisy(0.9, 1), noisy(1.0, 2), noisy(1.0, 3))

    assert found is not None
    assert found.text.startswith("−")
    assert found.text.endswith(f"A/A within ±{found.resolution * 100:.1f} %")


def test_an_interval_without_end_is_told_as_none() -> None:
    """One round has no spread: its ratio stands alone."""
    found = effect({1: 2.2}, {1: 2.0}, {1: 2.0})

    assert found is not None and found.text == "+10.0 % [–], A/A tells nothing"


@pytest.mark.parametrize("values", ([0.3], [0.3, 0.2], [0.3, 0.3]))
def test_one_round_or_two_leave_everything_open(values: list[float]) -> None:
    """A width of nothing would be the narrowest claim of all, from the least that was seen."""
    found = block_interval(values)

    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.estimate == pytest.approx(sum(values) / len(values))
