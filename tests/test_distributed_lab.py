"""A load of several processes in a real lab: behind a captured client every request is sent once and seen once."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import deploy, lab, planespec, topofile, trial
from testbed.deploy import Deployment
from testbed.errors import PeerError
from testbed.links.wire import WireLinks
from testbed.load import rowfile
from testbed.registry import load
from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Process, Runtime, Spawn
from tests.labs import needs_root
from tests.loose import gates

LOAD = dataclasses.replace(EXPERIMENT.load, rate_rps=60, connections=3, warmup_s=0.3, window_s=1.2, processes=2)
QUESTION = dataclasses.replace(EXPERIMENT, topology="pair", load=LOAD)


@contextmanager
def deployed(runtime: Runtime, tmp_path: Path, plane: str) -> Iterator[Deployment]:
    topology = topofile.load(topofile.find("pair"))
    placement = planespec.place(plane, topology)
    made = lab.up(topology, runtime=runtime, links=WireLinks(), name=f"d{os.getpid()}", logs=tmp_path / "logs")
    with made as up, deploy.deploy(up, placement) as deployment:
        yield deployment


def sends_every_request_once(deployment: Deployment) -> None:
    folder = deployment.lab.folder / "load"
    before = trial.seen_by_apps(deployment.lab, ["server"])
    outcome = trial.run(
        deployment, QUESTION, plane="x", round_number=1, block=1, seed=1, folder=folder, gates=gates(error_share=1.0)
    )
    after = trial.seen_by_apps(deployment.lab, ["server"])

    assert before is not None and after is not None
    workers = [rowfile.decode((folder / "generator" / f"worker{n}-rows.bin").read_bytes())[1] for n in (1, 2)]
    sent = sum(map(len, workers))
    counted = json.loads((folder / "generator" / "locust.json").read_text())
    assert all(workers) and counted["requests"] == sent
    # The trial asks for the count twice; asking is counted once answered, so the last one here is not.
    assert after - before == sent + 3
    assert outcome.reasons == ()
    lags = [c.component for c in outcome.certificate.checks if c.name == "lag"]
    assert lags == ["client", "client worker 1", "client worker 2"]
    shares = {m.component for m in outcome.measurements if m.metric == "cpu_share"}
    assert shares == {"client", "client worker 1", "client worker 2"}


@pytest.mark.root
@needs_root
def test_each_request_is_sent_and_seen_once_and_a_worker_that_dies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under sidecars, whose capture must leave locust's own talk over loopback alone: the target's count is exact."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    with deployed(NetnsRuntime(), tmp_path, "sidecar") as deployment:
        sends_every_request_once(deployment)

        spawn = deployment.lab.running.spawn
        ended: list[Process] = []

        def without_second(spawns: Sequence[Spawn]) -> list[Process]:
            made = spawn(spawns)
            made[2].signal(9)
            ended.extend(made)
            return made

        monkeypatch.setattr(deployment.lab.running, "spawn", without_second)
        with pytest.raises(PeerError, match="load generator in client, worker 2 of 2: ended with code -9"):
            load("load", "open")().run(
                deployment.lab.running, client="client", target=("127.0.0.1", 1), plan=LOAD, seed=1,
                folder=deployment.lab.folder / "load",
            )  # fmt: skip
        assert [process.poll() is not None for process in ended] == [True] * 3
