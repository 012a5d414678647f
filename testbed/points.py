"""What a cell of a sweep needs beyond another load: a deployment, links, a second load, or no load at all.

Cells of one topology share a deployment; a cell's own links are set on the live lab, and measured again, before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from testbed import planespec, standing, variants
from testbed.beside import beside
from testbed.deploy import Deployment
from testbed.links.gauge import measure
from testbed.model.experiment import Cell, Experiment, LinkReading
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.trial import Outcome

PROBES = 60
"""Of each link that was set anew: a third of a second."""
Measure = Callable[..., Outcome]
"""`trial.run` but for `readings`."""


def find(experiment: Experiment, name: str) -> Cell:
    """The cell of that name; of an experiment without an axis, which has one cell without a name, that one."""
    unnamed = Cell(name=name, load=experiment.load)
    return next((cell for cell in experiment.cells if cell.name == name), unnamed)


def deployments(experiment: Experiment, names: Sequence[str]) -> dict[str, list[str]]:
    """Cells by the topology that they ask for (empty: the experiment's), all in the order given."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(find(experiment, name).topology, []).append(name)
    return found


@cache
def placed(plane: str, spec: str) -> tuple[Topology, Placement]:
    """A plane on a topology that cells ask for."""
    topology = variants.resolve(spec)
    return topology, planespec.place(plane, topology)


def measures_links(experiment: Experiment) -> bool:
    """Whether cells see to it themselves: they set links, or send nothing, so that what links do is nobody's matter."""
    return any(cell.links or cell.load.kind == "idle" for cell in experiment.cells)


def set_links(deployment: Deployment, experiment: Experiment, name: str) -> list[LinkReading] | None:
    """As the cell asks; links that another cell asked for go back to the topology's. None where no cell asks."""
    moved = {frozenset((a, b)) for cell in experiment.cells for a, b, _ in cell.links}
    if not moved:
        return None
    asked = {frozenset((a, b)): Impairment(**fields) for a, b, fields in find(experiment, name).links}
    for live in deployment.lab.links:
        ends = frozenset((live.link.a, live.link.b))
        if ends in asked:
            live.set(a_to_b=asked[ends], b_to_a=asked[ends])
        elif ends in moved:
            was = deployment.lab.topology.link(live.link.a, live.link.b)
            live.set(a_to_b=was.a_to_b, b_to_a=was.b_to_a)
    return measure(deployment.lab.running, deployment.lab.links, probes=PROBES)


def measured(
    deployment: Deployment,
    experiment: Experiment,
    name: str,
    run: Measure,
    *,
    readings: Sequence[LinkReading],
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
    now = set_links(deployment, experiment, name)
    with beside(deployment, cell.beside, cell.load, seed=seed, folder=folder / "beside") as neighbour:
        outcome = run(readings=readings if now is None else now)
    if cell.beside is not None:
        outcome = neighbour.judged(outcome)
    return standing.with_rows(outcome, stands) if stands else outcome
