"""CPU and memory of each program of a lab, from its cgroup where it has one, else from its processes' clocks.

CPU comes from v1 `cpuacct.usage` (ns) or v2 `cpu.stat` (µs, which needs no controller), so children that ended are
counted; a process
clock forgets them. Memory is PSS: a page shared by n processes counts 1/n in each, so the sum over components is what
the machine really spends. Neither a user/system split nor ticks are read: both are sampled, and wrong below a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import MachineError
from testbed.runtime.cgroups import Trees, processes, trees
from testbed.seams import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at one component."""

    component: str
    at_s: float
    """CLOCK_MONOTONIC."""
    cpu_ns: int
    """Since the component began."""
    pss_bytes: int | None
    """None when it has ended, or its memory is not ours to read."""
    source: str
    """`cpuacct`, `cpu.stat` or `clock`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a component used between two readings."""

    component: str
    seconds: float
    cpu_s: float
    pss_bytes: int | None
    """At the end of the window."""
    source: str


def parse_pss(smaps_rollup: str) -> int:
    """Bytes of PSS in the text of /proc/<pid>/smaps_rollup. Raises ValueError when it says none."""
    for line in smaps_rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Pss line in smaps_rollup")


def parse_cpu_stat(cpu_stat: str) -> int:
    """Nanoseconds in the text of a v2 cpu.stat. Raises ValueError when it says none."""
    for line in cpu_stat.splitlines():
        key, _, value = line.partition(" ")
        if key == "usage_usec":
            return int(value) * 1000
    raise ValueError("no usage_usec line in cpu.stat")


def cgroup_cpu(found: Trees, cgroup: str) -> tuple[int, str] | None:
    """(nanoseconds, source) of a cgroup; None where no tree has it. v1 is asked first: it counts in ns."""
    if found.cpuacct is not None:
        try:
            return int((found.cpuacct / cgroup / "cpuacct.usage").read_text()), "cpuacct"
        except FileNotFoundError:
            pass
    if found.unified is not None:
        try:
            return parse_cpu_stat((found.unified / cgroup / "cpu.stat").read_text()), "cpu.stat"
        except FileNotFoundError:
            pass
    return None


def cgroup_pids(found: Trees, cgroup: str) -> list[int]:
    for tree in found.all:
        if (tree / cgroup).is_dir():
            return processes(tree / cgroup)
    return []


def clock_cpu(pid: int) -> int:
    """Nanoseconds of a whole process, its threads included. Raises ProcessLookupError when it has ended."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # CPUCLOCK_SCHED of `pid`: what clock_getcpuclockid(3) makes
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error


def pss(pids: Sequence[int], *, proc: Path = Path("/proc")) -> int | None:
    """Sum over processes; those that ended meanwhile count nothing. None when none could be read."""
    total = None
    for pid in pids:
        try:
            total = (total or 0) + parse_pss((proc / str(pid) / "smaps_rollup").read_text())
        except (OSError, ValueError):
            continue  # ended, or a zombie: it has no memory
    return total


def read(process: Process, *, now: float, found: Trees | None = None) -> Reading:
    """One look. Raises MachineError when neither a cgroup nor a clock tells."""
    found = found or trees()
    cpu = cgroup_cpu(found, process.cgroup) if process.cgroup else None
    pids = cgroup_pids(found, process.cgroup) if process.cgroup and cpu else [process.pid]
    if cpu is None:
        try:
            cpu = clock_cpu(process.pid), "clock"
        except ProcessLookupError as error:
            raise MachineError(
                f"{process.name}: it has ended, and without a cgroup its CPU time is gone; "
            "read before it ends, or run as root"
            ) from error
    return Reading(component=process.name, at_s=now, cpu_ns=cpu[0], pss_bytes=pss(pids), source=cpu[1])


def usage(before: Reading, after: Reading) -> Usage:
    """Raises ValueError for readings of different components or sources: their counters do not subtract."""
    if (before.component, before.source) != (after.component, after.source):
        raise ValueError(
            f"readings of {before.component} ({before.source}) and {after.component} ({after.source}) do not match"
        )
    return Usage(
        component=after.component,
        seconds=after.at_s - before.at_s,
        cpu_s=(after.cpu_ns - before.cpu_ns) / 1e9,
        pss_bytes=after.pss_bytes,
        source=after.source,
    )


class ProcStat:
    """Watches programs over a window (`seams.Observer`): `start`, then `stop` for the usage of each by name."""

    def __init__(self, watched: Sequence[Process]) -> None:
        self._watched = tuple(watched)
        self._before: Mapping[str, Reading] = {}
        self._found = trees()

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> Mapping[str, Usage]:
        after = self._read()
        return {name: usage(self._before[name], reading) for name, reading in after.items()}

    def _read(self) -> dict[str, Reading]:
        return {p.name: read(p, now=time.monotonic(), found=self._found) for p in self._watched}
