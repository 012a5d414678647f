"""The order of a run, and what a failing trial does to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import sweep
from testbed.errors import UsageError


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
