"""Experiments over an axis: what they share in their quick form, and the full one.

What takes minutes to look at takes hours to be sure of: the full form has longer windows and more rounds
(docs/statistics.md says how many what takes), which end early with `--until-width`.
"""

from __future__ import annotations

from dataclasses import replace

from testbed.model.experiment import Axis, Cell, Experiment, Load

ROUNDS = 40
WINDOW_S = 10.0


def quick(
    name: str, question: str, *, load: Load, cells: tuple[Cell, ...], axis: Axis, claims: tuple[str, ...] = ()
) -> Experiment:
    """One client and one server in two zones, under every plane that the axis may tell apart; six rounds, for a claim
    takes as many."""
    return Experiment(
        name=name, question=question, topology="two-zones", planes=("none", "sidecar", "ambient-l4", "ambient"),
        client="client", target="server", load=load, rounds=6, claims=claims, cells=cells,
        axis=axis,
    )  # fmt: skip


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
