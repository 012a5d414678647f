"""Made-up sweeps for tests of tables, plots and judges over an axis. Their numbers are invented."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from testbed.axis import FIGURES, Sweep
from testbed.encoded import as_json
from testbed.model.experiment import Experiment, Measurement

Value = Callable[[str, str, str], float | None]
"""Of (plane, cell, metric), before noise; None: not measured."""


def rows(
    experiment: Experiment, value: Value, *, planes: Iterable[str], metrics: Iterable[str], rounds: int = 8,
    noise: float = 0.01, seed: int = 1,
) -> list[Measurement]:  # fmt: skip
    """One row a round, plane, cell and metric; proxies' figures as those of one proxy."""
    draw, made = random.Random(seed), []
    for number in range(1, rounds + 1):
        for plane in planes:
            for cell in experiment.cells:
                for metric in metrics:
                    middle = value(plane, cell.name, metric)
                    if middle is None:
                        continue
                    component = FIGURES[metric].component if metric in FIGURES else "testbed"
                    made.append(
                        Measurement(
                            round=number, trial=f"r{number}-{plane}, {cell.name}", block=1, plane=plane,
                            component=component or "proxy.one", metric=metric, unit="", cell=cell.name,
                            value=middle + noise * draw.gauss(0, 1),
                        )
                    )  # fmt: skip
    return made


def info(experiment: Experiment, topology: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What run.json says of it."""
    return {"plan": {"experiment": as_json(experiment), "topology": topology or {}}}


def sweep(experiment: Experiment, made: list[Measurement], topology: Mapping[str, Any] | None = None) -> Sweep:
    return Sweep(info(experiment, topology), made)
