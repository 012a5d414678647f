"""The full form of an experiment: what takes minutes to look at takes hours to be sure of.

Longer windows and more rounds (docs/statistics.md says how many what takes), which end early with `--until-width`.
"""

from __future__ import annotations

from dataclasses import replace

from testbed.model.experiment import Experiment, Load

ROUNDS = 40
WINDOW_S = 10.0


def full(experiment: Experiment) -> Experiment:
    """The same question under the name `<name>-full`: 40 rounds, windows of at least 10 s."""

    def longer(load: Load) -> Load:
        return replace(load, warmup_s=2.0, window_s=max(WINDOW_S, 2 * load.window_s))

    return replace(
        experiment,
        name=f"{experiment.name}-full",
        load=longer(experiment.load),
        rounds=ROUNDS,
        cells=tuple(replace(cell, load=longer(cell.load)) for cell in experiment.cells),
    )
