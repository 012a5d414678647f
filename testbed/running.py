"""What a run has seen so far, in one line a round: each plane's latency, and how many of its trials count. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from testbed.model.experiment import Measurement
from testbed.table import digits

SHOWN = ("latency_p50", "latency_p99")


@dataclass(slots=True)
class Running:
    """Of a sweep, latencies are those of its first cell: medians over cells would be of nothing."""

    cell: str = ""
    _trials: dict[str, dict[str, bool]] = field(default_factory=lambda: defaultdict(dict))
    """Plane → trial → whether it counts."""
    _values: dict[tuple[str, str], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """(plane, metric) → trial → value."""

    def add(self, measurements: Iterable[Measurement]) -> None:
        for m in measurements:
            self._trials[m.plane][m.trial] = self._trials[m.plane].get(m.trial, True) and m.valid
            if m.metric in SHOWN and m.component == "client" and m.cell == self.cell and not math.isnan(m.value):
                self._values[m.plane, m.metric][m.trial] = m.value

    def told(self) -> str:
        """`p50/p99 ms so far: none 1.90/4.20, sidecar 4.51/9.90 (1 of 2 trials counts)`; empty before any trial."""
        parts = [self._plane(plane) for plane in self._trials]
        some = any(self._counting(plane, SHOWN[0]) for plane in self._trials)
        where = f" in {self.cell}" if self.cell else ""
        return f"{f'p50/p99 ms so far{where}' if some else 'so far'}: {', '.join(parts)}" if parts else ""

    def _plane(self, plane: str) -> str:
        trials = self._trials[plane]
        middles = [self._counting(plane, metric) for metric in SHOWN]
        text = plane + (f" {'/'.join(digits(statistics.median(m)) for m in middles)}" if all(middles) else "")
        count = sum(trials.values())
        if count == len(trials):
            return text if all(middles) else f"{text} {count} trials count"
        return f"{text} ({count} of {len(trials)} trials count)"

    def _counting(self, plane: str, metric: str) -> list[float]:
        return [value for trial, value in self._values[plane, metric].items() if self._trials[plane][trial]]
