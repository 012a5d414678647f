"""The highest rate a plane still holds: which rate to try next, from what the rates before gave. Pure.

As Nighthawk's adaptive load controller does: double until a rate fails, then halve the gap. A noisy host fails rates
that hold and, more seldom, passes ones that do not, so each rate is decided by two of three probes. Nothing is kept
between calls: the history of probes is the state, so a search can be gone on with from a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.errors import UsageError

AGREEING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What holding a rate means, and how far to look."""

    p99_ms: float
    """Of latency from the intended send time."""
    begin_rps: float = 200.0
    least_rps: float = 10.0
    most_rps: float = 20_000.0
    precision: float = 0.15
    """The search ends when the next rate that failed is this share above the one that held."""
    budget_s: float = math.inf

    def check(self) -> None:
        """Raises UsageError for a goal that cannot be."""
        if not 0 < self.least_rps <= self.begin_rps <= self.most_rps:
            raise UsageError(
                f"capacity: rates from {self.least_rps:g} to {self.most_rps:g}/s cannot begin at {self.begin_rps:g}/s"
            )
        if not (self.p99_ms > 0 and self.precision > 0 and self.budget_s > 0):
            raise UsageError("capacity: p99_ms, precision and budget_s must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One short trial at one rate."""

    rate_rps: float
    p99_ms: float
    reasons: tuple[str, ...] = ()
    """Why the trial would not count: late generator, unanswered or failed requests (`trial.Gates`)."""

    def holds(self, goal: Goal) -> bool:
        return not self.reasons and self.p99_ms <= goal.p99_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Probe this rate next."""

    rate_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The answer, as well as it is known."""

    rate_rps: float
    """Highest that held; 0 where none did."""
    failed_rps: float | None
    """Lowest above it that failed; None where none was tried, or the search ended before."""
    why: str


def decide(goal: Goal, probes: Sequence[Probe], *, elapsed_s: float) -> Try | Capacity:
    """The next rate, or the answer. `elapsed_s` counts from the first probe."""
    verdicts: dict[float, list[bool]] = {}
    for probe in probes:
        verdicts.setdefault(probe.rate_rps, []).append(probe.holds(goal))
    failed = [rate for rate, held in verdicts.items() if held.count(False) >= AGREEING]
    high = min(failed, default=None)
    held_rates = [rate for rate, held in verdicts.items() if held.count(True) >= AGREEING]
    low = max((rate for rate in held_rates if high is None or rate < high), default=None)
    if elapsed_s >= goal.budget_s:
        return Capacity(rate_rps=low or 0.0, failed_rps=high, why=f"{goal.budget_s:g} s were spent")
    for rate, held in verdicts.items():
        if max(held.count(True), held.count(False)) < AGREEING:
            return Try(rate_rps=rate)
    if not probes:
        return Try(rate_rps=goal.begin_rps)
    if high is None:
        assert low is not None  # every rate is decided
        if low >= goal.most_rps:
            return Capacity(rate_rps=low, failed_rps=None, why="it holds the highest rate that is tried")
        return Try(rate_rps=min(_round(low * 2), goal.most_rps))
    if low is None:
        if high <= goal.least_rps:
            return Capacity(rate_rps=0.0, failed_rps=high, why="it does not hold the lowest rate that is tried")
        return Try(rate_rps=max(_round(high / 2), goal.least_rps))
    between = _round(math.sqrt(low * high))
    if high <= low * (1 + goal.precision) or between in verdicts:
        return Capacity(rate_rps=low, failed_rps=high, why=f"{low:g}/s held, {high:g}/s did not")
    return Try(rate_rps=between)


def _round(rate_rps: float) -> float:
    """Three digits: rates that people can say."""
    digits = 2 - math.floor(math.log10(rate_rps))
    return round(rate_rps, digits)
