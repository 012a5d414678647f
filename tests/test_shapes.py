"""Published shapes: what a run must show for one to have come out."""

from __future__ import annotations

import dataclasses
import math

import pytest

from testbed import kept, shapes
from testbed.model.experiment import Measurement
from testbed.shapes import Result
from testbed.stats import Interval
from testbed.store import Run
from tests import synthetic


def data(values: dict[str, list[float]], metric: str = "latency_p50", component: str = "client") -> shapes.Data:
    """A run without cells: a value a round and plane."""
    rows: list[Measurement] = [
        synthetic.row(plane, number, metric, value, component)
        for plane, many in values.items()
        for number, value in enumerate(many, 1)
    ]
    return shapes.Data(info={"plan": {"experiment": {"planes": list(values)}}}, measurements=rows, findings=())


@pytest.mark.parametrize(
    ("low", "high", "result"),
    [(0.3, 0.4, Result.CAME_OUT), (0.1, 0.3, Result.UNDECIDED), (0.6, 0.7, Result.DID_NOT), (0.0, 0.1, Result.DID_NOT)],
)
def test_a_shape_came_out_where_all_of_the_interval_is_in_the_range(low: float, high: float, result: Result) -> None:
    """And did not where none of it is."""
    assert shapes.within(Interval(low=low, estimate=low, high=high, rounds=6), 0.2, 0.5) is result
    assert shapes.within(Interval(low=low, estimate=low, high=high, rounds=5), 0.2, 0.5) is Result.UNDECIDED


def test_a_quotient_is_of_means_over_the_rounds_that_have_both() -> None:
    """One odd round does not move it; two rounds are none."""
    above, below = dict.fromkeys(range(1, 7), 1.0), dict.fromkeys(range(1, 7), 2.0) | {9: 50.0}
    found = shapes.quotient(above, below)

    assert found is not None
    assert (found.low, found.estimate, found.high, found.rounds) == (0.5, 0.5, 0.5, 6)
    assert shapes.quotient({1: 1.0, 2: 1.0}, below) is None


def test_added_latency_is_compared_and_not_latency() -> None:
    """Half of what sidecars add is half, however much everybody takes without a mesh."""
    six = {"none": [10.0] * 6, "none (A/A)": [10.0] * 6, "sidecar": [12.0] * 6, "ambient-l4": [11.0] * 6,
           "ambient": [11.6] * 6}  # fmt: skip
    seen = dict(_by_text(shapes.looked({"quickstart": data(six)})))["added p50: L4 far below sidecars, a waypoint"]

    assert seen.result is Result.CAME_OUT
    assert "ambient-l4 to sidecar 0.500" in seen.told
    worse = data(six | {"ambient-l4": [12.0] * 6})
    seen = dict(_by_text(shapes.looked({"quickstart": worse})))["added p50: L4 far below sidecars, a waypoint"]
    assert seen.result is Result.DID_NOT


def _by_text(found: list[tuple[shapes.Shape, shapes.Observed]]) -> list[tuple[str, shapes.Observed]]:
    return [(shape.text.partition(" beside")[0], seen) for shape, seen in found]


def test_pairs_of_the_same_are_counted() -> None:
    """An interval that holds no difference, and one that does not."""
    near = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
    held = data({"none": [1.0] * 6, "none (A/A)": near})
    apart = data({"none": [1.0] * 6, "none (A/A)": [value * 2 for value in near]})

    assert shapes.pairs({"a": held, "b": apart}) == (1, 2)
    few = dataclasses.replace(held, measurements=[m for m in held.measurements if m.round < 6])
    assert shapes.pairs({"a": few}) == (0, 0)


def test_without_a_run_nothing_is_said() -> None:
    """But which one it takes."""
    found = shapes.looked({})
    assert {seen.result for _, seen in found} == {Result.NO_RUN}
    assert any("disruption" in seen.told for _, seen in found)


def test_all_shapes_can_be_looked_for_in_the_reference_runs() -> None:
    """None of those that are there lacks what a shape is seen by."""
    runs = {path.name: shapes.of(Run.open(path)) for path in kept.kept_runs()}
    for shape, seen in shapes.looked(runs):
        assert seen.told and not math.isnan(len(seen.told))
        there = all(name in runs for name in shape.experiments) and runs
        assert not there or seen.result is not Result.NO_RUN, f"{shape.text}: {seen.told}"
