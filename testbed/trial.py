"""One cell, once: drive the load, watch the components, judge whether the result may count.

A trial with a late generator, an overloaded target, failed requests or a dead link is kept and marked with its reason;
the table leaves it out and counts it (Mininet-HiFi's point: watch the emulator's own invariants).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.deploy import Deployment
from testbed.model.experiment import Experiment, LinkReading, LoadRecord, Measurement, RequestRow
from testbed.registry import load
from testbed.stats import percentile
from testbed.window import Sampler, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Limits beyond which a trial does not count; recorded in run.json."""

    send_lag_p99_ms: float = 5.0
    error_share: float = 0.001
    rate_share: float = 0.97
    """Achieved over asked rate, open loop: below this the system was saturated."""
    generator_cpu_share: float = 0.8
    """Of one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    measurements: tuple[Measurement, ...]
    requests: tuple[RequestRow, ...]
    reasons: tuple[str, ...]


def run(
    deployment: Deployment,
    experiment: Experiment,
    *,
    plane: str,
    round_number: int,
    block: int,
    seed: int,
    folder: Path,
    readings: Sequence[LinkReading],
    gates: Gates,
) -> Outcome:
    """Measure once. `plane` is the name in the table: it differs from the deployed plane's for the A/A pair."""
    lab = deployment.lab
    service = lab.topology.service(experiment.target.partition(":")[0])
    port = int(experiment.target.partition(":")[2] or service.ports[0].port)
    sampler = Sampler(components=components(deployment, experiment))
    driver = load("load", experiment.load.kind)()
    sampler.start()
    try:
        record = driver.run(
            lab.running,
            client=experiment.client,
            target=(service.address, port),
            plan=experiment.load,
            seed=seed,
            folder=folder,
        )
    finally:
        sampler.stop()
    reasons = invalid_reasons(record, experiment, gates) + deployment.dead()
    reasons += [
        f"link {r.link}: RTT {r.rtt_p50_ms:.3f} ms for {r.asked_rtt_ms:g} asked"
        for r in readings
        if not r.within_tolerance
    ]
    trial = f"r{round_number:02d}-b{block:02d}-{plane}"
    values = [*latency_values(record), *usage_values(record, sampler.usage(record.started_s, record.ended_s))]
    values += [(r.link, "link_rtt_p50", "ms", r.rtt_p50_ms) for r in readings]
    measurements = tuple(
        Measurement(
            round=round_number,
            trial=trial,
            block=block,
            plane=plane,
            component=component,
            metric=metric,
            unit=unit,
            value=value,
            valid=not reasons,
            reason="; ".join(reasons),
        )
        for component, metric, unit, value in values
    )
    return Outcome(measurements=measurements, requests=record.rows, reasons=tuple(reasons))


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
    failed = [r for r in rows if r.error or r.status != 200]
    if len(failed) / len(rows) > gates.error_share:
        reasons.append(f"{len(failed)} of {len(rows)} requests failed (first: {failed[0].error or failed[0].status})")
    span_s = record.ended_s - record.started_s
    if record.cpu_s / span_s > gates.generator_cpu_share:
        reasons.append(f"generator used {record.cpu_s / span_s:.0%} of a core")
    if plan.kind == "open":
        lag_ms = percentile([(r.sent_s - r.intended_s) * 1e3 for r in rows], 99)
        if lag_ms > gates.send_lag_p99_ms:
            reasons.append(f"generator late: send lag p99 {lag_ms:.2f} ms")
        asked = sum(1 for r in rows)
        done = sum(1 for r in rows if r.last_byte_s and r.last_byte_s <= record.ended_s + 1.0)
        if done < gates.rate_share * asked:
            reasons.append(f"saturated: {done} of {asked} requests answered in time")
    return reasons


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
    ]


def usage_values(record: LoadRecord, usage: dict[str, Usage]) -> list[tuple[str, str, str, float]]:
    requests = max(len(record.rows), 1)
    values: list[tuple[str, str, str, float]] = []
    for name, used in sorted(usage.items()):
        values.append((name, "cpu_per_1000_requests", "ms", used.cpu_s * 1e3 / requests * 1000))
        if used.pss_mib is not None:
            values.append((name, "memory_pss", "MiB", used.pss_mib))
    return values
