"""One cell, once: drive the load, watch the components, judge whether the result may count.

A trial with a late generator, an overloaded target, failed requests or a dead link is kept and marked with its reason;
the table leaves it out and counts it (Mininet-HiFi's point: watch the emulator's own invariants).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.deploy import Deployment
from testbed.errors import PeerError
from testbed.lab import Lab, http_get
from testbed.model.experiment import Experiment, LinkReading, LoadRecord, Measurement, RequestRow
from testbed.registry import load
from testbed.stats import percentile
from testbed.window import Sampler, Usage

COUNT_PATH = "/-/count"
ANSWER_GRACE_S = 1.0
"""Answers to requests of the window's end may come this much later."""


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
    cell: str = "",
) -> Outcome:
    """Measure once. `plane` is the name in the table: it differs from the deployed plane's for the A/A pair."""
    lab = deployment.lab
    service = lab.topology.service(experiment.target.partition(":")[0])
    port = int(experiment.target.partition(":")[2] or service.ports[0].port)
    sampler = Sampler(components=components(deployment, experiment))
    driver = load("load", experiment.load.kind)()
    before = seen_by_apps(lab, service.endpoints)
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
    except PeerError as error:
        # What died first is the reason; the generator's own complaint is often only its echo.
        raise PeerError("; ".join([*deployment.dead(), str(error)])) from error
    finally:
        sampler.stop()
    reasons = invalid_reasons(record, experiment, gates) + deployment.dead()
    reasons += miscounted(record, before, seen_by_apps(lab, service.endpoints))
    reasons += links_off(readings)
    values = [*latency_values(record), *usage_values(record, sampler.usage(record.started_s, record.ended_s))]
    for r in readings:
        values += [(r.link, "link_rtt_asked", "ms", r.asked_rtt_ms), (r.link, "link_rtt_p50", "ms", r.rtt_p50_ms)]
        values += [(r.link, "link_rtt_p90", "ms", r.rtt_p90_ms), (r.link, "link_loss", "", r.loss)]
    measurements = tuple(
        Measurement(
            round=round_number,
            trial=name(round_number, block, plane, cell),
            block=block,
            plane=plane,
            cell=cell,
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
    if record.cpu_s / span_s > gates.generator_cpu_share:
        reasons.append(f"generator used {record.cpu_s / span_s:.0%} of a core")
    if plan.kind == "open":
        lag_ms = percentile([(r.sent_s - r.intended_s) * 1e3 for r in rows], 99)
        if lag_ms > gates.send_lag_p99_ms:
            reasons.append(f"generator late: send lag p99 {lag_ms:.2f} ms")
        asked = len(rows)  # those never sent have a row too
        done = sum(1 for r in rows if not r.error and r.last_byte_s <= record.ended_s + ANSWER_GRACE_S)
        if done < gates.rate_share * asked:
            reasons.append(f"saturated: {done} of {asked} requests answered in time")
    return reasons


def links_off(readings: Sequence[LinkReading]) -> list[str]:
    """Links that are not what was asked: what was measured over them is of another topology."""
    return [
        f"link {r.link}: RTT {r.rtt_p50_ms:.3f} ms for {r.asked_rtt_ms:g} asked, "
        f"loss {r.loss:.3f} for {r.asked_loss:.3f}"
        for r in readings
        if not r.within_tolerance
    ]


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
    ]


def usage_values(record: LoadRecord, usage: dict[str, Usage]) -> list[tuple[str, str, str, float]]:
    requests = max(len(record.rows), 1)
    values: list[tuple[str, str, str, float]] = []
    for name, used in sorted(usage.items()):
        values.append((name, "cpu_per_1000_requests", "ms", used.cpu_s * 1e3 / requests * 1000))
        if used.pss_mib is not None:
            values.append((name, "memory_pss", "MiB", used.pss_mib))
    return values
