"""The order of a run, and what a failing trial does to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import sweep, variants
from testbed.errors import UsageError
from testbed.load.schedule import check
from testbed.model.experiment import Cell, Measurement
from testbed.registry import load
from testbed.stats import MIN_ROUNDS_TO_CLAIM
from testbed.stopping import StopRule
from tests.test_effects import rows


def test_every_round_holds_each_plane_once_and_none_twice() -> None:
    """The A/A twin is the same plane under another name."""
    blocks = sweep.plan_blocks(EXPERIMENT, ["none", "ambient-l4"], 7)

    for number in range(1, EXPERIMENT.rounds + 1):
        mine = [b for b in blocks if b.round == number]
        assert sorted(b.label for b in mine) == ["ambient-l4", "none", sweep.AA_NAME]
        assert {b.plane for b in mine if b.label == sweep.AA_NAME} == {"none"}
        assert len({b.seed for b in mine}) == 1


def test_rounds_differ_in_their_schedule_and_order() -> None:
    """Else one lucky schedule would be measured again and again."""
    blocks = sweep.plan_blocks(replace(EXPERIMENT, rounds=20), ["none", "ambient-l4"], 7)

    assert len({b.seed for b in blocks}) == 20
    assert len({tuple(b.label for b in blocks if b.round == r) for r in range(1, 21)}) > 1


def test_the_same_seed_gives_the_same_run() -> None:
    """What resume relies on."""
    planes = ["none", "ambient-l4"]

    assert sweep.plan_blocks(EXPERIMENT, planes, 3) == sweep.plan_blocks(EXPERIMENT, planes, 3)
    assert sweep.plan_blocks(EXPERIMENT, planes, 3) != sweep.plan_blocks(EXPERIMENT, planes, 4)


def test_without_none_there_is_no_twin() -> None:
    """Nothing to be the twin of."""
    assert {b.label for b in sweep.plan_blocks(EXPERIMENT, ["ambient-l4"], 1)} == {"ambient-l4"}


@pytest.mark.parametrize("wrong", [{"client": "klient"}, {"target": "sever:8080"}])
def test_a_client_or_target_that_the_topology_lacks_is_named_with_those_there_are(wrong: dict) -> None:
    """Before anything is built."""
    with pytest.raises(UsageError, match=r"known: .*server"):
        sweep.resolve(replace(EXPERIMENT, **wrong))


def test_links_of_the_experiment_override_both_directions() -> None:
    """And the topology's other links stay."""
    topology = sweep.resolve(replace(EXPERIMENT, links=(("node-a", "node-b", {"delay_ms": 7.0}),)))

    assert topology.links[0].rtt_ms == 14.0


def test_cells_are_shuffled_within_each_deployment() -> None:
    """All of them on each, in orders that differ."""
    load = EXPERIMENT.load
    swept = replace(EXPERIMENT, rounds=10, cells=tuple(Cell(name=name, load=load) for name in "abc"))
    blocks = sweep.plan_blocks(swept, ["none", "ambient-l4"], 7)

    assert {tuple(sorted(b.cells)) for b in blocks} == {("a", "b", "c")}
    assert len({b.cells for b in blocks}) > 3
    assert {b.cells for b in sweep.plan_blocks(EXPERIMENT, ["none"], 7)} == {("",)}


def test_a_cell_has_its_own_load_and_target() -> None:
    """The rest stays the experiment's."""
    other = replace(EXPERIMENT.load, rate_rps=7)
    swept = replace(EXPERIMENT, cells=(Cell(name="a", load=other, target="tcp"), Cell(name="b", load=other)))

    assert (sweep.of_cell(swept, "a").target, sweep.of_cell(swept, "a").load) == ("tcp", other)
    assert sweep.of_cell(swept, "b").target == EXPERIMENT.target
    assert sweep.of_cell(swept, "") == swept


def test_a_cells_target_that_the_topology_lacks_is_named() -> None:
    """Before anything is built."""
    wrong = Cell(name="a", load=EXPERIMENT.load, target="sever")
    with pytest.raises(UsageError, match="no target 'sever'"):
        sweep.resolve(replace(EXPERIMENT, cells=(wrong,)))


def test_a_share_of_capacity_speeds_all_cells_up_alike() -> None:
    """Their proportions to the experiment's own load stay."""
    load = replace(EXPERIMENT.load, rate_rps=100)
    swept = replace(EXPERIMENT, load=load, cells=(Cell(name="half", load=replace(load, rate_rps=50)),))
    scaled = sweep.at_rate(swept, 700)

    assert (scaled.load.rate_rps, scaled.cells[0].load.rate_rps) == (700, 350)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01])
def test_a_share_beyond_the_capacity_is_refused(share: float) -> None:
    """Nobody can be loaded with more than the slowest plane holds and still be compared."""
    with pytest.raises(UsageError, match="cannot be held"):
        sweep.with_overrides(EXPERIMENT, share=share)


class Seen(sweep.Run):
    """A run of which a sweep asks what it holds, and nothing else."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self._measurements = measurements

    def measurements(self) -> list[Measurement]:
        return self._measurements


def test_a_run_ends_at_a_look_when_its_planes_are_known_well_enough() -> None:
    """Six rounds of ±1 % do for ±5 %, not for ±0.1 %; between looks nobody asks; the budget ends it anywhere."""
    into = Seen(rows({"none": 2.0, "none (A/A)": 2.0, "ambient-l4": 2.4}, rounds=6))
    planes = ["none", "ambient-l4"]

    def enough(width: float, done: int) -> str:
        return sweep._enough(into, StopRule(most_rounds=12, until_width=width), planes, done, 10.0)

    assert "narrow enough after 6 rounds" in enough(0.05, 6)
    assert enough(0.001, 6) == ""
    assert enough(0.05, 5) == ""
    assert "budget spent" in sweep._enough(into, StopRule(most_rounds=12, budget_s=10), planes, 5, 9.0)


def test_a_resumed_run_takes_no_look_that_the_rule_did_not_foresee() -> None:
    """Rounds that came after a look are not seen at it: what was decided there is decided again."""
    levels = {"none": 2.0, "none (A/A)": 2.0, "ambient-l4": 2.4}
    late = [m for m in rows(levels, rounds=11, spread=1.0) if m.round > 6]
    rule, planes = StopRule(most_rounds=12, until_width=0.05), ["none", "ambient-l4"]

    assert "narrow enough after 6" in sweep._enough(Seen([*rows(levels, rounds=6), *late]), rule, planes, 6, 10.0)


@pytest.mark.parametrize("form", ["", "-full"])
@pytest.mark.parametrize(
    "name",
    [
        *("arrival", "churn", "footprint", "neighbour", "payload"),
        *("placement", "policies", "policies-l7", "protocol", "rate", "waterfall"),
    ],
)
def test_every_experiment_can_be_planned(name: str, form: str) -> None:
    """Its topology has what it calls, its loads are possible, its cells are told apart, and a claim is in reach."""
    experiment = load("experiment", name + form)
    sweep.resolve(experiment)
    for cell in experiment.cells:
        if cell.load.kind != "idle":
            check(cell.load)
        if cell.topology:
            variants.resolve(cell.topology)

    assert experiment.name == name + form
    assert len({cell.name for cell in experiment.cells}) == len(experiment.cells) > 1
    assert experiment.rounds >= MIN_ROUNDS_TO_CLAIM


@pytest.mark.parametrize("form", ["", "-full"])
def test_connections_of_the_churn_experiment_reach_the_number_they_are_named_by(form: str) -> None:
    """At that rate, within the window, on that many connections: else two cells would be one."""
    for cell in load("experiment", f"churn{form}").cells:
        each = cell.load.rate_rps * cell.load.window_s / cell.load.connections
        assert cell.load.requests_per_connection <= each
