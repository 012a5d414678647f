"""Fits, break-even points and ratios over made-up sweeps whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from experiments.neighbour import EXPERIMENT as NEIGHBOUR
from experiments.placement import EXPERIMENT
from testbed import axis
from testbed.model.experiment import Cell, Measurement
from testbed.stats import MIN_ROUNDS_TO_CLAIM
from tests.swept import rows, sweep

THIRD = "ambient:waypoint_node=node-c"
PLACEMENT = replace(
    EXPERIMENT,
    cells=tuple(Cell(name=f"RTT {at:g} ms", load=EXPERIMENT.load, at=at) for at in (0.5, 4, 16)),
)
RTTS = {cell.name: cell.at for cell in PLACEMENT.cells}


def placement(*, saved_ms: float = 2.0, detours: float = 1.0, noise: float = 0.02, rounds: int = 8) -> axis.Sweep:
    """Two planes over the distance: the waypoint saves so much and makes so many detours."""

    def value(plane: str, cell: str, _metric: str) -> float:
        rtt_ms = RTTS[cell]
        return 3.0 + rtt_ms + (detours * rtt_ms - saved_ms if plane == THIRD else 0.0)

    made = rows(
        PLACEMENT, value, planes=("sidecar", THIRD), metrics=("latency_p50",), noise=noise, rounds=rounds
    )
    return sweep(PLACEMENT, made)


def test_the_break_even_point_is_where_what_is_saved_is_used_up() -> None:
    """2 ms saved, one RTT of detour: 2 ms."""
    found = axis.break_even(placement(), THIRD, "sidecar")

    assert found is not None and found.crossing is not None
    assert found.crossing.holds(2.0) and found.crossing.high - found.crossing.low < 0.2
    assert found.pays_near and found.grows and not found.always_more


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 30 made-up runs with noise at most a few miss it; few rounds make percentiles a little too narrow."""
    held = 0
    for seed in range(30):
        chance = random.Random(seed)
        made = rows(
            PLACEMENT,
            lambda plane, cell, _m: RTTS[cell] + (RTTS[cell] - 2.0 if plane == THIRD else 0.0),
            planes=("sidecar", THIRD), metrics=("latency_p50",), noise=0.3, rounds=12, seed=chance.randrange(10**6),
        )  # fmt: skip
        found = axis.break_even(sweep(PLACEMENT, made), THIRD, "sidecar")
        assert found is not None and found.crossing is not None
        held += found.crossing.holds(2.0)

    assert held >= 25


def test_what_costs_more_at_no_distance_pays_nowhere() -> None:
    """Its line crosses nothing where there is no distance left."""
    found = axis.break_even(placement(saved_ms=-1.0), THIRD, "sidecar")

    assert found is not None and found.always_more and found.crossing is not None
    assert found.crossing.high < 0


def test_parallel_lines_have_no_crossing() -> None:
    """A quotient by a slope that may be nothing would be any number."""
    found = axis.break_even(placement(detours=0.0), THIRD, "sidecar")

    assert found is not None and found.crossing is None and found.pays_near and not found.grows


def test_a_plane_that_was_not_measured_has_no_break_even_point() -> None:
    """Nor has one without the other in the same rounds."""
    assert axis.break_even(placement(), "ambient:waypoint_node=node-a", "sidecar") is None


def test_a_fit_finds_the_line_that_was_planted() -> None:
    """In every round, and over them."""
    at = np.array([1.0, 3.0, 6.0])
    values = np.array([10 + 4 * at + shift for shift in (-0.1, 0.0, 0.1, 0.05, -0.05, 0.0)])
    found = axis.fit(at, values)

    assert found is not None
    assert found.slope.estimate == pytest.approx(4.0) and found.at(10).estimate == pytest.approx(50.0, abs=0.1)
    assert found.intercept.holds(10.0) and found.slope.rounds == MIN_ROUNDS_TO_CLAIM


def test_one_place_makes_no_line() -> None:
    """Nor do several measurements of it."""
    assert axis.fit(np.array([2.0, 2.0]), np.array([[1.0, 2.0]])) is None
    assert axis.fit(np.array([1.0, 2.0]), np.empty((0, 2))) is None


def test_a_round_without_one_of_the_places_is_no_part_of_a_fit() -> None:
    """A fit over other places is another fit."""
    whole = placement(rounds=6)
    partial = [m for m in whole._measurements if (m.round, m.cell) != (3, PLACEMENT.cells[0].name)]
    at, values = sweep(PLACEMENT, partial).per_round("sidecar", "latency_p50")

    assert at.tolist() == [0.5, 4, 16] and values.shape == (5, 3)


def neighbours(factor: dict[str, float], noise: float = 0.0, rounds: int = 6) -> list[Measurement]:
    """p99 of 10 ms alone and 20 beside a neighbour elsewhere; where nodes are shared times the plane's factor."""

    def value(plane: str, cell: str, _metric: str) -> float:
        if cell == "alone":
            return 10.0
        return 20.0 * (factor[plane] if cell == "on the same nodes" else 1.0)

    return rows(NEIGHBOUR, value, planes=factor, metrics=("latency_p99",), noise=noise, rounds=rounds)


def test_ratios_between_cells_and_planes_are_those_that_were_planted() -> None:
    """Same nodes to other nodes; and one plane's ratio to another's."""
    made = sweep(NEIGHBOUR, neighbours({"sidecar": 1.5, "node-l7": 3.0}, noise=0.01))
    cells = ("on the same nodes", "on other nodes")

    assert axis.ratio(made, "node-l7", "latency_p99", *cells).estimate == pytest.approx(3.0, rel=0.01)
    assert axis.ratio(made, "node-l7", "latency_p99", *cells, to="sidecar").estimate == pytest.approx(2.0, rel=0.01)
    assert axis.ratio(made, "ambient", "latency_p99", *cells) is None
