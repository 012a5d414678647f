"""A trial during which something happens to a container is kept, and does not count."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import deploy, lab, planespec, topofile, trial
from testbed.links.probe import choose
from testbed.runtime.dockerlab import DockerLab
from testbed.runtime.dockerruntime import DockerRuntime
from tests.docker.containers import docker
from tests.labs import needs_engine
from tests.loose import gates

pytestmark = [pytest.mark.root, pytest.mark.docker]
LOAD = dataclasses.replace(EXPERIMENT.load, rate_rps=50, warmup_s=0.3, window_s=2.0)
EASY = gates(error_share=1.0, rate_share=0.0)
"""What is looked for here must not hide behind a busy machine."""


@pytest.mark.parametrize(
    ("verb", "victim", "reason"),
    [
        (("restart", "-t", "0"), "node-b", "sandbox node-b: its container was begun again"),
        (("restart", "-t", "0"), "app.tcp", "app tcp (exit -9)"),
        (("kill",), "tcp", "sandbox tcp: its container ended"),
        ((), "", ""),
    ],
    ids=["node restarted", "app restarted", "workload killed", "nothing"],
)
def test_what_happens_to_a_container_in_a_trial_is_its_reason(
    verb: tuple[str, ...], victim: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no request noticed: the network outlives its container, but is no longer that of the lab."""
    needs_engine()
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = topofile.load(topofile.find("pair"))
    placement = planespec.place("none", topology)
    with (
        lab.up(topology, runtime=DockerRuntime(), links=choose(), name=f"f{os.getpid()}", logs=tmp_path / "logs") as up,
        deploy.deploy(up, placement) as deployment,
    ):
        assert isinstance(up.running, DockerLab)
        incident = threading.Timer(1.5, lambda: docker(*verb, up.running.of.name(victim)))  # type: ignore[attr-defined]
        if verb:
            incident.start()
        outcome = trial.run(
            deployment, dataclasses.replace(EXPERIMENT, topology="pair", load=LOAD), plane="none", round_number=1,
            block=1, seed=1, folder=up.folder / "load", gates=EASY,
        )  # fmt: skip

    assert [x for x in outcome.reasons if reason in x] if reason else outcome.reasons == ()
    assert outcome.requests and all(m.valid is not bool(reason) for m in outcome.measurements)
