"""CPU and memory of components, on synthetic v1, hybrid and v2 trees, and on this very process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.errors import MachineError
from testbed.observe import procstat
from testbed.runtime.cgroups import Trees, parse_trees


@dataclass
class Program:
    name: str = "p"
    pid: int = 0
    cgroup: str | None = None

    def poll(self) -> int | None: ...
    def signal(self, number: int) -> None: ...
    def wait(self, timeout_s: float) -> int | None: ...


def tree(root: Path, files: dict[str, str]) -> Path:
    folder = root / "meshbed/lab/p"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return root


V1 = {"cpuacct.usage": "1234567891\n", "cgroup.procs": ""}
V2 = {"cpu.stat": "usage_usec 2000001\nuser_usec 1\nsystem_usec 2\n", "cgroup.procs": "11\n12\n"}


def test_v1_tree_counts_in_nanoseconds(tmp_path: Path) -> None:
    """cpuacct.usage is taken as it is."""
    found = Trees(cpuacct=tree(tmp_path, V1))

    assert procstat.cgroup_cpu(found, "meshbed/lab/p") == (1234567891, "cpuacct")


def test_pure_v2_tree_needs_no_controller(tmp_path: Path) -> None:
    """cpu.stat alone, without any controller, gives CPU and the processes."""
    found = Trees(unified=tree(tmp_path, V2))

    assert procstat.cgroup_cpu(found, "meshbed/lab/p") == (2000001000, "cpu.stat")
    assert procstat.cgroup_pids(found, "meshbed/lab/p") == [11, 12]


def test_hybrid_prefers_the_finer_clock(tmp_path: Path) -> None:
    """Where both trees have the cgroup, the v1 counter in nanoseconds is read."""
    found = Trees(cpuacct=tree(tmp_path / "a", V1), unified=tree(tmp_path / "b", V2))

    assert procstat.cgroup_cpu(found, "meshbed/lab/p") == (1234567891, "cpuacct")


def test_cgroup_that_is_nowhere_is_none(tmp_path: Path) -> None:
    """A missing cgroup is told apart from one that used nothing."""
    assert procstat.cgroup_cpu(Trees(cpuacct=tmp_path, unified=tmp_path), "meshbed/lab/p") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9 1 0:3 / /c/cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n", Trees(cpuacct=Path("/c/cpuacct"))),
        ("9 1 0:3 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", Trees(unified=Path("/sys/fs/cgroup"))),
        ("9 1 0:3 / /c/memory rw - cgroup cgroup rw,memory\n9 1 0:3 / / rw - ext4 /dev/x rw\n", Trees()),
    ],
)
def test_trees_are_found_in_mountinfo(text: str, expected: Trees) -> None:
    """v1 with joined controllers, v2 with propagation fields, and neither."""
    assert parse_trees(text) == expected


def test_pss_is_summed_and_ended_processes_count_nothing(tmp_path: Path) -> None:
    """Three processes, one of which has ended between listing and reading."""
    for pid, kilobytes in ((11, 100), (12, 23)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "smaps_rollup").write_text(
            f"00-ff ---p [rollup]\nRss: 999 kB\nPss: {kilobytes} kB\nPss_Anon: 7 kB\n"
        )

    assert procstat.pss([11, 12, 13], proc=tmp_path) == 123 * 1024
    assert procstat.pss([13], proc=tmp_path) is None


def test_without_cgroup_the_process_clock_is_read() -> None:
    """The clock of another process id equals this process's own CPU clock, and its memory is there."""
    before = time.process_time_ns()
    reading = procstat.read(Program(pid=os.getpid()), now=1.0)

    assert before <= reading.cpu_ns <= time.process_time_ns()
    assert reading.source == "clock" and reading.pss_bytes and reading.pss_bytes > 1 << 20


def test_ended_process_without_cgroup_says_what_to_do() -> None:
    """The error names the component and the mend."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

    with pytest.raises(MachineError, match=r"zt: it has ended.*run as root"):
        procstat.read(Program(name="zt", pid=pid), now=0.0)


def test_usage_is_a_difference_of_like_readings() -> None:
    """CPU subtracts, memory is the last look; two sources do not subtract."""
    a = procstat.Reading(component="p", at_s=1.0, cpu_ns=5, pss_bytes=1, source="clock")
    b = procstat.Reading(component="p", at_s=3.0, cpu_ns=1_000_000_005, pss_bytes=2, source="clock")

    assert procstat.usage(a, b) == procstat.Usage(component="p", seconds=2.0, cpu_s=1.0, pss_bytes=2, source="clock")
    with pytest.raises(ValueError, match="do not match"):
        procstat.usage(a, procstat.Reading(component="p", at_s=3.0, cpu_ns=9, pss_bytes=2, source="cpuacct"))
