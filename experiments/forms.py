"""What experiments over an axis share, in their quick form and the full one, and what those share in which something
happens under load.

What takes minutes to look at takes hours to be sure of: the full form has longer windows and more rounds
(docs/statistics.md says how many what takes), which end early with `--until-width`.
"""

from __future__ import annotations

from dataclasses import replace

from testbed.model.event import Event, Kind, Stage, Stream
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


def under_load(
    name: str, question: str, *, planes: tuple[str, ...], load: Load, streams: tuple[Stream, ...],
    cells: tuple[Cell, ...], rounds: int = 5, claims: tuple[str, ...] = (),
) -> Experiment:  # fmt: skip
    """Something happens while a client calls the services of the topology `disruption`; what fails is counted, not
    timed, so no pair of equal trials is needed."""
    return Experiment(
        name=name, question=question, topology="disruption", planes=planes, client="client", target="server", load=load,
        rounds=rounds, aa_pair=False, streams=streams, drain_s=1.0, claims=claims, cells=cells,
    )  # fmt: skip


def changed(
    name: str, before: Stage, after: Stage, *, load: Load, at_s: float = 1.0, planes: tuple[str, ...] = ()
) -> Cell:
    """A lab as in `before` becomes as in `after`, `at_s` into the window; under `planes`, or all of the question's."""
    event = Event(kind=Kind.CHANGE, at_s=at_s, stage=after)
    return Cell(name=name, load=load, before=before, events=(event,), planes=planes)


def longer(experiment: Experiment, *, load: Load, cells: tuple[Cell, ...], rounds: int) -> Experiment:
    """The full form of a question under load: those cells, whose windows hold long drains."""
    return replace(
        experiment, name=f"{experiment.name}-full", load=load, rounds=rounds, drain_s=5.0, cells=cells,
    )  # fmt: skip
