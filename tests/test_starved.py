"""A real lab's certificate: what holds whatever the machine's mood, and that a starved machine fails it by name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import deploy, lab, planespec, runs, topofile, trial
from testbed.deploy import Deployment
from testbed.fidelity import Gates, Level
from testbed.lab import APP_UID
from testbed.links.gauge import measure
from testbed.links.wire import WireLinks
from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Spawn
from tests.labs import needs_root
from tests.loose import gates

pytestmark = [pytest.mark.alone, pytest.mark.root, needs_root]

LOAD = dataclasses.replace(EXPERIMENT.load, rate_rps=50, connections=2, warmup_s=0.3, window_s=1.5)
QUESTION = dataclasses.replace(EXPERIMENT, load=LOAD)
LOOPS_PER_CORE = 2
NICE = -5
"""Three times the weight of whoever is measured: starved, and yet done in seconds."""
LONGEST_S = 90
BURN = f"import time\nend = time.monotonic() + {LONGEST_S}\nwhile time.monotonic() < end: pass"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    tmp = tmp_path_factory.mktemp("starved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESHBED_STATE", str(tmp / "state"))
        topology = topofile.load(topofile.find("two-zones"))
        placement = planespec.place("ambient", topology)
        extra = deploy.extra_sandboxes(placement)
        with (
            lab.up(
                topology, runtime=NetnsRuntime(), links=WireLinks(), name=f"s{os.getpid()}", logs=tmp / "logs",
                extra=extra,
            ) as running,
            deploy.deploy(running, placement) as deployed,
        ):  # fmt: skip
            yield deployed


@contextlib.contextmanager
def starving(deployed: Deployment) -> Iterator[None]:
    """Loops of the lab's own on every core, before everybody else in the queue."""
    spawns = []
    for number in range(LOOPS_PER_CORE * (os.cpu_count() or 1)):
        folder = deployed.lab.folder / f"burn-{number}"
        folder.mkdir(mode=0o700)
        spawns.append(
            Spawn(
                name=f"burn.{number}", sandbox="intruder", argv=[sys.executable, "-I", "-S", "-c", BURN], uid=APP_UID,
                folder=folder,
            )
        )  # fmt: skip
    processes = deployed.lab.running.spawn(spawns)
    try:
        for process in processes:
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        yield
    finally:
        for process in processes:
            process.signal(9)
            process.wait(10.0)


def once(deployed: Deployment, folder: Path, limits: Gates) -> trial.Outcome:
    running = deployed.lab
    rest = trial.at_rest(deployed, QUESTION, lambda: measure(running.running, running.links, probes=trial.PROBES))
    assert set(rest.idle_cores) == set(deployed.proxies) | {"app.server"}
    return trial.run(
        deployed, QUESTION, plane="ambient", round_number=1, block=1, seed=1, folder=folder, gates=limits, rest=rest
    )


def test_what_no_busy_machine_can_spoil_holds(deployment: Deployment) -> None:
    """Every request was counted by both ztunnels and the waypoint, links lost nothing on purpose, and each figure that
    the certificate rests on is a row of the measurements."""
    found = once(deployment, deployment.lab.folder / "calm", gates(error_share=1.0, rate_share=0.0))
    level = {(c.name, c.component): c.level for c in found.certificate.checks}

    for proxy in deployment.proxies:
        assert level["path", proxy] in (Level.PASS, Level.WARN), found.certificate  # warned where one was tried again
        assert ("run-queue", proxy) in level
    assert level["link-loss", "node-a--node-b"] is Level.PASS
    assert {"busy", "steal", "lag", "explained", "others", "retransmits", "drops"} <= {name for name, _ in level}
    rows = {(m.component, m.metric): m.value for m in found.measurements}
    assert rows["host", "cpu_machine_per_1000_requests"] > 0 < rows["host", "host_busy"] <= 1.0
    for who in ("client", "wire", "waypoint.waypoint", "app.server"):
        assert rows[who, "cpu_per_1000_requests"] > 0, who
    assert rows["waypoint.waypoint", "cpu_idle"] >= 0 and ("node-a--node-b", "link_rtt_loaded_p50") in rows
    assert len(found.links_after) == 1


def test_a_starved_machine_fails_it_and_is_named(deployment: Deployment) -> None:
    """Beside loops that take every core the trial does not count, whatever its latencies are: exit code 4."""
    with starving(deployment):
        found = once(deployment, deployment.lab.folder / "starved", Gates(error_share=1.0, rate_share=0.0))

    assert found.certificate.level is Level.FAIL
    assert any(re.fullmatch(r"host (9[7-9]|100)% busy", reason) for reason in found.reasons), found.reasons
    waited = [c for c in found.certificate.checks if c.name == "run-queue"]
    assert waited and any(c.level for c in waited), waited
    assert not any(m.valid for m in found.measurements)
    assert runs.verdict(found.measurements, []) == 4
