"""What the kernel says of the machine: its texts parsed, its counters turned into readings, this very process found."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import fidelityread as reading
from testbed.fidelity import NetReading

STAT = """cpu  300 0 100 500 20 0 40 40 0 0
cpu0 150 0 50 250 10 0 20 20 0 0
cpu1 150 0 50 250 10 0 20 20 0 0
intr 5
"""
SNMP = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm OutSegs RetransSegs\nTcp: 1 500 3\n"
DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 0 9 0 0 0 0 9 9 0 9 0 0 0 0
  eth0:1000 10 0 1 0 0 0 0 2000 20 0 2 0 0 0 0
"""  # noqa: E501


@dataclass
class Itself:
    name: str = "me"
    pid: int = 0


def test_the_kernels_texts_are_read_by_their_columns() -> None:
    """Loopback is no device of a link; the total of "some" is what grows."""
    assert reading.parse_stat(STAT)["host.idle"] == 500 / reading.TICKS_PER_S
    assert reading.parse_stat(STAT)["host.cores"] == 2
    assert reading.parse_pressure("some avg10=1.00 avg60=0 avg300=0 total=2500000\nfull avg10=0 total=1\n") == 2.5
    assert reading.parse_pressure("") is None
    assert reading.parse_schedstat("120 30 4\n") == (120, 30)
    assert reading.parse_pairs(SNMP)["Tcp.RetransSegs"] == 3
    assert reading.parse_devices(DEV) == {"eth0": (30, 3)}
    assert reading.parse_softnet("000000ff 00000002 0\n00000001 0000000a 0\n") == 12


def test_busy_is_what_is_neither_idle_nor_stolen() -> None:
    """Of what was left of two cores over four seconds: a machine whose idle time is all gone is busy, stolen or not."""
    grown = {"host.cores": 2.0, "host.idle": 3.0, "host.iowait": 1.0, "host.steal": 0.8, "host.psi": 2.0}
    found = reading.host_reading(grown, 4.0)

    assert found is not None
    assert (found.busy, found.steal, found.psi_cpu) == (pytest.approx(3.2 / 7.2), pytest.approx(0.1), 0.5)
    full = reading.host_reading(grown | {"host.idle": 0.0, "host.iowait": 0.0}, 4.0)
    assert full is not None and full.busy == pytest.approx(1.0)
    del grown["host.psi"]
    silent = reading.host_reading(grown, 4.0)
    assert silent is not None and silent.psi_cpu is None
    assert reading.host_reading({}, 4.0) is None


def test_cpu_goes_to_whom_it_is_known_of_and_others_are_named() -> None:
    """Explained is what the processes' clocks add up to, of what the machine says it was busy."""
    grown = {
        "host.cores": 2.0, "host.idle": 4.0, "host.iowait": 0.0, "host.steal": 0.0, "host.softirq": 0.1,
        "cpu.ztunnel.a": 1.0, "cpu.client": 0.5, "cpu.others/make": 0.25, "cpu.others/cc": 0.05,
    }  # fmt: skip
    found = reading.cpu_reading(grown, 3.0)

    assert found is not None
    assert dict(found.spent_s) == {"ztunnel.a": 1.0, "client": 0.5, "others": pytest.approx(0.3)}
    assert dict(found.others) == {"make": 0.25, "cc": 0.05}
    assert (found.machine_s, found.explained) == (2.0, pytest.approx(0.9))


def test_run_and_wait_belong_together() -> None:
    """By component."""
    (found,) = reading.queue_readings({"run.z": 1.0, "wait.z": 0.5, "host.idle": 9.0}).items()

    assert found[0] == "z" and (found[1].run_s, found[1].wait_s) == (1.0, 0.5)


def test_counters_of_a_namespace_are_those_since_before() -> None:
    """A namespace that is gone afterwards, or is new, says nothing."""
    before = {"a": NetReading(segments_sent=5, retransmitted=1), "gone": NetReading()}
    after = {"a": NetReading(segments_sent=15, retransmitted=4, device_drops=2), "new": NetReading()}

    assert reading.net_since(before, after) == {"a": NetReading(segments_sent=10, retransmitted=3, device_drops=2)}


@pytest.mark.parametrize(
    ("cmdline", "ours", "who"),
    [
        ("", False, "kernel"),
        ("python -m testbed.load.generator --plan x", True, "client"),
        ("python -m testbed.load.generator --plan x", False, "others/python"),  # another lab's
        ("python -I -c … --owner-fd=7", True, "wire"),
        ("python -m testbed", True, "testbed"),
        ("make", False, "others/python"),
    ],
)
def test_who_a_process_is(cmdline: str, ours: bool, who: str) -> None:
    """Threads of the kernel have no command line; what is not of this lab is another's."""
    assert reading.who_is(cmdline, "python\n", ours=ours) == who


def test_this_process_is_found_with_what_it_burns() -> None:
    """By its clock, in nanoseconds; its run queue likewise, over all threads."""
    cpu = reading.CpuReader(known={}, folder="/no/such/lab")
    queue = reading.QueueReader({"me": Itself(pid=os.getpid()), "gone": Itself(pid=2**22 + 1)})  # type: ignore[dict-item]
    cpu()
    before = queue()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass

    assert cpu()["cpu.testbed"] >= 0.19
    assert queue()["run.me"] - before["run.me"] >= 0.19
    assert "run.gone" not in before


def test_a_kernel_without_these_files_tells_nothing(tmp_path: Path) -> None:
    """Absent, never zero."""
    assert reading.HostReader(proc=tmp_path)() == {}
    (tmp_path / "stat").write_text(STAT)
    assert "host.psi" not in reading.HostReader(proc=tmp_path)()
    assert reading.softnet_drops(tmp_path) == 0
    assert reading.net_counters({"gone": "/proc/0/no-such-netns"}) == {}
