"""Figures over a sweep's axis: values by plane and cell, slopes, break-even points, ratios between cells. Pure.

Everything is computed within rounds and then over them, as in `stats`: a fit of each round, an interval over the fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from testbed import stats
from testbed.model.experiment import Measurement
from testbed.stats import Interval
from testbed.table import AA, MIN_ROUNDS, Summary, summarise

RESAMPLES = 10_000
LEAST_POINTS = 2
"""That a line takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    title: str
    unit: str
    component: str | None = "client"
    """None: summed over the proxies."""


FIGURES = {
    "latency_p50": Figure(title="p50", unit="ms"),
    "latency_p99": Figure(title="p99", unit="ms"),
    "rate_achieved": Figure(title="throughput", unit="1/s"),
    "cpu_per_1000_requests": Figure(title="CPU of the proxies, for 1,000 requests", unit="ms", component=None),
    "cpu_idle": Figure(title="CPU of the proxies while nobody calls, a second", unit="ms", component=None),
    "cpu_to_ready": Figure(title="CPU of the proxies until they are ready", unit="ms", component=None),
    "memory_pss": Figure(title="memory (PSS) of the proxies", unit="MiB", component=None),
    "config": Figure(title="configuration given to the proxies", unit="KiB", component=None),
    "proxies": Figure(title="proxies", unit="", component=None),
    "deploy_time": Figure(title="time to deploy the plane", unit="s", component="testbed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cell, as run.json has it."""

    cell: str
    at: float | None
    line: str
    beside: bool
    """Whether a second load ran."""


class Sweep:
    """A run's measurements by cell. Rows of trials that do not count are left out, as everywhere."""

    def __init__(self, info: Mapping[str, Any], measurements: Sequence[Measurement]) -> None:
        self.experiment: Mapping[str, Any] = info["plan"]["experiment"]
        self.topology: Mapping[str, Any] = info["plan"].get("topology", {})
        self.axis: Mapping[str, Any] = self.experiment.get("axis") or {}
        self._measurements = measurements

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(
            Place(
                cell=cell["name"],
                at=cell.get("at"),
                line=cell.get("line", ""),
                beside=cell.get("beside") is not None,
            )
            for cell in self.experiment.get("cells", ())
        )

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        by_cell: dict[str, list[Measurement]] = {place.cell: [] for place in self.places}
        for one in self._measurements:
            by_cell.setdefault(one.cell, []).append(one)
        return {cell: summarise(rows, order=self.experiment["planes"]) for cell, rows in by_cell.items()}

    @cached_property
    def planes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(plane for summary in self.summaries.values() for plane in summary.planes))

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.line for place in self.places))

    def on_axis(self, line: str | None = None) -> list[Place]:
        """Cells that stand somewhere on it, in its order; of one line, or of all."""
        found = [p for p in self.places if p.at is not None and (line is None or p.line == line)]
        return sorted(found, key=lambda place: place.at or 0.0)

    def rounds(self, plane: str, cell: str, metric: str) -> dict[int, float]:
        if cell not in self.summaries:
            return {}
        component = FIGURES[metric].component
        return self.summaries[cell].rounds(plane, metric, component)

    def value(self, plane: str, cell: str, metric: str) -> Interval | None:
        """Median over rounds and its interval; None where nothing was measured."""
        values = list(self.rounds(plane, cell, metric).values())
        return level(values) if values else None

    def per_round(
        self, plane: str, metric: str, line: str | None = None, *, base: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places on the axis, one row a round with a value at each of them); minus `base` in the same round and cell.

        Only rounds that have all: a fit over other places is another fit.
        """
        places = self.on_axis(line)
        columns = [self.rounds(plane, place.cell, metric) for place in places]
        if base is not None:
            theirs = [self.rounds(base, place.cell, metric) for place in places]
            columns = [
                {n: mine[n] - other[n] for n in mine.keys() & other.keys()}
                for mine, other in zip(columns, theirs, strict=True)
            ]
        shared = sorted(set.intersection(*map(set, columns))) if columns else []
        at = np.array([place.at for place in places], dtype=float)
        return at, np.array([[column[n] for column in columns] for n in shared], dtype=float).reshape(-1, len(at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A straight line over the axis, fitted in every round by least squares."""

    intercept: Interval
    slope: Interval
    per_round: tuple[tuple[float, float], ...]
    """(intercept, slope)."""

    def at(self, place: float) -> Interval:
        return stats.block_interval([a + b * place for a, b in self.per_round])


def level(values: Sequence[float]) -> Interval:
    """Median over rounds with its percentile bootstrap, as the tables of absolute figures have it; nothing is claimed
    of it. (The studentised interval is no use here: memory that is the same in five rounds of six has no spread to
    measure by.) Infinite below `table.MIN_ROUNDS`.
    """
    ordered = np.asarray(values, dtype=float)
    if len(ordered) < MIN_ROUNDS:
        low, high = -math.inf, math.inf
    else:
        chance = np.random.Generator(np.random.PCG64(0))
        drawn = np.median(ordered[chance.integers(0, len(ordered), (RESAMPLES, len(ordered)))], axis=1)
        low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975]))
    return Interval(low=low, estimate=float(np.median(ordered)), high=high, rounds=len(ordered))


def fit(at: np.ndarray, values: np.ndarray) -> Fit | None:
    """None for fewer than two places, or no round."""
    if len(set(at.tolist())) < LEAST_POINTS or not len(values):
        return None
    slopes, intercepts = _least_squares(at, values)
    return Fit(
        intercept=stats.block_interval(intercepts.tolist()),
        slope=stats.block_interval(slopes.tolist()),
        per_round=tuple(zip(intercepts.tolist(), slopes.tolist(), strict=True)),
    )


def _least_squares(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slopes, intercepts) of many lines over the same places, one a row."""
    centred = at - at.mean()
    slopes = (values @ centred) / (centred @ centred)
    return slopes, values.mean(axis=1) - slopes * at.mean()


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Where a plane costs as much as another; below it less, above it more."""

    difference: Fit
    """Plane minus base, over the axis."""
    crossing: Interval | None
    """None where the two are parallel as far as one can tell, or nowhere meet."""
    reach: float
    """The farthest place that was measured."""

    @property
    def always_more(self) -> bool:
        """Even where the distance is nothing, for certain."""
        return self.difference.intercept.low > 0

    @property
    def pays_near(self) -> bool:
        return self.difference.intercept.high < 0

    @property
    def grows(self) -> bool:
        return self.difference.slope.low > 0


def break_even(sweep: Sweep, plane: str, base: str, metric: str = "latency_p50") -> BreakEven | None:
    """Lines of both over the axis, in the same rounds; the crossing's interval by bootstrap over rounds.

    Each resample of rounds is averaged (trimmed) at every place, fitted, and crossed with nothing; percentiles of that.
    A quotient has no mean, so percentiles are all that there is, and none where the slope may be nothing.
    """
    at, values = sweep.per_round(plane, metric, base=base)
    difference = fit(at, values)
    if difference is None:
        return None
    reach = float(at.max())
    if not difference.slope.low > 0:
        return BreakEven(difference=difference, crossing=None, reach=reach)
    chance = np.random.Generator(np.random.PCG64(0))
    drawn = values[chance.integers(0, len(values), (RESAMPLES, len(values)))]
    slopes, intercepts = _least_squares(at, _trimmed(drawn))
    crossings = -intercepts[slopes > 0] / slopes[slopes > 0]
    slope, intercept = _least_squares(at, _trimmed(values[None]))
    low, high = np.quantile(crossings, [0.025, 0.975])
    crossing = Interval(
        low=float(low), estimate=float(-intercept[0] / slope[0]), high=float(high), rounds=len(values)
    )
    return BreakEven(difference=difference, crossing=crossing, reach=reach)


def _trimmed(drawn: np.ndarray) -> np.ndarray:
    """Mean over the middle rounds, at each place: [resample, round, place] to [resample, place]."""
    size = drawn.shape[1]
    cut = int(stats.TRIM * size)
    return np.sort(drawn, axis=1)[:, cut : size - cut].mean(axis=1)


def slope(sweep: Sweep, plane: str, metric: str, line: str | None = None) -> Fit | None:
    """Of a metric over the axis, for each step of one on it."""
    return fit(*sweep.per_round(plane, metric, line))


def ratio(
    sweep: Sweep, plane: str, metric: str, cell: str, base_cell: str, *, to: str | None = None
) -> Interval | None:
    """Of a metric in one cell to the same in another, within rounds; with `to` that in turn to plane `to`'s.

    Averaged as logarithms. None where no round has all of it.
    """
    logs = _log_ratios(sweep, plane, metric, cell, base_cell)
    if to is not None:
        theirs = _log_ratios(sweep, to, metric, cell, base_cell)
        logs = {n: logs[n] - theirs[n] for n in logs.keys() & theirs.keys()}
    if not logs:
        return None
    return stats.exponential(stats.block_interval([logs[n] for n in sorted(logs)]))


def _log_ratios(sweep: Sweep, plane: str, metric: str, cell: str, base_cell: str) -> dict[int, float]:
    return stats.log_ratios(sweep.rounds(plane, cell, metric), sweep.rounds(plane, base_cell, metric))


def without_twin(planes: Sequence[str]) -> list[str]:
    return [plane for plane in planes if plane != AA]
