"""How long a run is said to take, and that every experiment can be planned, in its full form too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.disruption import EXPERIMENT as DISRUPTION
from experiments.footprint import EXPERIMENT as FOOTPRINT
from experiments.quickstart import EXPERIMENT as QUICKSTART
from testbed import planespec, planned, sweep
from testbed.registry import load, names


def cells_of(blocks: list[sweep.Block]) -> list[tuple[str, ...]]:
    return [block.cells for block in blocks]


def test_a_run_without_cells_is_its_load_and_what_stands_around_it() -> None:
    """Thirty-six trials of 2.6 s."""
    blocks = cells_of(sweep.plan_blocks(QUICKSTART, QUICKSTART.planes, 1))

    assert planned.loaded_s(QUICKSTART, blocks) == pytest.approx(36 * 2.6)
    around_s = 36 * (planned.DEPLOY_S + planned.CELL_S) + 5 * planned.PROOF_S
    assert planned.about_s(QUICKSTART, blocks, 5) == pytest.approx(36 * 2.6 + around_s)


def test_cells_of_some_planes_and_of_topologies_of_their_own_are_counted_where_they_are() -> None:
    """A waypoint is killed under one plane alone; each size of a footprint is a deployment."""
    blocks = cells_of(sweep.plan_blocks(DISRUPTION, DISRUPTION.planes, 1))
    assert sum(map(len, blocks)) < len(blocks) * len(DISRUPTION.cells)

    one = replace(FOOTPRINT, cells=FOOTPRINT.cells[:1])
    more = planned.about_s(FOOTPRINT, [tuple(c.name for c in FOOTPRINT.cells)], 0)
    assert more > planned.about_s(one, [(one.cells[0].name,)], 0) + planned.DEPLOY_S * (len(FOOTPRINT.cells) - 1)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_plans_and_goes_on_where_it_was(name: str) -> None:
    """Planes are placed on its topology; what is stored is not measured again; the last trial stored leaves nothing."""
    experiment = load("experiment", name)
    topology = sweep.resolve(experiment)
    for plane in experiment.planes:
        planespec.place(plane, topology)
    blocks = sweep.plan_blocks(experiment, experiment.planes, 7)
    whole = planned.about_s(experiment, cells_of(blocks), len(experiment.planes))
    trials = [
        sweep.trial.name(block.round, block.number, block.label, cell) for block in blocks for cell in block.cells
    ]

    assert len(trials) == len(set(trials))
    half = trials[: len(trials) // 2]
    left = [cells for block in blocks if (cells := sweep.undone(block, half))]
    assert sum(map(len, left)) == len(trials) - len(half)
    assert planned.loaded_s(experiment, cells_of(blocks)) < whole
    assert planned.about_s(experiment, left, 0) < whole
    assert not [block for block in blocks if sweep.undone(block, trials)]
