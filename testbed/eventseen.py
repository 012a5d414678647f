"""What the trials of an experiment with events saw, by plane and cell: counted per stream, over rounds. Pure.

Only whole valid trials count. How sure one may be is a matter of rounds: a stream is touched by an event if that was so
in every round, spared if in none, and of anything else nothing is said.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.model.experiment import Measurement

EVENT = "event"
"""Component of what the event itself was."""
OF_STREAMS = "requests_since"
"""A metric that every stream has, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    values: dict[tuple[str, str, str, str], tuple[float, ...]]
    """(plane, cell, component, metric) -> one a round, those that are no number left out."""
    rounds: dict[tuple[str, str], int]
    """(plane, cell) -> trials that count."""

    def get(self, plane: str, cell: str, component: str, metric: str) -> tuple[float, ...]:
        return self.values.get((plane, cell, component, metric), ())

    def total(self, plane: str, cell: str, components: Iterable[str], metric: str) -> float:
        """Over all rounds."""
        return math.fsum(value for name in components for value in self.get(plane, cell, name, metric))

    def most(self, plane: str, cell: str, components: Iterable[str], metric: str) -> float:
        return max((value for name in components for value in self.get(plane, cell, name, metric)), default=0.0)

    def count(self, plane: str, cell: str) -> int:
        return self.rounds.get((plane, cell), 0)

    def streams(self, plane: str, cell: str, *, meant_to_fail: bool | None = None) -> list[str]:
        """In the order of the experiment; all, or only those that a policy is to refuse (or not)."""
        found = [c for p, of, c, metric in self.values if (p, of, metric) == (plane, cell, OF_STREAMS)]
        if meant_to_fail is None:
            return found
        return [name for name in found if any(self.get(plane, cell, name, "meant_to_fail")) is meant_to_fail]

    def touched(self, plane: str, cell: str, stream: str) -> bool | None:
        """Requests failed since the event beyond what fails anyway, or a connection broke: in all rounds, in none, or
        (None) in some."""
        anyway = self.most(plane, cell, [stream], "failed_before")
        failed = self.get(plane, cell, stream, "failed")
        broken = self.get(plane, cell, stream, "connections_broken") or (0.0,) * len(failed)
        hit = [f > anyway or b > 0 for f, b in zip(failed, broken, strict=True)]
        return all(hit) if all(hit) or not any(hit) else None

    def behind(self, plane: str, cell: str, stream: str) -> bool:
        """Whether what was struck serves one of its ends."""
        return any(self.get(plane, cell, stream, "behind_struck"))


def seen(measurements: Sequence[Measurement]) -> Seen:
    left_out = {m.trial for m in measurements if not m.valid}
    values: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    trials: dict[tuple[str, str], set[str]] = defaultdict(set)
    for m in measurements:
        if m.trial not in left_out:
            trials[m.plane, m.cell].add(m.trial)
            kept = values[m.plane, m.cell, m.component, m.metric]
            if not math.isnan(m.value):
                kept.append(m.value)
    return Seen(
        values={key: tuple(found) for key, found in values.items()},
        rounds={key: len(names) for key, names in trials.items()},
    )


def spread(values: Sequence[float], form: str = "{:.0f}") -> str:
    """The median, and the range where there is one."""
    if not values:
        return "–"
    low, middle, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} [{low}, {high}]"
