"""Verdicts over sweeps whose truth is planted: each claim confirmed, refuted, left open, and without evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from experiments.arrival import EXPERIMENT as ARRIVAL
from experiments.footprint import ALONE, REPLICAS
from experiments.footprint import EXPERIMENT as FOOTPRINT
from experiments.neighbour import EXPERIMENT as NEIGHBOUR
from testbed import axisclaims, sweep
from testbed.claimlist import CLAIMS
from testbed.claims import Judged, Verdict
from testbed.encoded import as_json
from testbed.model.experiment import Measurement
from tests.swept import info, rows
from tests.test_axis import PLACEMENT, RTTS, THIRD, neighbours

NEAR = "ambient:waypoint_node=node-b"
TOPOLOGY = as_json(sweep.resolve(PLACEMENT))


def judged(id_: str, experiment: object, made: list[Measurement]) -> Judged:
    (one,) = axisclaims.judge([id_], info(experiment, TOPOLOGY), made, [])
    return one


def placed(saved_ms: float, *, detours: float = 1.0, rounds: int = 8, noise: float = 0.02) -> list[Measurement]:
    def value(plane: str, cell: str, metric: str) -> float:
        far_ms = detours * RTTS[cell] if plane == THIRD else 0.0
        far_ms = 0.0 if metric == "cpu_per_1000_requests" else far_ms
        return 50.0 + RTTS[cell] + (0.0 if plane == "sidecar" else far_ms - saved_ms)

    metrics = ("latency_p50", "latency_p99", "cpu_per_1000_requests")
    return rows(PLACEMENT, value, planes=("sidecar", NEAR, THIRD), metrics=metrics, rounds=rounds, noise=noise)


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (placed(2.0), Verdict.CONFIRMED),
        (placed(-1.0), Verdict.REFUTED),
        (placed(2.0, detours=0.0, noise=0.0), Verdict.REFUTED),
        (placed(2.0, rounds=5), Verdict.UNDECIDED),
        (placed(0.02, noise=0.5), Verdict.UNDECIDED),
        (placed(40.0), Verdict.UNDECIDED),
    ],
    ids=["pays near", "pays nowhere", "pays everywhere", "few rounds", "noise", "crossing not seen"],
)
def test_a_detour_that_pays_near_and_not_far_confirms_the_trade(made: list[Measurement], verdict: Verdict) -> None:
    """It must be seen to be better near, to get worse with distance, and to cross within what was measured."""
    one = judged("hop-vs-l7", PLACEMENT, made)

    assert one.verdict is verdict, one.measured
    assert "break-even" in one.measured and one.plane == THIRD


@pytest.mark.parametrize(("saved_ms", "verdict"), [(2.0, Verdict.CONFIRMED), (-2.0, Verdict.REFUTED)])
def test_two_l4_and_one_l7_are_judged_beside_the_call_only(saved_ms: float, verdict: Verdict) -> None:
    """What a detour costs is no part of it."""
    one = judged("two-l4-one-l7", PLACEMENT, placed(saved_ms))

    assert one.verdict is verdict, one.measured
    assert "node-b" in one.measured and "node-c" not in one.measured


def standing(memory: Mapping[str, tuple[float, float]], rounds: int = 6, noise: float = 0.3) -> list[Measurement]:
    """MiB for each workload more: (as a service of its own, as a replica); sidecars one each, ztunnels one a node."""
    at = {cell.name: (cell.at or 0.0, cell.line) for cell in FOOTPRINT.cells}

    def value(plane: str, cell: str, metric: str) -> float:
        per_node, line = at[cell]
        if metric == "proxies":
            return per_node * 2 if plane == "sidecar" else 2.0
        if metric == "workloads":
            return per_node * 2
        return 30.0 + memory[plane][line == REPLICAS] * per_node * 2

    made = rows(FOOTPRINT, value, planes=memory, metrics=("memory_pss",), rounds=rounds, noise=noise)
    return made + rows(FOOTPRINT, value, planes=memory, metrics=("proxies", "workloads"), rounds=rounds, noise=0.0)


PER_NODE = {"sidecar": (20.0, 20.0), "ambient-l4": (0.1, 0.1), "ambient": (15.0, 0.2)}


def test_memory_by_pods_against_memory_by_nodes() -> None:
    """Confirmed with both slopes and what a hundred would take; not while an L4 proxy's memory grows as fast."""
    one = judged("per-pod-vs-per-node", FOOTPRINT, standing(PER_NODE))

    assert one.verdict is Verdict.CONFIRMED, one.measured
    assert "100 workloads on 2 nodes would take 2030" in one.measured.replace(",", "")
    assert judged("per-pod-vs-per-node", FOOTPRINT, standing({**PER_NODE, "ambient-l4": (25.0, 25.0)})).verdict is (
        Verdict.REFUTED
    )
    assert judged("per-pod-vs-per-node", FOOTPRINT, standing(PER_NODE, rounds=4)).verdict is Verdict.UNDECIDED


def test_replicas_gain_most_where_they_share_a_waypoint() -> None:
    """What is saved for each one more: 19.8 MiB as a replica, 5 as a service."""
    assert judged("replicas-gain-most", FOOTPRINT, standing(PER_NODE)).verdict is Verdict.CONFIRMED
    turned = {**PER_NODE, "ambient": (0.2, 15.0)}
    assert judged("replicas-gain-most", FOOTPRINT, standing(turned)).verdict is Verdict.REFUTED
    assert judged("replicas-gain-most", FOOTPRINT, [m for m in standing(PER_NODE) if m.plane != "ambient"]).verdict is (
        Verdict.NO_EVIDENCE
    )


def test_ninety_percent_is_refuted_where_no_number_of_workloads_would_save_it() -> None:
    """And left open else: CPU under load is not in such a run."""
    assert judged("ninety-percent", FOOTPRINT, standing(PER_NODE)).verdict is Verdict.UNDECIDED
    dear = {"sidecar": (20.0, 20.0), "ambient-l4": (10.0, 10.0), "ambient": (15.0, 12.0)}
    assert judged("ninety-percent", FOOTPRINT, standing(dear)).verdict is Verdict.REFUTED


def given(config: Mapping[str, float], rounds: int = 6) -> list[Measurement]:
    """KiB for each workload more; sidecars one proxy each, ztunnels one a node, a waypoint each in `ambient`."""

    def value(plane: str, cell: str, metric: str) -> float:
        per_node = float(cell.split()[0])
        proxies = {"sidecar": 2 * per_node, "ambient-l4": 2.0, "ambient": 2.0 + 2 * per_node}[plane]
        return {"workloads": per_node * 2, "proxies": proxies}.get(metric, 5.0 + config[plane] * per_node * 2)

    exact = rows(FOOTPRINT, value, planes=config, metrics=("proxies", "workloads"), rounds=rounds, noise=0.0)
    return exact + rows(FOOTPRINT, value, planes=config, metrics=("config",), rounds=rounds, noise=0.1)


def test_configuration_can_refute_and_never_confirm() -> None:
    """What a change of policy pushes is not in such a run; a waypoint for each workload is told, and no more."""
    less = judged("fewer-config-streams", FOOTPRINT, given({"sidecar": 8.0, "ambient-l4": 2.0, "ambient": 4.0}))
    dear = {"sidecar": 2.0, "ambient-l4": 8.0, "ambient": 4.0}

    assert less.verdict is Verdict.UNDECIDED and "ambient-l4, services of one workload: −1.00" in less.measured
    assert judged("fewer-config-streams", FOOTPRINT, given(dear)).verdict is Verdict.REFUTED
    assert judged("fewer-config-streams", FOOTPRINT, given(dear, rounds=5)).verdict is Verdict.UNDECIDED
    assert judged("fewer-config-streams", FOOTPRINT, given({"sidecar": 8.0})).verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize(
    ("factor", "l7", "l4"),
    [
        ({"sidecar": 1.0, "node-l7": 3.0, "ambient-l4": 1.02}, Verdict.CONFIRMED, Verdict.CONFIRMED),
        ({"sidecar": 1.0, "node-l7": 1.0, "ambient-l4": 3.0}, Verdict.REFUTED, Verdict.REFUTED),
        ({"sidecar": 2.0, "node-l7": 4.0, "ambient-l4": 2.0}, Verdict.CONFIRMED, Verdict.CONFIRMED),
    ],
    ids=["as said", "the other way", "the nodes' own noise"],
)
def test_a_shared_proxy_is_noisy_where_sharing_it_costs_more_than_sharing_nodes(
    factor: dict[str, float], l7: Verdict, l4: Verdict
) -> None:
    """What sidecars suffer on the same nodes is the machine's, not the proxy's."""
    made = neighbours(factor, noise=0.02)

    assert judged("noisy-l7-shared", NEIGHBOUR, made).verdict is l7
    assert judged("noisy-l4-is-tolerable", NEIGHBOUR, made).verdict is l4


def test_few_rounds_and_missing_planes_decide_nothing() -> None:
    """Five rounds carry no claim, and one plane is no comparison."""
    few = neighbours({"sidecar": 1.0, "node-l7": 3.0, "ambient-l4": 1.0}, rounds=5)

    assert judged("noisy-l7-shared", NEIGHBOUR, few).verdict is Verdict.UNDECIDED
    assert judged("noisy-l4-is-tolerable", NEIGHBOUR, neighbours({"ambient-l4": 1.0})).verdict is Verdict.NO_EVIDENCE


def test_a_run_without_an_axis_is_judged_as_before() -> None:
    """By the judges of one cell."""
    plain = replace(PLACEMENT, axis=type(PLACEMENT.axis)(name=""), cells=PLACEMENT.cells[:1])
    one = judged("two-l4-one-l7", plain, placed(2.0))

    assert one.verdict is Verdict.NO_EVIDENCE and "takes p50" in one.measured


def test_every_judge_is_of_a_known_claim_that_an_experiment_names() -> None:
    """A judge nobody asks, or a claim nobody made, is a slip."""
    named = {*ARRIVAL.claims, *PLACEMENT.claims, *FOOTPRINT.claims, *NEIGHBOUR.claims}

    assert set(axisclaims.JUDGES) == named <= set(CLAIMS)
    assert ALONE != REPLICAS


def arriving(
    bursts: Mapping[str, float], mesh: float, *, rounds: int = 6, noise: float = 0.02, planes: tuple[str, ...] = ()
) -> list[Measurement]:
    """By metric, by how much bursts make sidecars later than constant gaps do; `mesh`: sidecars to none."""

    def value(plane: str, cell: str, metric: str) -> float:
        later = bursts[metric] if cell == "synchronised" else 1.0
        return 2.0 * later * (1.0 if plane.startswith("none") else mesh)

    found = planes or ("none", "none (A/A)", "sidecar", "ambient")
    return rows(ARRIVAL, value, planes=found, metrics=tuple(bursts), rounds=rounds, noise=noise)


def both(p50: float, p99: float) -> dict[str, float]:
    return {"latency_p50": p50, "latency_p99": p99}


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (arriving(both(3.0, 3.0), 2.0), Verdict.CONFIRMED),
        (arriving(both(2.0, 2.0), 2.0, noise=0.005), Verdict.CONFIRMED),
        (arriving(both(1.2, 1.3), 2.0), Verdict.REFUTED),
        (arriving(both(1.0, 1.0), 1.5), Verdict.REFUTED),
        (arriving(both(1.2, 3.0), 2.0), Verdict.UNDECIDED),
        (arriving(both(2.0, 2.0), 2.0, noise=0.4), Verdict.UNDECIDED),
        (arriving(both(3.0, 3.0), 2.0, rounds=5), Verdict.UNDECIDED),
        (arriving(both(3.0, 3.0), 2.0, planes=("none", "ambient")), Verdict.NO_EVIDENCE),
        (arriving({"latency_p50": 3.0}, 2.0), Verdict.NO_EVIDENCE),
    ],
    ids=["more", "as much", "less", "nothing", "in p99 only", "noise", "few rounds", "no sidecars", "no p99"],
)
def test_the_pattern_counts_as_much_as_the_mesh_or_less(made: list[Measurement], verdict: Verdict) -> None:
    """Bursts under sidecars, over what sidecars cost at constant gaps; p50 and p99 both."""
    one = judged("arrival-pattern", ARRIVAL, made)

    assert one.verdict is verdict, one.measured
    if verdict is not Verdict.NO_EVIDENCE:
        assert "bursts to constant gaps × " in one.measured and "ambient, p50 to constant: Poisson × " in one.measured
