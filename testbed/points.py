"""What a cell of a sweep needs beyond another load: a deployment, links, a second load, or no load at all.

Cells of one topology share a deployment; a cell's own links are set on the live lab, before it, and measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from testbed import planespec, standing, variants
from testbed.beside import beside
from testbed.deploy import Deployment
from testbed.hops import traced
from testbed.model.experiment import Cell, Experiment
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.trial import Outcome

Measure = Callable[..., Outcome]
"""`trial.run` but for `alone`."""


def find(experiment: Experiment, name: str) -> Cell:
    """The cell of that name; of an experiment without an axis, which has one cell without a name, that one."""
    unnamed = Cell(name=name, load=experiment.load)
    return next((cell for cell in experiment.cells if cell.name == name), unnamed)


def deployments(experiment: Experiment, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(topology that they ask for, cells) of each deployment, all in the order given; empty: the experiment's topology.

    What is traced has one of its own: of a connection between proxies that was open before the capture, nobody can
    read what is in it.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        cell = find(experiment, name)
        found.setdefault((cell.topology, name if cell.traced else ""), []).append(name)
    return [(topology, cells) for (topology, _), cells in found.items()]


@cache
def placed(plane: str, spec: str) -> tuple[Topology, Placement]:
    """A plane on a topology that cells ask for."""
    topology = variants.resolve(spec)
    return topology, planespec.place(plane, topology)


def is_idle(experiment: Experiment, name: str) -> bool:
    """Whether nothing is sent, so that what links do is nobody's matter."""
    return find(experiment, name).load.kind == "idle"


def set_links(deployment: Deployment, experiment: Experiment, name: str) -> bool:
    """As the cell asks; links that another cell asked for go back to the topology's. False where no cell asks."""
    moved = {frozenset((a, b)) for cell in experiment.cells for a, b, _ in cell.links}
    here = find(experiment, name)
    if not moved or here.topology:
        return False
    asked = {frozenset((a, b)): Impairment(**fields) for a, b, fields in here.links}
    for live in deployment.lab.links:
        ends = frozenset((live.link.a, live.link.b))
        if ends in asked:
            live.set(a_to_b=asked[ends], b_to_a=asked[ends])
        elif ends in moved:
            was = deployment.lab.topology.link(live.link.a, live.link.b)
            live.set(a_to_b=was.a_to_b, b_to_a=was.b_to_a)
    return True


def measured(
    deployment: Deployment,
    experiment: Experiment,
    name: str,
    run: Measure,
    *,
    stands: Sequence[standing.Row],
    plane: str,
    round_number: int,
    block: int,
    seed: int,
    folder: Path,
) -> Outcome:
    """One cell, once. `experiment` has the cell's load already (`sweep.of_cell`); `run` measures under that load."""
    cell = find(experiment, name)
    if cell.load.kind == "idle":
        outcome = standing.run(
            deployment, experiment, plane=plane, round_number=round_number, block=block, cell=name
        )  # fmt: skip
        return standing.with_rows(outcome, stands)
    with beside(deployment, cell.beside, experiment.load, seed=seed, folder=folder / "beside") as neighbour:
        measure = partial(run, alone=cell.beside is None)
        outcome = traced.run(deployment, experiment, measure, folder=folder) if cell.traced else measure()
    if cell.beside is not None:
        outcome = neighbour.judged(outcome)
    return standing.with_rows(outcome, stands) if stands else outcome
