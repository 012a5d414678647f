"""Waterfalls of real requests through real proxies: every hop found, each link no shorter than it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from testbed import deploy, lab, planespec, sweep, trial
from testbed.fidelity import Gates
from testbed.hops import readback, traced
from testbed.hops.route import APP, PROXY, WIRE
from testbed.hops.waterfall import BACK, THERE
from testbed.links.probe import choose
from testbed.model.experiment import Measurement
from testbed.registry import load
from testbed.runtime.netns import NetnsRuntime
from tests.labs import needs_root

LINK_US = 1000.0
"""One way, as two-zones has it."""
SHORTEST = 0.8
"""A link never lets a packet out much before its time; how much later says how busy the machine is."""


def traced_trial(plane: str, tmp_path: Path) -> list[Measurement]:
    experiment = load("experiment", "waterfall")
    few = dataclasses.replace(experiment.load, rate_rps=30, connections=3, warmup_s=0.3, window_s=1.0)
    experiment = dataclasses.replace(experiment, load=few)
    topology = sweep.resolve(experiment)
    placement = planespec.place(plane, topology)
    with (
        lab.up(
            topology, runtime=NetnsRuntime(), links=choose(), name=f"hops-{plane}", logs=tmp_path / "logs",
            extra=deploy.extra_sandboxes(placement),
        ) as running,
        deploy.deploy(running, placement, keylog=True) as deployment,
    ):  # fmt: skip

        def measure() -> trial.Outcome:
            return trial.run(
                deployment, experiment, plane=plane, round_number=1, block=1, seed=7, folder=running.folder / "load",
                gates=Gates(), cell="captured",
            )  # fmt: skip

        outcome = traced.run(deployment, experiment, measure, folder=running.folder)
        assert not list(running.folder.glob("*.pcapng*")), "the capture, with its secrets, is not kept"
    # Whether the trial counts says how busy the machine was; what is asked here is whether its hops were found.
    return [dataclasses.replace(m, valid=True) for m in outcome.measurements]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("plane", "proxies"),
    [
        ("none", []),
        ("sidecar", ["sidecar of client", "sidecar of server"]),
        ("ambient", ["ztunnel of client", "waypoint", "ztunnel of server"]),
    ],
)
def test_every_hop_of_every_request_is_found(
    plane: str, proxies: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matched by its id through loopback, mutual TLS and HBONE tunnels; the hops add up to what the client waited."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    made = traced_trial(plane, tmp_path)
    value = {(m.component, m.metric): m.value for m in made}
    hops = readback.read(made, plane)

    assert hops is not None
    assert value["hops", "requests"] > 0
    if not value["hops", "packets_lost"]:
        assert value["hops", "whole"] == 1.0
        assert hops.shown[50]["remainder"] == hops.shown[99]["remainder"] == 0.0
    assert [row.name for row in hops.rows if row.kind == PROXY] == proxies
    (link,) = (row for row in hops.rows if row.kind == WIRE)
    for row in [link, *(row for row in hops.rows if row.kind == PROXY)]:
        least = SHORTEST * LINK_US if row is link else 0.0
        for way in (THERE, BACK):
            found = row.median[way]
            assert found is not None and found.value > least
    (app,) = (row for row in hops.rows if row.kind == APP)
    assert app.name == "application server"
    edge, total = value["hops", "edge_median"], value["hops", "total_median"]
    assert 2 * SHORTEST * LINK_US < edge < total
