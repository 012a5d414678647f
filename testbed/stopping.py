"""When a run has seen enough: looks fixed beforehand, intervals widened for them. Pure; time is an argument.

Who looks at a 95 % interval again and again and stops when it pleases is wrong more often than in 5 % of cases: in 15
to 20 % when stopping at the first difference, and still in 5 to 10 % when stopping at a width (a spread that happens to
look small stops a run early; docs/statistics.md). So looks are few, equally far apart and known before the first
trial, and at each the interval is as wide as Pocock's boundary asks ("Group Sequential Methods in the Design and
Analysis of Clinical Trials", Biometrika 64, 1977): the chance that any of them misses is 5 % in all, whatever one stops
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from testbed.errors import UsageError
from testbed.stats import MIN_ROUNDS_TO_CLAIM, Interval

POCOCK = (1.960, 2.178, 2.289, 2.361, 2.413)
"""C_P(K, 0.05) for K = 1…5 looks: Jennison & Turnbull, Group Sequential Methods (2000), table 2.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """Decided before the first trial, kept in run.json."""

    most_rounds: int
    until_width: float | None = None
    """Half-width, as a share of the baseline (0.02: ±2 %), at which an interval is narrow enough; None: never early."""
    budget_s: float | None = None
    """No round is begun that would probably end beyond it; None: no limit."""

    def check(self) -> None:
        """Raises UsageError for a rule that cannot be."""
        if self.most_rounds < 1:
            raise UsageError(f"{self.most_rounds} rounds measure nothing; the least is 1")
        if self.until_width is not None and not 0 < self.until_width < 1:
            raise UsageError(f"width {self.until_width:g} is no share between 0 and 1 (0.02 is ±2 %)")
        if self.until_width is not None and len(self.looks) < 2:
            raise UsageError(
                f"stopping at a width takes two looks of {MIN_ROUNDS_TO_CLAIM} rounds, so {2 * MIN_ROUNDS_TO_CLAIM} "
                f"rounds at most or more; there are {self.most_rounds}"
            )
        if self.budget_s is not None and not self.budget_s > 0:
            raise UsageError(f"a budget of {self.budget_s:g} s lets no round begin")

    @property
    def looks(self) -> tuple[int, ...]:
        """Rounds after which one looks; the last is the last round."""
        if self.until_width is None:
            return (self.most_rounds,)
        number = max(1, min(len(POCOCK), self.most_rounds // MIN_ROUNDS_TO_CLAIM))
        return tuple(round(self.most_rounds * k / number) for k in range(1, number + 1))

    @property
    def confidence(self) -> float:
        """Of the interval at each look (and of the one that is reported), so that all looks together keep 95 %."""
        return 2 * NormalDist().cdf(POCOCK[len(self.looks) - 1]) - 1

    def after_round(self, done: int, ratios: Mapping[str, Interval | None], *, elapsed_s: float) -> str:
        """Why the run ends after this many rounds; empty when it goes on.

        `ratios` holds a ratio (1: no difference) for everything that has to be narrow, None where there is none yet;
        `elapsed_s` counts from the first trial.
        """
        if done >= self.most_rounds:
            return f"all {self.most_rounds} rounds done"
        if self.until_width is not None and done in self.looks and ratios:
            wide = [
                name for name, ratio in ratios.items() if ratio is None or not half_width(ratio) <= self.until_width
            ]
            if not wide:
                return f"narrow enough after {done} rounds: every interval within ±{self.until_width:.1%}"
        if self.budget_s is not None and done and elapsed_s + elapsed_s / done > self.budget_s:
            return f"budget spent: {done} rounds took {elapsed_s:.0f} of {self.budget_s:.0f} s"
        return ""


def half_width(ratio: Interval) -> float:
    """Of a ratio, as a share of its estimate, so that a plane twice as slow is not held to half the width."""
    return (ratio.high - ratio.low) / 2 / ratio.estimate
