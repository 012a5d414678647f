"""bench.bringup: how long N hosts take to come up and go down, ours beside Mininet's, interleaved.

A host of ours is a routed workload, first as it is (what an idle workload of a lab is: a namespace, wired and
addressed), then with a sleeping process of its own user, PID and mount namespace; one of Mininet's is a bash in a
network namespace on a Linux bridge, so only the second column stands beside Mininet's. Mininet runs under the system's
Python (Debian packages `mininet` and `bridge-utils`) and stops what it started. Before each measurement, ours or
Mininet's, there is a pause: the kernel takes the last lab's namespaces apart in the background, on a core that the next
one needs.

Labs keep their state in memory, as /run is on an ordinary machine: where it is on a disk, the two files of a host cost
the disk's time, and on an ext4 without a journal the more of it the more were deleted within the last minutes, for it
passes over each of those (30 to 100 ms a hundred hosts after some rounds of this bench).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import MachineError
from testbed.model.topology import App, Node, Topology, Workload, node_network, workload_address
from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Spawn

PER_NODE = 250
PAUSE_S, PAUSE_PER_HOST_S = 0.5, 0.004
MININET_PYTHON = "/usr/bin/python3"
MEND = "apt-get install --no-install-recommends mininet bridge-utils"
MININET = """
import json, sys, time
from mininet.net import Mininet
from mininet.topo import SingleSwitchTopo
from mininet.nodelib import LinuxBridge
from mininet.log import setLogLevel
setLogLevel("error")
begin = time.perf_counter()
net = Mininet(topo=SingleSwitchTopo(int(sys.argv[1])), switch=LinuxBridge, controller=None, autoSetMacs=True)
try:
    net.start()
    up = time.perf_counter()
finally:
    net.stop()
print(json.dumps([up - begin, time.perf_counter() - up]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over rounds, seconds."""

    who: str
    hosts: int
    wired_s: float | None
    """Until every host is wired, addressed and routed; None where it cannot be told apart."""
    up_s: float
    """Until a process runs in every host, too."""
    down_s: float
    rounds: int


def hosts(count: int) -> Topology:
    """`count` workloads, as many on a node as it holds."""
    nodes, workloads = [], []
    for first in range(0, count, PER_NODE):
        number = first // PER_NODE + 1
        network, gateway = node_network(number)
        nodes.append(Node(name=f"node{number}", zone="z", address=gateway, network=network))
        for i in range(min(PER_NODE, count - first)):
            workloads.append(
                Workload(
                    name=f"h{first + i}", group="h", namespace="default", service_account="h", node=f"node{number}",
                    address=workload_address(number, i), app=App(kind="idle"),
                )
            )  # fmt: skip
    return Topology(name=f"{count}-hosts", nodes=tuple(nodes), workloads=tuple(workloads), services=(), links=())


def ours(count: int) -> tuple[float | None, float, float]:
    """(wired, up, down) in seconds."""
    topology = hosts(count)
    begin = time.perf_counter()
    lab = NetnsRuntime().up(topology, name=f"bringup-{os.getpid()}")
    wired = time.perf_counter()
    try:
        lab.spawn(
            [
                Spawn(
                    name=f"s.{w.name}",
                    sandbox=w.name,
                    argv=["sleep", "3600"],
                    uid=20000 + i,
                    folder=lab.folder / "p" / w.name,
                )
                for i, w in enumerate(topology.workloads)
            ]
        )
        up = time.perf_counter()
    finally:
        lab.down()
    return wired - begin, up - begin, time.perf_counter() - up


def mininet_lacks(python: str = MININET_PYTHON) -> str | None:
    """Why Mininet cannot stand beside us, with the mend; None when it can."""
    lacking = []
    asked = [python, "-c", "import mininet.net"]
    if not Path(python).exists() or subprocess.run(asked, capture_output=True).returncode:
        lacking.append("mininet")
    if not shutil.which("brctl", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        lacking.append("bridge-utils (brctl)")
    return f"no Mininet beside: {' and '.join(lacking)} not installed; {MEND}" if lacking else None


def mininet(count: int) -> tuple[float | None, float, float]:
    done = subprocess.run([MININET_PYTHON, "-c", MININET, str(count)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise MachineError(f"Mininet with {count} hosts failed: {done.stderr.strip()[-300:]}")
    up, down = json.loads(done.stdout.splitlines()[-1])
    return None, up, down


def run(sizes: Sequence[int] = (10, 100), rounds: int = 3, *, mininet_up_to: int = 100) -> list[Row]:
    """Rounds are interleaved, so that drift of the machine meets both alike."""
    peers: dict[str, Callable[[int], tuple[float | None, float, float]]] = {"meshbed": ours}
    if mininet_lacks() is None:
        peers["mininet"] = mininet
    taken: dict[tuple[str, int], list[tuple[float | None, float, float]]] = {}
    before = 0
    for _ in range(rounds):
        for size in sizes:
            for who, measure in peers.items():
                if who == "meshbed" or size <= mininet_up_to:
                    time.sleep(PAUSE_S + PAUSE_PER_HOST_S * before)
                    before = size
                    taken.setdefault((who, size), []).append(measure(size))
    return [
        Row(
            who=who, hosts=size, rounds=len(took), wired_s=_median([wired for wired, _, _ in took]),
            up_s=statistics.median(up for _, up, _ in took), down_s=statistics.median(down for _, _, down in took),
        )
        for (who, size), took in sorted(taken.items(), key=lambda item: (item[0][1], item[0][0]))
    ]  # fmt: skip


def filesystem(path: str, mountinfo: str) -> str:
    """Of what kind `path` is, by the text of /proc/self/mountinfo."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        where = left.split()[4]
        if len(where) >= len(best) and f"{path}/".startswith(f"{where.rstrip('/')}/"):
            best, kind = where, right.split()[0]
    return kind


@contextmanager
def state_in_memory() -> Iterator[str]:
    """Labs begin with their state in /dev/shm where it would be on a disk, unless MESHBED_STATE says where. Gives what
    to print of it.
    """
    kinds = {path: filesystem(path, Path("/proc/self/mountinfo").read_text()) for path in ("/run", "/dev/shm")}
    if "MESHBED_STATE" in os.environ or kinds["/run"] == "tmpfs" or kinds["/dev/shm"] != "tmpfs":
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="meshbed-", dir="/dev/shm") as folder:
        os.environ["MESHBED_STATE"] = folder
        try:
            yield f"State of our labs in /dev/shm, for /run is on a disk here ({kinds['/run']})."
        finally:
            del os.environ["MESHBED_STATE"]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def table(rows: Sequence[Row]) -> str:
    lines = ["| hosts | who | wired, ms | with a process in each, ms | down, ms | rounds |", "|---" * 6 + "|"]
    for r in rows:
        wired = "–" if r.wired_s is None else f"{r.wired_s * 1e3:.0f}"
        lines.append(f"| {r.hosts} | {r.who} | {wired} | {r.up_s * 1e3:.0f} | {r.down_s * 1e3:.0f} | {r.rounds} |")
    return "\n".join(lines)


def main() -> None:
    lack = mininet_lacks()
    if lack:
        print(lack, file=sys.stderr)
    with state_in_memory() as where:
        print(table(run((10, 100, 1000))))
    if where:
        print(where)
    print(lack or "A host of ours holds a sleeping process, one of Mininet's a bash: part of Mininet's cost.")


if __name__ == "__main__":
    main()
