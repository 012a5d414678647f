"""What the kernel says of the machine during a trial: cores, pressure, run queues, namespaces' counters, who used CPU.

Parsers are pure; a reader is called for names and values of counters that only grow (`window.Sampler`). What a machine
does not have is absent from the answer, never zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed.fidelity import CpuReading, HostReading, NetReading, ProxyReading
from testbed.observe.procstat import clock_cpu
from testbed.runtime.enter import in_netns
from testbed.seams import Process

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
WIRE, GENERATOR = "--owner-fd=", "testbed.load.generator"
"""Words of their command lines."""


def parse_stat(text: str) -> dict[str, float]:
    """Seconds of /proc/stat's first line, over all cores, and how many cores there are."""
    lines = text.splitlines()
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    ticks = [int(word) for word in lines[0].split()[1:9]]
    cores = sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines)
    return {f"host.{n}": t / TICKS_PER_S for n, t in zip(names, ticks, strict=False)} | {"host.cores": float(cores)}


def parse_pressure(text: str) -> float | None:
    """Seconds in which somebody waited, of /proc/pressure/cpu; None where it does not say."""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "some":
            return int(rest.rpartition("total=")[2]) / 1e6
    return None


def parse_schedstat(text: str) -> tuple[int, int]:
    """Nanoseconds on a core, and waiting for one, of a thread."""
    ran, waited, _ = text.split()
    return int(ran), int(waited)


def parse_pairs(text: str) -> dict[str, int]:
    """`Tcp.RetransSegs` and the like of /proc/net/snmp or netstat: a line of names, then one of values."""
    found = {}
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        kind, _, rest = names.partition(":")
        for name, value in zip(rest.split(), values.partition(":")[2].split(), strict=False):
            found[f"{kind}.{name}"] = int(value)
    return found


def parse_devices(text: str) -> dict[str, tuple[int, int]]:
    """Device → (packets, drops), both directions, of /proc/net/dev; loopback left out."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        words = [int(word) for word in rest.split()]
        if name.strip() != "lo":
            found[name.strip()] = (words[1] + words[9], words[3] + words[11])
    return found


def parse_softnet(text: str) -> int:
    """Frames dropped for a full backlog, over all cores (hexadecimal, the second column)."""
    return sum(int(line.split()[1], 16) for line in text.splitlines() if line.strip())


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


@dataclass(slots=True)
class HostReader:
    proc: Path = PROC

    def __call__(self) -> dict[str, float]:
        found = parse_stat(text) if (text := _text(self.proc / "stat")) else {}
        pressure = _text(self.proc / "pressure" / "cpu")
        waited_s = parse_pressure(pressure) if pressure else None
        return found | ({} if waited_s is None else {"host.psi": waited_s})


@dataclass(slots=True)
class QueueReader:
    """Run and wait of each component, over all its threads."""

    components: Mapping[str, Process]
    proc: Path = PROC

    def __call__(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, process in self.components.items():
            ran = waited = 0
            try:
                threads = os.listdir(self.proc / str(process.pid) / "task")
            except OSError:
                continue
            for thread in threads:
                text = _text(self.proc / str(process.pid) / "task" / thread / "schedstat")
                if text:
                    one = parse_schedstat(text)
                    ran, waited = ran + one[0], waited + one[1]
            if ran:
                found |= {f"run.{name}": ran / 1e9, f"wait.{name}": waited / 1e9}
        return found


@dataclass(slots=True)
class CpuReader:
    """CPU seconds of every process of the machine, added up by who it is.

    A process is asked by its clock, in nanoseconds: ticks are too coarse for some seconds of light load. Whoever ends
    between two looks takes what it used since with it.
    """

    known: Mapping[int, str]
    """Process id → component."""
    folder: str
    """Of the lab: whose command line names it is part of the lab."""
    proc: Path = PROC
    _last: dict[int, int] = field(default_factory=dict)
    _who: dict[int, str] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _begun: bool = False

    def __call__(self) -> dict[str, float]:
        alive = {}
        for pid in self._pids():
            try:
                used = clock_cpu(pid)
            except ProcessLookupError:
                continue
            alive[pid] = used
            if pid not in self._last:
                self._who[pid] = self._name(pid)
            elif used < self._last[pid]:  # another process has its number now
                self._who[pid], self._last[pid] = self._name(pid), 0
            # Of a process that is new since the last look all is new; at the first look it is what was before.
            before = self._last.get(pid, 0 if self._begun else used)
            who = self._who[pid]
            self._sums[who] = self._sums.get(who, 0.0) + (used - before) / 1e9
        self._last, self._begun = alive, True
        return {f"cpu.{who}": spent_s for who, spent_s in self._sums.items()}

    def _pids(self) -> Iterator[int]:
        try:
            yield from (int(name) for name in os.listdir(self.proc) if name.isdigit())
        except OSError:
            return

    def _name(self, pid: int) -> str:
        if pid in self.known:
            return self.known[pid]
        cmdline = (_text(self.proc / str(pid) / "cmdline") or "").replace("\0", " ")
        ours = self._ours(pid) or self.folder in cmdline
        return who_is(cmdline, _text(self.proc / str(pid) / "comm") or "", ours=ours)

    def _ours(self, pid: int) -> bool:
        """Whether it is this process or descends from it."""
        for _ in range(GENERATIONS):
            if pid == os.getpid():
                return True
            words = (_text(self.proc / str(pid) / "stat") or "").rpartition(")")[2].split()
            pid = int(words[1]) if len(words) > 1 else 0
            if not pid:
                return False
        return False


GENERATIONS = 8


def who_is(cmdline: str, comm: str, *, ours: bool) -> str:
    """Under whom a process that is no component of the lab goes: part of the testbed, the kernel, or another."""
    if not cmdline.strip():
        return "kernel"  # its threads have none
    if not ours:
        return f"others/{comm.strip() or '?'}"
    return "wire" if WIRE in cmdline else "client" if GENERATOR in cmdline else "testbed"


def host_reading(grown: Mapping[str, float], window_s: float) -> HostReading | None:
    """None where /proc/stat could not be read."""
    cores = grown.get("host.cores", 0.0)
    if not cores or not window_s > 0:
        return None
    whole_s = cores * window_s
    return HostReading(
        # Of what the hypervisor left: with a fifth stolen, four fifths busy is all there is.
        busy=_busy_s(grown, whole_s) / max(whole_s - grown["host.steal"], 1e-9),
        steal=min(1.0, grown["host.steal"] / whole_s),
        psi_cpu=min(1.0, grown["host.psi"] / window_s) if "host.psi" in grown else None,
    )


def _busy_s(grown: Mapping[str, float], whole_s: float) -> float:
    """What was neither idle nor stolen. Idle time is exact where an idle core has no ticks; user and system are not."""
    left_s = whole_s - grown["host.steal"]
    return min(left_s, max(0.0, left_s - grown["host.idle"] - grown["host.iowait"]))


def cpu_reading(grown: Mapping[str, float], window_s: float) -> CpuReading | None:
    if not (cores := int(grown.get("host.cores", 0))) or not window_s > 0:
        return None
    spent: dict[str, float] = {}
    others: dict[str, float] = {}
    for name, used_s in grown.items():
        if name.startswith("cpu."):
            who, _, program = name.removeprefix("cpu.").partition("/")
            spent[who] = spent.get(who, 0.0) + used_s
            if program and used_s > 0:
                others[program] = used_s
    busy_s = _busy_s(grown, cores * window_s)
    return CpuReading(
        machine_s=busy_s, cores=cores, spent_s=spent, others=others, window_s=window_s, softirq_s=grown["host.softirq"],
    )


def queue_readings(grown: Mapping[str, float]) -> dict[str, ProxyReading]:
    return {
        (name := key.removeprefix("run.")): ProxyReading(run_s=ran_s, wait_s=grown.get(f"wait.{name}", 0.0))
        for key, ran_s in grown.items()
        if key.startswith("run.")
    }


def net_counters(netns: Mapping[str, str], proc: Path = PROC) -> dict[str, NetReading]:
    """Since each namespace was made; `netns` are paths by sandbox. Those that are gone are absent."""
    found = {}
    for name, where in netns.items():
        try:
            found[name] = in_netns(where, lambda: _net(proc / "thread-self" / "net"))
        except Exception:  # a container that ended in the trial: its own check says so
            continue
    return found


def _net(folder: Path) -> NetReading:
    tcp = parse_pairs(_text(folder / "snmp") or "")
    more = parse_pairs(_text(folder / "netstat") or "")
    devices = parse_devices(_text(folder / "dev") or "")
    return NetReading(
        segments_sent=tcp.get("Tcp.OutSegs", 0),
        retransmitted=tcp.get("Tcp.RetransSegs", 0),
        listen_drops=more.get("TcpExt.ListenDrops", 0),
        device_packets=sum(packets for packets, _ in devices.values()),
        device_drops=sum(drops for _, drops in devices.values()),
    )


def net_since(before: Mapping[str, NetReading], after: Mapping[str, NetReading]) -> dict[str, NetReading]:
    return {
        name: NetReading(
            segments_sent=now.segments_sent - then.segments_sent,
            retransmitted=now.retransmitted - then.retransmitted,
            listen_drops=now.listen_drops - then.listen_drops,
            device_packets=now.device_packets - then.device_packets,
            device_drops=now.device_drops - then.device_drops,
        )
        for name, now in after.items()
        if (then := before.get(name)) is not None
    }


def softnet_drops(proc: Path = PROC) -> int:
    return parse_softnet(_text(proc / "net" / "softnet_stat") or "")
