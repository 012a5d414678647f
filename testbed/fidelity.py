"""Whether the testbed was good enough for one trial: readings → checks, each PASS, WARN or FAIL with its cause. Pure.

A check says what was seen in words and figures, whatever its level; what a machine cannot tell has no level and says
"not available". A trial with a FAIL does not count. `fidelityread` and `linkwatch` do the reading, `paths` proves the
way. The idea is Mininet-HiFi's (Handigol et al., CoNEXT 2012): watch the emulator's own invariants, and where they
broke do not average the result away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum

from testbed.model.experiment import LinkReading

PREFIX = "fidelity."
"""Of the metrics that a certificate's checks are kept under."""


class Level(IntEnum):
    PASS = 0
    WARN = 1
    FAIL = 2


def _limit(value: float, why: str) -> float:
    return field(default=value, metadata={"why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Limits of a trial, fixed before the run and recorded in run.json; each with its reason (`why`).

    `warn_…` is where a warning begins; the others are where a trial no longer counts.
    """

    send_lag_p99_ms: float = _limit(5.0, "a request sent so late measures the generator; counted from intended times")
    warn_send_lag_p99_ms: float = _limit(1.5, "p99 of a sleep is 1.0 to 1.4 ms late on a machine that is well")
    error_share: float = _limit(0.001, "failed requests have no latency; more of them bend the percentiles")
    rate_share: float = _limit(0.97, "achieved over asked rate, open loop: below, the system was saturated")
    generator_cpu_share: float = _limit(0.8, "of one core: beyond, the generator queues by itself")
    host_busy: float = _limit(0.97, "no idle core left: whoever is woken waits for whoever runs")
    warn_host_busy: float = _limit(0.85, "wake-ups begin to wait for cores")
    host_steal: float = _limit(0.10, "the hypervisor took the cores away in every tenth tick")
    warn_host_steal: float = _limit(0.02, "taken cores show in p99 first")
    warn_psi_cpu: float = _limit(0.5, "half of the time somebody who could run did not; logged where the kernel tells")
    queue_wait: float = _limit(0.7, "of a proxy's run and wait: beside busy loops it is 70 to 90 %")
    warn_queue_wait: float = _limit(0.5, "24 to 43 % are its wake-ups alone at 200/s, on a machine that is well")
    retransmit_share: float = _limit(0.01, "of TCP segments where no loss was asked: a timeout each is 200 ms")
    warn_retransmit_share: float = _limit(0.0, "a link without loss needs none")
    drop_share: float = _limit(0.001, "frames that devices, sockets or wires lost unasked")
    warn_drop_share: float = _limit(0.0, "nothing should be lost unasked")
    loss_sigmas: float = _limit(4.0, "by chance the wire's loss is farther off once in 16,000 trials")
    link_off_share: float = _limit(2.0, "RTT under load off by so many tolerances of a link at rest")
    warn_link_late_ms: float = _limit(5.0, "a frame left the wire so late: some requests had another link")
    path_share: float = _limit(0.001, "of the requests that the target saw: not counted by a proxy, or counted astray")
    warn_explained: float = _limit(0.9, "of the machine's CPU: what nobody is charged with may belong to the plane")
    warn_others: float = _limit(0.1, "of the machine's cores for programs outside of the lab: noise")


def why(name: str) -> str:
    """Why a limit is what it is."""
    return next((f.metadata["why"] for f in fields(Gates) if f.name == name), "a limit of another version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    level: Level | None
    """None: not available on this machine, or for this plane."""
    cause: str
    """What was seen, in words and figures."""
    component: str = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    checks: tuple[Check, ...]

    @property
    def level(self) -> Level:
        return max((c.level for c in self.checks if c.level is not None), default=Level.PASS)

    def causes(self, level: Level) -> tuple[str, ...]:
        return tuple(c.cause for c in self.checks if c.level == level)

    @property
    def text(self) -> str:
        """`FAIL: host 100 % busy; …`."""
        return f"{self.level.name}: {'; '.join(self.causes(self.level))}" if self.level else "PASS"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """Shares of the window, over all cores."""

    busy: float
    """Not idle, of what was not stolen."""
    steal: float
    psi_cpu: float | None
    """Share of the window in which somebody waited for a core; None where the kernel does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReading:
    run_s: float
    wait_s: float
    """Runnable and without a core, summed over its threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetReading:
    """What the kernel counted in one network namespace from before the load to after it."""

    segments_sent: int = 0
    retransmitted: int = 0
    listen_drops: int = 0
    """Connections refused because a listener's queue was full."""
    device_packets: int = 0
    device_drops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkWindow:
    """One link while the load ran."""

    link: str
    asked_rtt_ms: float
    tolerance_ms: float
    rtt_p50_ms: float
    rtt_p90_ms: float
    probes: int
    limited: bool = False
    """A rate was asked, so queues are part of it."""
    received: int | None = None
    """Frames, both directions; None where the link's maker does not count."""
    lost: int = 0
    """On purpose."""
    asked_lost: float = 0.0
    """As many as asked would be, of these frames."""
    deviation: float = 0.0
    """Standard deviation of that number."""
    dropped_unasked: int = 0
    late_ms: float = 0.0
    carried_mbit: tuple[float, float] | None = None
    """What each direction carried over the window; None: not counted."""
    asked_mbit: tuple[float, float] = (0.0, 0.0)
    """0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReading:
    """What one proxy counted while the target's applications counted `of`."""

    proxy: str
    expected: bool
    counted: float | None
    """None: it does not tell."""
    of: float
    unit: str = "requests"
    exact: bool = True
    """More than `of` is wrong, too; bytes and connections may be more."""
    why_not: str = ""
    """Why it does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """Core-seconds of the window."""

    machine_s: float
    """All cores, what was neither idle nor stolen."""
    cores: int
    spent_s: Mapping[str, float]
    """By who spent them: components of the lab, `client`, `wire`, `testbed`, `kernel`, `others`."""
    others: Mapping[str, float] = field(default_factory=dict)
    """The largest of the others, by name of program."""
    window_s: float = 0.0
    softirq_s: float = 0.0
    """Of it in soft interrupts, by ticks; most are charged to the process whose frames they carry."""

    @property
    def explained(self) -> float:
        return min(1.0, sum(self.spent_s.values()) / self.machine_s) if self.machine_s > 0 else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """All that was read of one trial. What is None or absent was not available; the reason stands in `unread`."""

    host: HostReading | None = None
    queues: Mapping[str, ProxyReading] = field(default_factory=dict)
    nets: Mapping[str, NetReading] = field(default_factory=dict)
    softnet_drops: int = 0
    before: Sequence[LinkReading] = ()
    during: Sequence[LinkWindow] = ()
    after: Sequence[LinkReading] = ()
    paths: Sequence[PathReading] = ()
    cpu: CpuReading | None = None
    send_lag_p99_ms: float | None = None
    worker_lags_ms: Mapping[str, float] = field(default_factory=dict)
    """The same of each of several generator processes: among many, one that is late is no hundredth of all."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Check → why it is not available."""


def judge(readings: Readings, gates: Gates, *, failures: Iterable[str] = ()) -> Certificate:
    """`failures` are reasons that somebody else found, such as requests that failed."""
    checks = [Check(name="load", level=Level.FAIL, cause=text, component="client") for text in failures]
    checks += _lag(readings, gates) + _host(readings, gates) + _queues(readings, gates) + _net(readings, gates)
    checks += [_at_rest(r, "before") for r in readings.before] + [_at_rest(r, "after") for r in readings.after]
    for link in readings.during:
        checks += _link(link, gates)
    checks += [_path(p, gates) for p in readings.paths] + _cpu(readings, gates)
    checks += [
        Check(name=name, level=None, cause=f"{name}: not available: {text}") for name, text in readings.unread.items()
    ]
    return Certificate(checks=tuple(checks))


def _level(value: float, warn: float, fail: float = math.inf) -> Level:
    return Level.FAIL if value > fail else Level.WARN if value > warn else Level.PASS


def _lag(readings: Readings, gates: Gates) -> list[Check]:
    all_ms = {} if readings.send_lag_p99_ms is None else {"": readings.send_lag_p99_ms}
    checks = []
    for worker, lag_ms in {**all_ms, **readings.worker_lags_ms}.items():
        who = f"generator, {worker}," if worker else "generator"
        level = _level(lag_ms, gates.warn_send_lag_p99_ms, gates.send_lag_p99_ms)
        told = f"{who} late: send lag p99 {lag_ms:.2f} ms"
        checks.append(Check(name="lag", level=level, cause=told, component=f"client {worker}".strip()))
    return checks


def _host(readings: Readings, gates: Gates) -> list[Check]:
    host = readings.host
    if host is None:
        return []
    checks = [
        Check(
            name="busy",
            level=_level(host.busy, gates.warn_host_busy, gates.host_busy),
            cause=f"host {host.busy:.0%} busy",
        ),
        Check(
            name="steal",
            level=_level(host.steal, gates.warn_host_steal, gates.host_steal),
            cause=f"the hypervisor stole {host.steal:.1%} of the cores",
        ),
    ]
    if host.psi_cpu is not None:
        told = f"pressure: somebody waited for a core in {host.psi_cpu:.0%} of the window"
        checks.append(Check(name="psi", level=_level(host.psi_cpu, gates.warn_psi_cpu), cause=told))
    return checks


def _queues(readings: Readings, gates: Gates) -> list[Check]:
    checks = []
    for name, read in readings.queues.items():
        both_s = read.run_s + read.wait_s
        share = read.wait_s / both_s if both_s > 0 else 0.0
        told = f"{name} waited for a core {share:.0%} of its time "
        told += f"({read.wait_s * 1e3:.0f} ms, ran {read.run_s * 1e3:.0f})"
        # Of some milliseconds in all a single wait is a large share, and tells nothing of the plane.
        level = _level(share, gates.warn_queue_wait, gates.queue_wait) if both_s >= LEAST_RUN_S else Level.PASS
        checks.append(Check(name="run-queue", level=level, cause=told, component=name))
    return checks


LEAST_RUN_S = 0.02
LEAST_SEGMENTS = 500


def _net(readings: Readings, gates: Gates) -> list[Check]:
    checks = []
    lossy = any(link.asked_lost for link in readings.during) or any(r.asked_loss for r in readings.before)
    for name, net in readings.nets.items():
        # A namespace that hardly sent anything: one segment of ninety is one late request at most, and no share.
        share = net.retransmitted / max(net.segments_sent, LEAST_SEGMENTS)
        told = f"{name}: {net.retransmitted} of {net.segments_sent} TCP segments sent again"
        level = Level.PASS if lossy else _level(share, gates.warn_retransmit_share, gates.retransmit_share)
        checks.append(Check(name="retransmits", level=level, cause=told, component=name))
        dropped = net.device_drops + net.listen_drops
        share = dropped / net.device_packets if net.device_packets else float(dropped > 0)
        told = f"{name}: devices dropped {net.device_drops} of {net.device_packets} frames"
        told += f", listeners {net.listen_drops} connections" if net.listen_drops else ""
        level = _level(share, gates.warn_drop_share, gates.drop_share)
        checks.append(Check(name="drops", level=level, cause=told, component=name))
    if readings.softnet_drops:
        told = f"the kernel dropped {readings.softnet_drops} frames before any device (backlog full)"
        checks.append(Check(name="drops", level=Level.WARN, cause=told))
    return checks


def _at_rest(reading: LinkReading, when: str) -> Check:
    """A link that is not what was asked: what is measured over it is of another topology."""
    told = (
        f"link {reading.link} {when} the load: RTT {reading.rtt_p50_ms:.3f} ms for {reading.asked_rtt_ms:g} asked, "
        f"loss {reading.loss:.3f} for {reading.asked_loss:.3f}"
    )
    level = Level.PASS if reading.within_tolerance else Level.FAIL
    return Check(name=f"link-{when}", level=level, cause=told, component=reading.link)


def _link(link: LinkWindow, gates: Gates) -> list[Check]:
    where, checks = f"link {link.link} under load", []
    if link.probes:
        off = abs(link.rtt_p50_ms - link.asked_rtt_ms) / link.tolerance_ms
        told = f"{where}: RTT p50 {link.rtt_p50_ms:.3f} ms, p90 {link.rtt_p90_ms:.3f}, for {link.asked_rtt_ms:g} asked"
        # Where a rate was asked a queue is what was asked for, too.
        level = _level(off, 1.0, math.inf if link.limited else gates.link_off_share)
        checks.append(Check(name="link-rtt", level=level, cause=told, component=link.link))
    else:
        told = f"{where}: RTT not available: no probe was answered in the window"
        checks.append(Check(name="link-rtt", level=None, cause=told, component=link.link))
    if link.received is None:
        told = f"{where}: loss not available: its maker does not count frames"
        checks.append(Check(name="link-loss", level=None, cause=told, component=link.link))
        return checks
    told = f"{where}: {link.lost} of {link.received} frames lost on purpose for {link.asked_lost:.1f} asked"
    slack = gates.loss_sigmas * link.deviation + (1 if link.asked_lost else 0)
    level = Level.FAIL if abs(link.lost - link.asked_lost) > slack else Level.PASS
    checks.append(Check(name="link-loss", level=level, cause=told, component=link.link))
    share = link.dropped_unasked / link.received if link.received else float(link.dropped_unasked > 0)
    told = f"{where}: the wire dropped {link.dropped_unasked} of {link.received} frames unasked"
    level = _level(share, gates.warn_drop_share, gates.drop_share)
    checks.append(Check(name="link-drops", level=level, cause=told, component=link.link))
    told = f"{where}: the latest frame left {link.late_ms:.1f} ms after it was due"
    level = _level(link.late_ms, gates.warn_link_late_ms)
    checks.append(Check(name="link-late", level=level, cause=told, component=link.link))
    return checks + _rates(link, where)


RATE_SLACK = 1.05
RATE_FULL = 0.95


def _rates(link: LinkWindow, where: str) -> list[Check]:
    """A limit shows only when it is reached: more than asked is another link, nearly as much a bottleneck."""
    checks = []
    for asked, carried in zip(link.asked_mbit, link.carried_mbit or (), strict=False):
        if asked:
            told = f"{where}: carried {carried:.2f} Mbit/s of {asked:g} asked"
            level = _level(carried / asked, RATE_FULL, RATE_SLACK)
            checks.append(Check(name="link-rate", level=level, cause=told, component=link.link))
    return checks


def _path(path: PathReading, gates: Gates) -> Check:
    if path.counted is None:
        told = f"path through {path.proxy}: not available: {path.why_not}"
        return Check(name="path", level=None, cause=told, component=path.proxy)
    slack = max(gates.path_share * path.of, 0.5)
    if not path.expected:
        told = f"{path.proxy} counted {path.counted:.0f} {path.unit} that should not cross it"
        level = Level.FAIL if path.counted > slack else Level.PASS
        return Check(name="path", level=level, cause=told, component=path.proxy)
    told = f"{path.proxy} counted {path.counted:.0f} {path.unit} of {path.of:.0f} that the target saw"
    if path.of - path.counted > slack:
        return Check(name="path", level=Level.FAIL, cause=f"{told}: the others went past it", component=path.proxy)
    # More than the target saw were refused, or tried again: on the way, but worth a word.
    level = Level.WARN if path.exact and path.counted - path.of > slack else Level.PASS
    return Check(name="path", level=level, cause=told, component=path.proxy)


def _cpu(readings: Readings, gates: Gates) -> list[Check]:
    cpu = readings.cpu
    if cpu is None or not cpu.machine_s > 0:
        return []
    told = f"{cpu.explained:.1%} of the machine's {cpu.machine_s:.2f} CPU seconds explained by processes"
    level = Level.WARN if cpu.explained < gates.warn_explained else Level.PASS
    checks = [Check(name="explained", level=level, cause=told)]
    share = cpu.spent_s.get("others", 0.0) / (cpu.cores * cpu.window_s) if cpu.window_s > 0 else 0.0
    who = ", ".join(sorted(cpu.others, key=lambda name: -cpu.others[name])[:3])
    told = f"programs outside of the lab used {share:.0%} of the cores" + (f" ({who})" if who else "")
    checks.append(Check(name="others", level=_level(share, gates.warn_others), cause=told))
    return checks
