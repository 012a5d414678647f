"""One cell, once: drive the load, watch the components, judge whether the result may count.

A trial with a late generator, an overloaded target, failed requests or a dead link is kept and marked with its reason;
the table leaves it out and counts it (Mininet-HiFi's point: watch the emulator's own invariants).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed import fidelity, fidelityread, paths
from testbed.deploy import Deployment
from testbed.errors import PeerError
from testbed.fidelity import Certificate, Gates, Level, Readings
from testbed.lab import Lab, http_get
from testbed.links import gauge
from testbed.linkwatch import LinkWatch
from testbed.model.experiment import Experiment, LinkReading, LoadRecord, Measurement, RequestRow
from testbed.model.topology import Topology
from testbed.registry import load
from testbed.seams import LiveLink
from testbed.stats import percentile
from testbed.window import Sampler, Usage

COUNT_PATH = "/-/count"
ANSWER_GRACE_S = 1.0
"""Answers to requests of the window's end may come this much later."""
PROBES = 40
"""Of a link before and after each load; its gauge's 200 where loss was asked for, which fewer cannot tell."""
IDLE_S = 0.5
"""So long at least components are watched while nobody calls."""
Row = tuple[str, str, str, float]
"""Component, metric, unit, value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRest:
    """What was seen on a deployment before its load."""

    readings: Sequence[LinkReading] = ()
    idle_cores: Mapping[str, float] = field(default_factory=dict)
    """By component, core-seconds a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    measurements: tuple[Measurement, ...]
    requests: tuple[RequestRow, ...]
    reasons: tuple[str, ...]
    certificate: Certificate = field(default_factory=lambda: Certificate(checks=()))
    links_after: tuple[LinkReading, ...] = ()


def probes(links: Sequence[LiveLink]) -> int:
    """How many echoes a measurement of these links takes."""
    lossy = any(w.loss or w.gilbert_elliott for live in links for w in (live.link.a_to_b, live.link.b_to_a))
    return gauge.PROBES if lossy else PROBES


def at_rest(deployment: Deployment, experiment: Experiment, probe: Callable[[], Sequence[LinkReading]]) -> AtRest:
    """Probes the links while the components idle: echoes between nodes pass by all of them."""
    sampler = Sampler(components=components(deployment, experiment))
    sampler.start()
    begun_s = time.monotonic()
    try:
        readings = probe()
        time.sleep(max(0.0, IDLE_S - (time.monotonic() - begun_s)))
    finally:
        sampler.stop()
    ended_s = time.monotonic()
    used = sampler.usage(begun_s, ended_s)
    return AtRest(
        readings=tuple(readings), idle_cores={name: u.cpu_s / (ended_s - begun_s) for name, u in used.items()}
    )


def run(
    deployment: Deployment,
    experiment: Experiment,
    *,
    plane: str,
    round_number: int,
    block: int,
    seed: int,
    folder: Path,
    gates: Gates,
    rest: AtRest | None = None,
    cell: str = "",
    alone: bool = True,
) -> Outcome:
    """Measure once. `plane` is the name in the table: it differs from the deployed plane's for the A/A pair. `alone`:
    no other load is on the lab meanwhile.

    Without `rest` links are not probed, neither before nor after.
    """
    lab = deployment.lab
    service = lab.topology.service(experiment.target.partition(":")[0])
    port = int(experiment.target.partition(":")[2] or service.ports[0].port)
    watch = _Watch.of(deployment, experiment)
    driver = load("load", experiment.load.kind)()
    watch.start()
    try:
        record = driver.run(
            lab.running,
            client=experiment.client,
            target=(service.address, port),
            plan=experiment.load,
            seed=seed,
            folder=folder,
        )
    except PeerError as error:
        # What died first is the reason; the generator's own complaint is often only its echo.
        raise PeerError("; ".join([*deployment.dead(), str(error)])) from error
    finally:
        watch.stop()
    dead = deployment.dead()
    seen = watch.seen_after()
    failures = invalid_reasons(record, experiment, gates) + dead
    failures += miscounted(record, watch.seen, seen)
    after = () if rest is None or dead else tuple(gauge.measure(lab.running, lab.links, probes=probes(lab.links)))
    readings = watch.readings(record, experiment, rest=rest, after=after, seen=seen, alone=alone)
    certificate = fidelity.judge(readings, gates, failures=failures)
    values = [
        *latency_values(record),
        *usage_values(record, watch.sampler.usage(record.started_s, record.ended_s)),
        *link_values(rest.readings if rest else (), readings),
        *machine_values(readings, len(record.rows)),
        ("client", "edges", "", float(edges(lab.topology, service.name))),
        *((name, "cpu_idle", "ms/s", cores * 1e3) for name, cores in sorted((rest or AtRest()).idle_cores.items())),
    ]
    reasons = certificate.causes(Level.FAIL)
    told = "; ".join(reasons)
    labels = {
        "round": round_number, "trial": name(round_number, block, plane, cell), "block": block, "plane": plane,
        "cell": cell, "valid": not reasons,
    }  # fmt: skip
    rows = [
        Measurement(component=component, metric=metric, unit=unit, value=value, reason=told, **labels)
        for component, metric, unit, value in values
    ]
    rows += certificate_rows(certificate, labels, told)
    return Outcome(
        measurements=tuple(rows),
        requests=record.rows,
        reasons=reasons,
        certificate=certificate,
        links_after=after or (tuple(rest.readings) if rest else ()),
    )


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Everything that is read of one trial, and when: at the load's edges, or at most ten times a second in it."""

    deployment: Deployment
    sampler: Sampler
    links: LinkWatch
    wanted: Mapping[str, int]
    endpoints: Sequence[str]
    seen: int | None = None
    _nets: tuple[Mapping[str, fidelity.NetReading], ...] = ()
    _counted: tuple[Mapping[str, paths.Counted], ...] = ()
    _softnet: tuple[int, ...] = ()

    @classmethod
    def of(cls, deployment: Deployment, experiment: Experiment) -> _Watch:
        lab = deployment.lab
        watched = components(deployment, experiment)
        everyone = {process.pid: f"app.{name}" for name, process in lab.apps.items()}
        everyone |= {process.pid: name for name, process in deployment.proxies.items()}
        links = LinkWatch(lab)
        target = experiment.target.partition(":")[0]
        wanted = paths.expected(deployment.placement, lab.topology, experiment.client, target)
        # A proxy that idles waits a large share of next to nothing, and nobody waits for it.
        on_way = {name: process for name, process in deployment.proxies.items() if name in wanted}
        sampler = Sampler(
            components=watched,
            readers=(fidelityread.HostReader(), fidelityread.QueueReader(on_way), links),
            slow=(fidelityread.CpuReader(known=everyone, folder=str(lab.folder)), links.rates),
        )
        return cls(
            deployment=deployment,
            sampler=sampler,
            links=links,
            wanted=wanted,
            endpoints=lab.topology.service(target).endpoints,
        )

    def start(self) -> None:
        self._look()
        self.links.start()
        self.seen = seen_by_apps(self.deployment.lab, self.endpoints)
        self.sampler.start()

    def stop(self) -> None:
        self.sampler.stop()
        self.links.stop()

    def seen_after(self) -> int | None:
        """Proxies are asked last: what is still under way then was counted by the target before, never after."""
        seen = seen_by_apps(self.deployment.lab, self.endpoints)
        self._look()
        return seen

    def _look(self) -> None:
        lab = self.deployment.lab
        self._counted += (paths.scrape(lab, self.deployment.placement),)
        self._nets += (fidelityread.net_counters({name: lab.netns(name) for name in lab.running.sandboxes}),)
        self._softnet += (fidelityread.softnet_drops(),)

    def readings(
        self, record: LoadRecord, experiment: Experiment, *, rest: AtRest | None, after: Sequence[LinkReading],
        seen: int | None, alone: bool,
    ) -> Readings:  # fmt: skip
        span_s = max(record.ended_s - record.started_s, 1e-9)
        grown = self.sampler.counted(record.started_s, record.ended_s)
        # How many cores there are grows by nothing: it is no counter.
        grown |= {"host.cores": self.sampler.latest("host.cores")}
        host = fidelityread.host_reading(grown, span_s)
        topology = self.deployment.lab.topology
        # An application counts being asked, too: after its answer, so that the second one tells of the first.
        met = None if seen is None or self.seen is None else seen - self.seen - len(self.endpoints)
        lags = [(r.sent_s - r.intended_s) * 1e3 for r in record.rows]
        unread = {}
        if host is None:
            unread["busy"] = "this machine has no /proc/stat"
        elif host.psi_cpu is None:
            unread["psi"] = "this kernel has no /proc/pressure"
        queues = fidelityread.queue_readings(grown)
        if self.wanted and not queues:
            unread["run-queue"] = "this kernel has no schedstat"
        return Readings(
            host=host,
            queues=queues,
            nets=fidelityread.net_since(*self._nets),
            softnet_drops=self._softnet[1] - self._softnet[0],
            before=rest.readings if rest else (),
            during=self.links.windows(record.started_s, record.ended_s, grown),
            after=after,
            paths=paths.readings(
                self.wanted,
                *self._counted,
                self.deployment.placement,
                load=experiment.load,
                seen=met,
                alone=alone and not any(topology.workload(name).app.calls for name in self.endpoints),
            ),
            cpu=fidelityread.cpu_reading(grown, span_s),
            send_lag_p99_ms=percentile(lags, 99) if lags and experiment.load.kind == "open" else None,
            worker_lags_ms={w.name: w.send_lag_p99_ms for w in record.workers if w.send_lag_p99_ms is not None},
            unread=unread,
        )


def certificate_rows(certificate: Certificate, labels: Mapping[str, object], told: str = "") -> list[Measurement]:
    """A row a check: its level (0 pass, 1 warn, 2 fail, none where not available) and its cause; `told`, why the trial
    does not count, where the check itself passed."""
    return [
        Measurement(
            component=check.component,
            metric=f"{fidelity.PREFIX}{check.name}",
            unit="level",
            value=math.nan if check.level is None else float(check.level),
            reason=told if check.level is Level.PASS else check.cause,
            **labels,  # type: ignore[arg-type]
        )
        for check in certificate.checks
    ]


def name(round_number: int, block: int, plane: str, cell: str = "") -> str:
    """Under which a trial is stored, and by which a resumed run knows that it has it."""
    return f"r{round_number:02d}-b{block:02d}-{plane}" + (f", {cell}" if cell else "")


def failed(reason: str, *, plane: str, round_number: int, block: int, cell: str = "") -> Outcome:
    """A trial without a record: one row says why; the table counts it and a resumed run does not repeat it."""
    row = Measurement(
        round=round_number,
        trial=name(round_number, block, plane, cell),
        block=block,
        plane=plane,
        cell=cell,
        component="client",
        metric="rate_achieved",
        unit="1/s",
        value=0.0,
        valid=False,
        reason=" ".join(reason.split())[:500],
    )
    return Outcome(measurements=(row,), requests=(), reasons=(row.reason,))


def edges(topology: Topology, service: str, above: tuple[str, ...] = ()) -> int:
    """Calls that one request makes in all: to the service, and those that its applications make in turn."""
    found = topology.service(service)
    called = topology.workload(found.endpoints[0]).app.calls if found.endpoints else ()
    return 1 + sum(edges(topology, name, (*above, service)) for name in called if name not in (*above, service))


def seen_by_apps(lab: Lab, endpoints: Sequence[str]) -> int | None:
    """Requests that the target's applications have answered, as they count them; None where one does not say."""
    total = 0
    for endpoint in endpoints:
        app = lab.topology.workload(endpoint).app
        if app.kind != "http-echo":
            return None
        status, body = http_get(lab, endpoint, "127.0.0.1", app.ports[0], COUNT_PATH)
        try:
            if status != 200:
                return None
            total += json.loads(body)["requests"]
        except (ValueError, KeyError, TypeError):
            return None
    return total


def miscounted(record: LoadRecord, before: int | None, after: int | None) -> list[str]:
    """The second judge: the target must have seen every request that the generator says was answered in the window.

    It sees more (warm-up, and those that failed on their way back), never fewer: that would be answers from elsewhere.
    """
    if before is None or after is None:
        return ["the target's own count of requests could not be read"] if (before is None) != (after is None) else []
    answered = sum(1 for r in record.rows if not r.error and r.status == 200)
    return [f"{answered} requests answered, the target saw {after - before}"] if after - before < answered else []


def components(deployment: Deployment, experiment: Experiment) -> dict:
    """What is accounted: each proxy under its name, the target's applications under `app.<workload>`."""
    service = deployment.lab.topology.service(experiment.target.partition(":")[0])
    watched = {f"app.{name}": process for name, process in deployment.lab.apps.items() if name in service.endpoints}
    return watched | dict(deployment.proxies)


def invalid_reasons(record: LoadRecord, experiment: Experiment, gates: Gates) -> list[str]:
    rows, plan = record.rows, experiment.load
    if not rows:
        return ["no request was sent in the window"]
    reasons = []
    wrong = [r for r in rows if r.error or r.status != 200]
    if len(wrong) / len(rows) > gates.error_share:
        reasons.append(f"{len(wrong)} of {len(rows)} requests failed (first: {wrong[0].error or wrong[0].status})")
    span_s = record.ended_s - record.started_s
    if span_s <= 0:
        return [f"the window has no length ({span_s:g} s)"]
    for worker, cpu_s in {w.name: w.cpu_s for w in record.workers}.items() or [("", record.cpu_s)]:
        if cpu_s / span_s > gates.generator_cpu_share:
            who = f"generator, {worker}," if worker else "generator"
            reasons.append(f"{who} used {cpu_s / span_s:.0%} of a core")
    if plan.kind == "open":
        asked = len(rows)  # those never sent have a row too
        done = sum(1 for r in rows if not r.error and r.last_byte_s <= record.ended_s + ANSWER_GRACE_S)
        if done < gates.rate_share * asked:
            reasons.append(f"saturated: {done} of {asked} requests answered in time")
    return reasons


def link_values(before: Sequence[LinkReading], readings: Readings) -> list[Row]:
    values: list[Row] = []
    for r in before:
        values += [(r.link, "link_rtt_asked", "ms", r.asked_rtt_ms), (r.link, "link_rtt_p50", "ms", r.rtt_p50_ms)]
        values += [(r.link, "link_rtt_p90", "ms", r.rtt_p90_ms), (r.link, "link_loss", "", r.loss)]
    for link in readings.during:
        values.append((link.link, "link_rtt_loaded_p50", "ms", link.rtt_p50_ms))
        if link.received is not None:
            lost = link.lost / link.received if link.received else 0.0
            values += [(link.link, "link_loss_loaded", "", lost), (link.link, "link_late", "ms", link.late_ms)]
        for way, carried in zip(("a_to_b", "b_to_a"), link.carried_mbit or (), strict=False):
            values.append((link.link, f"link_carried_{way}", "Mbit/s", carried))
    for r in readings.after:
        values += [(r.link, "link_rtt_after_p50", "ms", r.rtt_p50_ms), (r.link, "link_loss_after", "", r.loss)]
    return values


def machine_values(readings: Readings, requests: int) -> list[Row]:
    """What was read of the machine; what could not be read has no row."""
    values: list[Row] = []
    if (host := readings.host) is not None:
        values += [("host", "host_busy", "", host.busy), ("host", "host_steal", "", host.steal)]
        values += [] if host.psi_cpu is None else [("host", "psi_cpu_some", "", host.psi_cpu)]
    for proxy, queue in sorted(readings.queues.items()):
        both_s = queue.run_s + queue.wait_s
        values.append((proxy, "run_queue_wait", "", queue.wait_s / both_s if both_s else 0.0))
    if readings.nets:
        values.append(("host", "tcp_retransmits", "", float(sum(n.retransmitted for n in readings.nets.values()))))
        values.append(("host", "device_drops", "", float(sum(n.device_drops for n in readings.nets.values()))))
    if (cpu := readings.cpu) is not None:
        per_1000_ms = 1e6 / max(requests, 1)
        for who in ("client", "wire", "kernel", "testbed"):
            values.append((who, "cpu_per_1000_requests", "ms", cpu.spent_s.get(who, 0.0) * per_1000_ms))
        values.append(("host", "cpu_others_per_1000_requests", "ms", cpu.spent_s.get("others", 0.0) * per_1000_ms))
        values.append(("host", "cpu_softirq_per_1000_requests", "ms", cpu.softirq_s * per_1000_ms))
        values.append(("host", "cpu_machine_per_1000_requests", "ms", cpu.machine_s * per_1000_ms))
        values.append(("host", "cpu_explained", "", cpu.explained))
    return values


def latency_values(record: LoadRecord) -> list[tuple[str, str, str, float]]:
    """Latency from the intended send time; failed requests have none and are counted in `error_share`."""
    good = [r for r in record.rows if not r.error and r.status == 200]
    latencies = [(r.last_byte_s - r.intended_s) * 1e3 for r in good]
    lags = [(r.sent_s - r.intended_s) * 1e3 for r in record.rows]
    span_s = max(record.ended_s - record.started_s, 1e-9)
    values = [
        ("client", f"latency_p{q}", "ms", percentile(latencies, q) if latencies else math.nan) for q in (50, 90, 99)
    ]
    return [
        *values,
        ("client", "rate_achieved", "1/s", len(good) / span_s),
        ("client", "error_share", "", 1 - len(good) / len(record.rows) if record.rows else math.nan),
        ("client", "send_lag_p99", "ms", percentile(lags, 99) if lags else math.nan),
        ("client", "cpu_share", "", record.cpu_s / span_s),
        ("client", "connections_opened", "", float(record.connects)),
        *worker_values(record, span_s),
    ]


def worker_values(record: LoadRecord, span_s: float) -> list[Row]:
    """Of each of several generator processes, as of the generator."""
    values: list[Row] = []
    for worker in record.workers:
        who = f"client {worker.name}"
        lag_ms = math.nan if worker.send_lag_p99_ms is None else worker.send_lag_p99_ms
        values += [(who, "requests_sent", "", float(worker.requests)), (who, "send_lag_p99", "ms", lag_ms)]
        values.append((who, "cpu_share", "", worker.cpu_s / span_s))
    return values


def usage_values(record: LoadRecord, usage: dict[str, Usage]) -> list[tuple[str, str, str, float]]:
    requests = max(len(record.rows), 1)
    values: list[tuple[str, str, str, float]] = []
    for name, used in sorted(usage.items()):
        values.append((name, "cpu_per_1000_requests", "ms", used.cpu_s * 1e3 / requests * 1000))
        if used.pss_mib is not None:
            values.append((name, "memory_pss", "MiB", used.pss_mib))
    return values
