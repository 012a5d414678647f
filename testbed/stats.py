"""Percentiles, paired differences over rounds, and how sure one may be of them. Pure; each formula with its source.

A round, not a request, is what repeats: requests of one trial share its luck, so intervals resample rounds (Kalibera
& Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013). Chance comes in as `draw`, uniform in [0, 1), such as
`random.Random(seed).random`, or as a seed: the same seed gives the same interval. What each method was seen to promise,
and why this one was taken, is in docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
TRIM = 0.2
MIN_ROUNDS_TO_CLAIM = 6
"""With five, even signs that all agree come by chance once in 16 (2·2^-5): no rule can keep 5 %."""
FEW = 7
"""Rounds up to which intervals are by signed ranks: they are no less exact later, but two odd rounds of twelve reach
into them, and not into a trimmed mean's."""
Draw = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    low: float
    estimate: float
    high: float
    rounds: int
    """How many values (or trials) it rests on."""
    confidence: float = 0.95

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class AACheck:
    """What the testbed says of two labels for the same thing."""

    difference: Interval
    consistent: bool
    """The interval holds zero: no difference was seen where there is none."""
    resolution: float
    """The end of the interval farther from zero: a smaller difference between planes must not be claimed."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks: h = (n-1)p/100, x[⌊h⌋] + (h-⌊h⌋)(x[⌊h⌋+1] - x[⌊h⌋]).

    Definition 7 of Hyndman & Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50(4), 1996;
    numpy's and pandas' default. Raises ValueError for no values or a percent outside 0..100.
    """
    return percentiles(values, [percent])[0]


def percentiles(values: Sequence[float], percents: Sequence[float]) -> list[float]:
    """Several of the same values, sorted once."""
    if not values:
        raise ValueError("percentile of no values")
    ordered = sorted(values)
    return [_interpolate(ordered, percent) for percent in percents]


def _interpolate(ordered: Sequence[float], percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent!r} is outside 0..100")
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    if below + 1 >= len(ordered):
        return ordered[-1]
    low, high = ordered[below], ordered[below + 1]
    # The two ends are kept exact, and no result leaves [low, high] by rounding.
    return min(max(low + (rank - below) * (high - low), low), high)


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def paired_differences(plane: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """plane - baseline in each round that has both, in order of rounds.

    Pairing removes what a round's cells share, such as the machine's mood (randomised multiple interleaved trials:
    Abedi & Brecht, "Conducting Repeatable Experiments in Highly Variable Cloud Computing Environments", ICPE 2017).
    """
    return [plane[number] - baseline[number] for number in sorted(plane.keys() & baseline.keys())]


def paired_ratios(plane: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """plane / baseline in each round that has both and whose baseline is not zero."""
    return [plane[n] / baseline[n] for n in sorted(plane.keys() & baseline.keys()) if baseline[n]]


def bootstrap_interval(
    values: Sequence[float],
    *,
    draw: Draw,
    statistic: Callable[[Sequence[float]], float] = median,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap of `statistic`: n values drawn n times with replacement, `resamples` times over.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), §13.3. With few rounds it is honest only up to a point:
    all of n values on one side of the true median has probability 2·2^-n, so five rounds cannot carry more than 94 %.
    """
    if not values:
        raise ValueError("an interval over no rounds")
    _check_confidence(confidence)
    size = len(values)
    resampled = [statistic([values[int(draw() * size)] for _ in range(size)]) for _ in range(resamples)]
    tail = (1 - confidence) / 2 * 100
    low, high = percentiles(resampled, [tail, 100 - tail])
    return Interval(low=low, estimate=statistic(values), high=high, rounds=size, confidence=confidence)


def paired_interval(
    plane: Mapping[int, float], baseline: Mapping[int, float], *, draw: Draw, resamples: int = RESAMPLES
) -> Interval | None:
    """Median of the paired differences with its bootstrap interval; None when no round has both."""
    differences = paired_differences(plane, baseline)
    return bootstrap_interval(differences, draw=draw, resamples=resamples) if differences else None


def aa_check(
    first: Mapping[int, float], second: Mapping[int, float], *, draw: Draw, resamples: int = RESAMPLES
) -> AACheck | None:
    """The same plane measured under two names in every round; None when no round has both."""
    difference = paired_interval(second, first, draw=draw, resamples=resamples)
    if difference is None:
        return None
    return AACheck(
        difference=difference,
        consistent=difference.holds(0.0),
        resolution=max(abs(difference.low), abs(difference.high)),
    )


def trimmed_mean(values: Sequence[float]) -> float:
    """Mean of the middle: a fifth of the values is left out at each end.

    Nearly as sharp as the mean where noise is tame, nearly as deaf to hiccups of the host as the median (Wilcox,
    Introduction to Robust Estimation and Hypothesis Testing, 3rd ed. 2012, §3.3).
    """
    if not values:
        raise ValueError("a mean of no values")
    return float(_trimmed(np.sort(np.asarray(values, dtype=float))))


def _trimmed(ordered: np.ndarray) -> np.ndarray:
    size = ordered.shape[-1]
    cut = int(TRIM * size)
    return ordered[..., cut : size - cut].mean(axis=-1)


def _standard_error(ordered: np.ndarray) -> np.ndarray:
    """Of the trimmed mean: s_w√(n-1)/√(h(h-1)), s_w of the winsorised values, h of n kept.

    Yuen, "The Two-Sample Trimmed t for Unequal Population Variances", Biometrika 61, 1974.
    """
    size = ordered.shape[-1]
    cut = int(TRIM * size)
    kept = size - 2 * cut
    drawn_in = np.clip(ordered, ordered[..., cut, None], ordered[..., size - cut - 1, None])
    return drawn_in.std(axis=-1, ddof=1) * math.sqrt((size - 1) / (kept * (kept - 1)))


def block_interval(
    values: Sequence[float], *, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Trimmed mean over rounds; up to FEW rounds with the interval of exact signed ranks, from then on with the
    symmetric studentised bootstrap: t̂ ± q·ŝ, q a quantile of |t* - t̂|/s*.

    Hall, "On Symmetric Bootstrap Confidence Intervals", JRSS B 50, 1988; with trimmed means Wilcox 2012, §4.4. Over 6
    to 40 rounds both kept their 5 % where the percentile bootstrap of the median missed in 5 to 10 % and BCa in 5 to
    12 %; over few rounds ranks find more, and one odd round does not make an interval of many times the rounds' range
    (docs/statistics.md). Below MIN_ROUNDS_TO_CLAIM it is that range, which holds less than it is asked for. Infinite
    for one value or two: two resampled have one mean, or no spread.
    """
    if not values:
        raise ValueError("an interval over no rounds")
    _check_confidence(confidence)
    ordered = np.sort(np.asarray(values, dtype=float))
    size, middle = len(ordered), float(_trimmed(ordered))
    if size < 3:
        return Interval(low=-math.inf, estimate=middle, high=math.inf, rounds=size, confidence=confidence)
    if size <= FEW and (ranked := _signed_ranks(ordered, confidence)):
        low, high = min(ranked[0], middle), max(ranked[1], middle)
        return Interval(low=low, estimate=middle, high=high, rounds=size, confidence=confidence)
    error = float(_standard_error(ordered))
    chance = np.random.Generator(np.random.PCG64(seed))
    resampled = np.sort(ordered[chance.integers(0, size, (resamples, size))], axis=-1)
    middles, errors = _trimmed(resampled), _standard_error(resampled)
    usable = errors > 0  # a resample of one value many times over has no spread to measure by
    if not error > 0:
        low, high = np.quantile(middles, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(low=float(low), estimate=middle, high=float(high), rounds=size, confidence=confidence)
    if not usable.any():
        return Interval(low=-math.inf, estimate=middle, high=math.inf, rounds=size, confidence=confidence)
    reach = float(np.quantile(np.abs(middles[usable] - middle) / errors[usable], confidence)) * error
    return Interval(low=middle - reach, estimate=middle, high=middle + reach, rounds=size, confidence=confidence)


def _signed_ranks(values: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Between which means of two rounds (each with itself, too) the centre lies; None where so few rounds cannot say.

    The Walsh averages beyond which signed ranks would be too lopsided (Hollander & Wolfe, Nonparametric Statistical
    Methods, 2nd ed. 1999, §3.3): exact for what is symmetric around its centre, as differences of a pair are.
    """
    size = len(values)
    ways = [1]  # of which sums of ranks: every rank is on this side or the other
    for rank in range(1, size + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    left, tail = 0, 0
    while 2 * (tail + ways[left]) <= (1 - confidence) * 2**size:
        tail += ways[left]
        left += 1
    if not left and size >= MIN_ROUNDS_TO_CLAIM:
        return None
    first, second = np.triu_indices(size)
    averages = np.sort((values[first] + values[second]) / 2)
    left = max(left, 1)
    return float(averages[left - 1]), float(averages[-left])


def shift_interval(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """By how much `second` is above `first`, whose rounds share nothing: difference of trimmed means; `block_interval`
    for two samples. `rounds` is that of the shorter one.

    Where either has up to FEW rounds, the differences of all pairs beyond which ranks would be too lopsided (Hodges &
    Lehmann 1963; Hollander & Wolfe 1999, §4.3); else symmetric studentised bootstrap, each sample by itself, with
    Yuen's standard error of both. Infinite for two rounds or fewer; below MIN_ROUNDS_TO_CLAIM at best the range.
    """
    _check_confidence(confidence)
    if not first or not second:
        raise ValueError("an interval over no rounds")
    before, after = (np.sort(np.asarray(values, dtype=float)) for values in (first, second))
    size, middle = min(len(before), len(after)), float(_trimmed(after) - _trimmed(before))
    options = {"estimate": middle, "rounds": size, "confidence": confidence}
    if size < 3:
        return Interval(low=-math.inf, high=math.inf, **options)
    error = math.hypot(float(_standard_error(before)), float(_standard_error(after)))
    if size > FEW and error > 0:
        chance = np.random.Generator(np.random.PCG64(seed))
        drawn = [np.sort(v[chance.integers(0, len(v), (resamples, len(v)))], axis=-1) for v in (before, after)]
        errors = np.hypot(_standard_error(drawn[0]), _standard_error(drawn[1]))
        usable = errors > 0
        off = np.abs(_trimmed(drawn[1]) - _trimmed(drawn[0]) - middle)[usable] / errors[usable]
        reach = float(np.quantile(off, confidence)) * error
        return Interval(low=middle - reach, high=middle + reach, **options)
    apart = np.sort(np.subtract.outer(after, before).ravel())
    cut = max(_rank_sum_cut(len(before), len(after), confidence), 1)
    return Interval(low=min(float(apart[cut - 1]), middle), high=max(float(apart[-cut]), middle), **options)


def _rank_sum_cut(first: int, second: int, confidence: float) -> int:
    """How many of all differences, counted from an end, are beyond what ranks allow: the largest c with
    2·P(U < c) ≤ 1 - confidence, U of Mann & Whitney, whose ways are counted exactly: the coefficients of
    ∏ (1 - q^(m+i)) / (1 - q^i), i = 1…n."""
    most, whole = first * second, math.comb(first + second, first)
    counts = [1] + [0] * most
    for i in range(1, second + 1):
        for u in range(most, first + i - 1, -1):
            counts[u] -= counts[u - first - i]
        for u in range(i, most + 1):
            counts[u] += counts[u - i]
    cut, tail = 0, 0
    while 2 * (tail + counts[cut]) <= (1 - confidence) * whole:
        tail += counts[cut]
        cut += 1
    return cut


def pooled(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """Both halves of the A/A pair as one, quieter baseline: their geometric mean where a round has both, else the one.

    A difference to it varies by σ√(1 + 1/2) instead of σ√2, which saves a quarter of the rounds.
    """
    both = {n: math.sqrt(first[n] * second[n]) for n in first.keys() & second.keys()}
    return {**first, **second, **both}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A plane beside its baseline, as a ratio, and what the A/A pair of the same rounds shows by chance."""

    ratio: Interval
    resolution: float | None
    """The far end of the A/A pair's ratio, as a share (0.02: 2 %); None where no round has both halves."""
    aa: Interval | None

    @property
    def share(self) -> float:
        """How much more (or less) than the baseline."""
        return self.ratio.estimate - 1

    @property
    def claimed(self) -> bool:
        """Whether one may say that there is a difference: `why_not` is empty."""
        return not self.why_not

    @property
    def why_not(self) -> str:
        """Why nothing may be claimed, or nothing."""
        if self.ratio.rounds < MIN_ROUNDS_TO_CLAIM:
            rounds = "1 round" if self.ratio.rounds == 1 else f"{self.ratio.rounds} rounds"
            return f"{rounds}; a claim takes {MIN_ROUNDS_TO_CLAIM}"
        if self.aa is None or self.resolution is None:
            return "no A/A pair in these rounds, so no resolution"
        if self.ratio.holds(1.0):
            return "the interval holds no difference"
        if not abs(math.log(self.ratio.estimate)) > math.log1p(self.resolution):
            return "below the resolution: the A/A pair of the same rounds is as far apart"
        return ""

    @property
    def text(self) -> str:
        """`+3.1 % [+2.0, +4.2], A/A within ±1.1 %`."""
        low, middle, high = ((x - 1) * 100 for x in (self.ratio.low, self.ratio.estimate, self.ratio.high))
        # Beyond a hundredfold it is no interval one could use, but what two or three rounds leave open.
        span = f"[{low:+.1f}, {high:+.1f}]" if high < 1e4 else "[–]"
        useful = self.resolution is not None and self.resolution < 1
        beside = "no A/A pair" if self.resolution is None else f"A/A within ±{self.resolution * 100:.1f} %"
        beside = beside if useful or self.resolution is None else "A/A tells nothing"
        return f"{middle:+.1f} % {span}, {beside}".replace("-", "−")


def effect(
    plane: Mapping[int, float],
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    against: Mapping[int, float] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Effect | None:
    """What `plane` adds to the A/A pair's two halves pooled, or to `against` with that pair's resolution; None when no
    round has a value of both.

    Ratios are averaged as logarithms: twice as slow and twice as fast cancel out.
    """
    base = pooled(first, second) if against is None else against
    logs = list(log_ratios(plane, base).values())
    if not logs:
        return None
    options = {"seed": seed, "confidence": confidence, "resamples": resamples}
    twin = list(log_ratios(second, first).values())
    aa = block_interval(twin, **options) if twin else None
    resolution = None if aa is None else math.expm1(min(max(-aa.low, aa.high, 0.0), 700.0))
    return Effect(
        ratio=exponential(block_interval(logs, **options)),
        resolution=resolution,
        aa=None if aa is None else exponential(aa),
    )


def log_ratios(plane: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Of the rounds that have both."""
    shared = sorted(plane.keys() & base.keys())
    return {n: math.log(plane[n] / base[n]) for n in shared if plane[n] > 0 and base[n] > 0}


def exponential(logs: Interval) -> Interval:
    """Of logarithms, as the ratio."""
    low, middle, high = (math.exp(min(x, 700.0)) for x in (logs.low, logs.estimate, logs.high))
    return Interval(low=low, estimate=middle, high=high, rounds=logs.rounds, confidence=logs.confidence)


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion: (p + z²/2n ± z√(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927. Unlike the plain
    normal one it says something true of 0 of n: not "none", but "at most so many".
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    p, z2n = successes / trials, z * z / trials
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * math.sqrt(p * (1 - p) / trials + z2n / (4 * trials)) / (1 + z2n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low=low, estimate=p, high=high, rounds=trials, confidence=confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r} is not between 0 and 1")
