"""A wire process that is killed while load is driven over its link: the trial does not count, and the run says so."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import lab, registry, runs, topofile
from testbed.fidelity import PREFIX
from testbed.links.wire import WireLinks
from testbed.model.topology import Impairment
from testbed.runtime import ownership
from testbed.runtime.netns import NetnsRuntime
from testbed.store import Run
from testbed.store import runs as stored_runs
from tests.labs import needs_root
from tests.loose import gates

pytestmark = [pytest.mark.root, needs_root]

CUT = dataclasses.replace(
    EXPERIMENT,
    name="cut",
    rounds=1,
    aa_pair=False,
    planes=("none",),
    load=dataclasses.replace(EXPERIMENT.load, rate_rps=50, warmup_s=0.3, window_s=3.0),
)


def running(*words: str) -> list[int]:
    """Processes whose command line holds all the words; read from /proc, so independent of who started them."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if all(word in line for word in words):
                pids.append(int(entry.name))
    return pids


def ours(pid: int) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    except OSError:
        return False


def kill_the_wire_under_load(folder: Path, killed: list[int], within_s: float = 120.0) -> None:
    """Waits for the load generator of the lab below `folder`, lets a second of it pass, kills our wire process."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if running("testbed.load.generator", str(folder)):
            time.sleep(1.2)
            for pid in filter(ours, running("testbed.links.wireproc")):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            return
        time.sleep(0.02)


def test_a_wire_killed_in_mid_trial_makes_the_run_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4; the trial's rows are there, none valid, each with the link's name as the reason; nothing is left."""
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(registry.BUILT_IN["experiment"], "cut", f"{__name__}:CUT")
    # Only the dead link may make the trial invalid: a busy test machine may be late, requests may fail.
    loose = gates(error_share=1.0, rate_share=0.0)
    monkeypatch.setattr(runs, "Gates", lambda: loose)
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_wire_under_load, args=(tmp_path, killed))
    killer.start()
    try:
        code = runs.run("cut", seed=1, link="wire")
    finally:
        killer.join()
    printed = capsys.readouterr()
    (path,) = stored_runs(tmp_path / "results")
    measurements = Run.open(path).measurements()

    assert killed
    assert code == 4
    assert measurements and not any(m.valid for m in measurements)
    told = [m for m in measurements if not m.metric.startswith(PREFIX)]  # those rows bear a cause each
    assert told and all("link node-a--node-b" in m.reason for m in told)
    assert "does not count: " in printed.err and "link node-a--node-b" in printed.err
    assert ownership.labs() == []


def test_a_wire_ends_with_its_devices_however_late_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device being removed goes down first, and only that is told: a wire that looks between the two must look again.

    With a lab's namespaces the time between is a matter of luck; here it is half a second.
    """
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = topofile.load(topofile.find("pair"))
    delay = Impairment(delay_ms=1.0)
    links = tuple(dataclasses.replace(link, a_to_b=delay, b_to_a=delay) for link in topology.links)
    topology = dataclasses.replace(topology, links=links)
    with lab.up(topology, runtime=NetnsRuntime(), links=WireLinks(), name="late", logs=tmp_path / "logs"):
        (wire,) = filter(ours, running("testbed.links.wireproc"))

        def inside(*words: str) -> str:
            command = ["nsenter", "-t", str(wire), "-n", "ip", *words]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        devices = [name for line in inside("-br", "link").splitlines() if "@" in (name := line.split()[0])]
        devices = [name.partition("@")[0] for name in devices]
        assert len(devices) == 2 * len(links)
        for name in devices:
            inside("link", "set", name, "down")
        time.sleep(0.5)
        assert ours(wire)  # they are down, not gone
        for name in devices:
            inside("link", "delete", name)
        end_s = time.monotonic() + 10
        while ours(wire) and time.monotonic() < end_s:
            time.sleep(0.05)

        assert not ours(wire)
