"""Cells with a topology, links, a neighbour or no load of their own: one small run of all of them, and their plans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.protocol import EXPERIMENT
from testbed import points, registry, runs, sweep
from testbed.model.experiment import Axis, Beside, Cell, Load
from testbed.runtime import ownership
from testbed.store import Run
from testbed.store import runs as stored_runs
from tests.labs import needs_root

LOAD = dataclasses.replace(EXPERIMENT.load, rate_rps=40, warmup_s=0.2, window_s=0.8, connections=2)
NEIGHBOUR = Beside(client="intruder", target="server", load=LOAD)
LINKS = (("node-a", "node-b", {"delay_ms": 4.0}),)
POINTS = dataclasses.replace(
    EXPERIMENT,
    name="points",
    planes=("ambient-l4",),
    load=LOAD,
    rounds=1,
    cells=(
        Cell(name="as it is", load=LOAD, at=0),
        Cell(name="farther", load=LOAD, at=1, links=LINKS, beside=NEIGHBOUR),
        Cell(name="more policies", load=LOAD, at=2, topology="two-zones:l4_policies=40"),
        Cell(name="idle", load=Load(kind="idle", warmup_s=0, window_s=0.2), topology="crowd:per_node=1"),
        Cell(name="never", load=LOAD, planes=("sidecar",)),
    ),
    axis=Axis(name="kind", metrics=("latency_p50", "memory_pss", "config", "proxies")),
)


def test_cells_of_one_topology_share_a_deployment() -> None:
    """In the order given; the experiment's own topology has no name."""
    assert points.deployments(POINTS, ["idle", "as it is", "more policies", "farther"]) == [
        ("crowd:per_node=1", ["idle"]), ("", ["as it is", "farther"]), ("two-zones:l4_policies=40", ["more policies"]),
    ]  # fmt: skip


def test_what_is_traced_has_a_deployment_of_its_own() -> None:
    """Of connections that are open before a capture begins nothing can be read."""
    waterfall = registry.load("experiment", "waterfall")

    assert points.deployments(waterfall, ["not captured", "captured"]) == [("", ["not captured"]), ("", ["captured"])]


def test_a_cell_is_measured_under_its_planes_only() -> None:
    """A waypoint that nobody has cannot be shared."""
    blocks = sweep.plan_blocks(POINTS, ["ambient-l4", "sidecar"], 1)

    assert {b.plane: "never" in b.cells for b in blocks} == {"ambient-l4": False, "sidecar": True}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(registry.BUILT_IN["experiment"], "points", f"{__name__}:POINTS")
    # A busy test machine may be late; what is tested here is the way, not the figures.
    loose = runs.Gates(send_lag_p99_ms=1e6, generator_cpu_share=10.0)
    monkeypatch.setattr(runs, "Gates", lambda: loose)
    return tmp_path / "results"


@pytest.mark.root
@needs_root
def test_each_kind_of_cell_measures_what_it_asks_for(results: Path) -> None:
    """Farther by its own links beside a neighbour; with the policies of its own topology; and without any load."""
    runs.run("points", seed=1)
    (path,) = stored_runs(results)
    measured = Run.open(path).measurements()

    def total(cell: str, metric: str) -> float:
        values = [m.value for m in measured if (m.cell, m.metric) == (cell, metric)]
        assert values, f"{cell} has no {metric}"
        return sum(values)

    assert {m.cell for m in measured} == {"as it is", "farther", "more policies", "idle"}
    assert (total("as it is", "link_rtt_asked"), total("farther", "link_rtt_asked")) == (2.0, 8.0)
    assert total("farther", "link_rtt_p50") > 7.0 > total("as it is", "link_rtt_p50")
    assert total("farther", "latency_p50") > 8.0
    assert total("farther", "beside_rate") > 0
    assert {m.metric for m in measured if m.cell == "as it is"}.isdisjoint({"beside_rate"})
    assert total("more policies", "config") > total("as it is", "config") + 2 * 10  # KiB, on two nodes
    assert total("idle", "proxies") == 2 and total("idle", "workloads") == 2
    assert total("idle", "memory_pss") > 1 and total("idle", "cpu_to_ready") > 0
    assert not [m for m in measured if m.cell == "idle" and m.metric.startswith("latency")]
    page = (path / "report.html").read_text()
    assert "Over the axis: kind" in page and "Configuration given to the proxies" in page
    assert ownership.labs() == []
