"""How long a run will take, before it is begun: its load, and what stands around it. Pure.

A guess to choose between a coffee and a night: seconds around each load were those of the reference machine, which
brings up its labs in one or two.
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.model.experiment import Experiment, Load

DEPLOY_S = 2.5
"""A lab and its plane, up and down."""
CELL_S = 3.5
"""The generator's start, the links at rest before and after, the last answers."""
STREAMS_S = 5.0
"""The same where something happens: a window also lasts for what comes after the event."""
PROOF_S = 4.0
"""Of each plane, once."""


def loaded_s(experiment: Experiment, blocks: Sequence[Sequence[str]]) -> float:
    """Seconds under load; `blocks` are the names of each one's cells, one empty name where there are no cells."""
    return sum(_window_s(load) for cells in blocks for load in _loads(experiment, cells))


def about_s(experiment: Experiment, blocks: Sequence[Sequence[str]], proofs: int) -> float:
    """All of it. Cells with a topology of their own are a deployment each."""
    around_s = STREAMS_S if experiment.streams else CELL_S
    topology_of = {cell.name: cell.topology for cell in experiment.cells}
    deployments = sum(len({topology_of.get(name, "") for name in cells}) for cells in blocks)
    trials = sum(len(cells) for cells in blocks)
    return deployments * DEPLOY_S + trials * around_s + loaded_s(experiment, blocks) + proofs * PROOF_S


def _loads(experiment: Experiment, names: Sequence[str]) -> list[Load]:
    own = {cell.name: cell.load for cell in experiment.cells}
    return [own.get(name, experiment.load) for name in names]


def _window_s(load: Load) -> float:
    return load.warmup_s + load.window_s
