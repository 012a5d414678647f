"""A run over several cells, at a share of measured capacity, that ends early: end to end, small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.protocol import EXPERIMENT
from testbed import registry, runs, sweep
from testbed.model.experiment import Cell
from testbed.runtime import ownership
from testbed.store import Run
from testbed.store import runs as stored_runs
from tests.labs import needs_root
from tests.loose import gates

pytestmark = [pytest.mark.root, needs_root]

LOAD = dataclasses.replace(EXPERIMENT.load, rate_rps=40, warmup_s=0.2, window_s=0.8, connections=2)
SWEPT = dataclasses.replace(
    EXPERIMENT,
    name="swept",
    planes=("none", "ambient-l4"),
    load=LOAD,
    rounds=2,
    aa_pair=False,
    hold_p99_ms=1000.0,
    cells=(
        Cell(name="TCP", load=dataclasses.replace(LOAD, protocol="tcp", rate_rps=20), target="tcp"),
        Cell(name="gRPC", load=dataclasses.replace(LOAD, protocol="grpc")),
    ),
)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(registry.BUILT_IN["experiment"], "swept", f"{__name__}:SWEPT")
    monkeypatch.setattr(sweep, "PROBE_S", 0.5)
    monkeypatch.setattr(sweep, "SEARCH_BUDGET_S", 12.0)
    # A busy test machine may be late; what is tested here is the way, not the figures.
    loose = gates()
    monkeypatch.setattr(runs, "Gates", lambda: loose)
    return tmp_path / "results"


def test_every_cell_is_measured_under_every_plane_at_its_share_of_the_rate(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget ends it after its first round; what it searched and why it ended is in run.json; resumed, it has the
    same rate and measures what is left."""
    runs.run("swept", seed=1, share=0.5, budget_s=0.001)
    (path,) = stored_runs(results)
    run = Run.open(path)
    info, measured = run.info, run.measurements()
    shown = capsys.readouterr()

    slowest = min(info["capacity_rps"].values())
    assert set(info["capacity_rps"]) == {"none", "ambient-l4"} and slowest >= 40
    assert info["rate_rps"] == pytest.approx(slowest / 2)
    assert info["stopped"]["after_round"] == 1 and "budget spent" in info["stopped"]["why"]
    assert {(m.plane, m.cell) for m in measured} == {
        (plane, cell) for plane in ("none", "ambient-l4") for cell in ("TCP", "gRPC")
    }
    for cell, factor in (("TCP", 0.5), ("gRPC", 1.0)):
        achieved = [m.value for m in measured if m.cell == cell and m.metric == "rate_achieved" and m.valid]
        assert all(0.5 < value / (info["rate_rps"] * factor) < 1.6 for value in achieved)  # Poisson, and a busy machine
    assert "p50 by cell" in shown.out and "gRPC" in shown.out
    assert "--share 50" in info["command"]

    capsys.readouterr()
    runs.run("swept", resume=str(path))
    assert "step 1/2 " in capsys.readouterr().err  # two deployments of the second round; all else is there
    resumed = Run.open(path)
    assert len(resumed.whole_trials()) == 2 * len(run.whole_trials()) == 8
    assert resumed.info["capacity_rps"] == info["capacity_rps"]
    assert resumed.info["rate_rps"] == info["rate_rps"]
    assert ownership.labs() == []
