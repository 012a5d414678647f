"""Percentiles, paired differences over rounds, and how sure one may be of them. Pure; each formula with its source.

A round, not a request, is what repeats: requests of one trial share its luck, so intervals resample rounds (Kalibera
& Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013). Chance comes in as `draw`, uniform in [0, 1), such as
`random.Random(seed).random`: the same seed gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

RESAMPLES = 10_000
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
