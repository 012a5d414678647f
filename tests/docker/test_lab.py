"""A lab of containers: what is wired, what a program of it can see and do, what is told of its end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.deploy import ZTUNNEL_CAPABILITIES
from testbed.errors import PeerError, UsageError
from testbed.observe import procstat
from testbed.runtime import dockerplan
from testbed.runtime.dockerlab import DockerLab
from testbed.runtime.dockerruntime import DockerRuntime
from testbed.seams import Spawn
from tests.docker.containers import docker, python, said, until
from tests.labs import line, needs_engine

pytestmark = [pytest.mark.root, pytest.mark.docker]
NAME = f"d{os.getpid()}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerLab]:
    needs_engine()
    old = os.environ.get("MESHBED_STATE")
    os.environ["MESHBED_STATE"] = str(tmp_path_factory.mktemp("life") / "state")
    try:
        with DockerRuntime().up(line(1, 2), name=NAME) as up:
            assert isinstance(up, DockerLab)
            yield up
    finally:
        os.environ.pop("MESHBED_STATE") if old is None else os.environ.update(MESHBED_STATE=old)


def test_workloads_of_a_node_reach_each_other_through_it(lab: DockerLab) -> None:
    """Routed, with the client's own address seen by the server."""
    server = lab.in_netns("w1-1", lambda: socket.create_server(("0.0.0.0", 80)))
    with server, lab.in_netns("w1-0", lambda: socket.create_connection(("10.0.1.3", 80), 3)):
        assert server.accept()[1][0] == "10.0.1.2"


def test_the_engine_shows_who_is_who(lab: DockerLab) -> None:
    """Names and labels are enough to find a container without us."""
    python(lab, "app.w1-0", "import time; time.sleep(60)")
    rows = docker("ps", "--filter", f"label={dockerplan.LAB}={NAME}", "--format", "{{json .}}").splitlines()
    shown = {row["Names"]: row["Labels"] for row in map(json.loads, rows)}

    assert len(shown) == 4
    name, labels = next((n, labels) for n, labels in shown.items() if n.endswith("-app.w1-0"))
    assert name.startswith(f"meshbed-{NAME}")
    for label in ("meshbed.node=n1", "meshbed.role=app", "meshbed.topology=line", f"meshbed.lab={NAME}"):
        assert label in labels


SEEN = (
    "import glob, os\n"
    "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    "print(status['Uid'].split(), status['CapEff'].strip(), status['CapPrm'].strip(), status['NoNewPrivs'].strip())\n"
    "print(sorted(int(p[6:]) for p in glob.glob('/proc/[0-9]*')))\n"
    "print(sorted(os.listdir(os.path.dirname(os.getcwd()))))\n"
    "try: open('/here', 'w'); print('wrote')\n"
    "except OSError as error: print(error.strerror)\n"
    "open('/tmp/mine', 'w'); open('own', 'w'); print('done')\n"
)


def test_a_program_is_alone_and_without_rights(lab: DockerLab) -> None:
    """Its own user, no capability, one process, no other folder of the lab, nothing to write to but its own."""
    process = python(lab, "seen", SEEN, uid=3001)

    assert said(process) == ["['3001', '3001', '3001', '3001'] 0000000000000000 0000000000000000 1", "[1]", "['seen']",
                             "Read-only file system", "done"]  # fmt: skip
    assert os.stat(lab.folder / "p" / "seen" / "own").st_uid == 3001


def test_capabilities_are_exactly_those_of_the_role(lab: DockerLab) -> None:
    """sys_admin 21, net_raw 13, net_admin 12, kept by an ordinary user; those to become it are gone."""
    process = python(lab, "entering", SEEN, uid=3002, capabilities=ZTUNNEL_CAPABILITIES)
    kept = f"{1 << 21 | 1 << 13 | 1 << 12:016x}"

    assert said(process)[0] == f"['3002', '3002', '3002', '3002'] {kept} {kept} 1"


def test_exit_codes_and_signals_are_told(lab: DockerLab) -> None:
    """As of any process: its own code, or minus the signal, also where PID 1 would be shielded from it."""
    ended = python(lab, "seven", "import sys; sys.exit(7)")
    sleeper = python(lab, "sleeper", "import time; print('up', flush=True); time.sleep(60)")
    handler = python(
        lab, "handler",
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('up', flush=True); time.sleep(60)",
    )  # fmt: skip
    for process in (sleeper, handler):
        until(lambda p=process: p.log and "up" in p.log.read_text(), "the program is up")

    assert ended.wait(15.0) == 7
    assert (sleeper.poll(), handler.poll()) == (None, None)
    for process in (sleeper, handler):
        process.signal(signal.SIGTERM)
    assert (sleeper.wait(15.0), handler.wait(15.0)) == (-15, 3)


def test_a_name_is_free_again_once_its_program_has_ended(lab: DockerLab) -> None:
    """As a load generator's, trial after trial; while it runs, it is refused."""
    first = python(lab, "again", "import time; time.sleep(60)")
    with pytest.raises(PeerError, match=r"again: .*there already|again: .*in use"):
        python(lab, "again", "pass")
    first.signal(signal.SIGKILL)
    first.wait(15.0)

    assert python(lab, "again", "pass").wait(15.0) == 0


def test_a_program_that_cannot_start_is_named(lab: DockerLab) -> None:
    """And a sandbox that is not there, with those that are."""
    folder = lab.folder / "p" / "none"
    image = Spawn(name="app.none", sandbox="w1-0", argv=["x"], uid=3003, folder=folder, image="no/such:image")
    with pytest.raises(PeerError, match=r"could not start 1 of 1: app.none: image no/such:image is not in the engine"):
        lab.spawn([image])
    with pytest.raises(UsageError, match=r"for sandbox 'nowhere', known are: n1, w1-0, w1-1"):
        lab.spawn([Spawn(name="x", sandbox="nowhere", argv=["x"], uid=3003, folder=folder)])


def test_cpu_of_a_component_counts_its_ended_children(lab: DockerLab) -> None:
    """From the cgroup that the engine made, by the reader that reads netns labs."""
    burn = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "  end = time.process_time() + 0.3\n"
        "  while time.process_time() < end: pass\n"
        "  os._exit(0)\n"
        "os.wait(); print('done', flush=True); time.sleep(60)"
    )
    process = python(lab, "burner", burn)
    until(lambda: process.log and "done" in process.log.read_text(), "the child has burnt")
    reading = procstat.read(process, now=0.0)

    assert reading.source in ("cpuacct", "cpu.stat")
    assert 0.29e9 < reading.cpu_ns < 1.5e9
    assert reading.pss_bytes is not None and reading.pss_bytes > 500_000


def test_another_process_attaches_and_finds_the_programs(lab: DockerLab) -> None:
    """By labels: what runs, and that it ended."""
    process = python(lab, "found", "import time; time.sleep(60)")
    attached = DockerRuntime().attach(NAME)
    assert isinstance(attached, DockerLab)

    assert attached.containers["found"].pid == process.pid
    assert attached.sandboxes == lab.sandboxes
    process.signal(signal.SIGKILL)
    assert attached.containers["found"].wait(15.0) == -9


def test_a_program_of_a_users_image_runs_with_its_own_words(lab: DockerLab) -> None:
    """Any image with any program: its variables reach it, and what it prints is read back from the engine."""
    own = f"meshbed-test-own:{os.getpid()}"
    docker("tag", lab.ground.image, own)
    try:
        spawn = Spawn(
            name="app.own", sandbox="w1-1", uid=3004, env={"GREETING": "hi"}, folder=Path("/nonexistent"), image=own,
            argv=["/bin/sh", "-c", "echo $GREETING; id -u; touch /data/x && echo wrote"], writable=("/data",),
        )  # fmt: skip
        (process,) = lab.spawn([spawn])

        assert process.wait(15.0) == 0
        assert process.log is not None and process.log.read_text().split() == ["hi", "3004", "wrote"]
    finally:
        docker("rmi", own)
