"""What a deployed plane takes while nobody calls: proxies, configuration, memory, idle CPU, and what loading it took.

`rows` is of a deployment as it stands, and goes with each of its trials where an experiment has an axis; `run` is a
whole trial without load.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from testbed.deploy import Deployment
from testbed.fidelity import PREFIX
from testbed.model.experiment import Experiment, Measurement
from testbed.observe.procstat import ProcStat, read
from testbed.trial import Outcome, Row, name


def rows(deployment: Deployment) -> list[Row]:
    """To be asked for as soon as the plane is deployed: how long that took, and what each proxy has used for it."""
    found: list[Row] = [("testbed", "deploy_time", "s", time.time() - deployment.issued_at)]
    for proxy in deployment.placement.proxies:
        files = [deployment.folder(proxy.name) / file for file in ("view.json", "config.json")]
        found.append((proxy.name, "proxies", "", 1.0))
        found.append((proxy.name, "config", "KiB", sum(file.stat().st_size for file in files) / 1024))
        process = deployment.proxies[proxy.name]
        found.append((proxy.name, "cpu_to_ready", "ms", read(process, now=time.monotonic()).cpu_ns / 1e6))
    return found


def run(
    deployment: Deployment, experiment: Experiment, *, plane: str, round_number: int, block: int, cell: str
) -> Outcome:
    """Watches the proxies over the window; nothing is sent."""
    load = experiment.load
    time.sleep(load.warmup_s)
    watched = ProcStat(list(deployment.proxies.values()))
    watched.start()
    time.sleep(load.window_s)
    reasons = tuple(deployment.dead())
    workloads = float(len(deployment.lab.topology.workloads))
    values: list[Row] = [("testbed", "workloads", "", workloads)]
    if not reasons:  # of one that ended nothing can be read; the reason names it
        for component, used in watched.stop().items():
            values.append((component, "cpu_idle", "ms/s", used.cpu_s * 1e3 / used.seconds))
            if used.pss_bytes is not None:
                values.append((component, "memory_pss", "MiB", used.pss_bytes / 2**20))
    stated = {"plane": plane, "round_number": round_number, "block": block, "cell": cell}
    return Outcome(measurements=measured(values, reasons, **stated), requests=(), reasons=reasons)


def measured(
    values: Sequence[Row], reasons: Sequence[str], *, plane: str, round_number: int, block: int, cell: str
) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            round=round_number, trial=name(round_number, block, plane, cell), block=block, plane=plane, cell=cell,
            component=component, metric=metric, unit=unit, value=value, valid=not reasons, reason="; ".join(reasons),
        )
        for component, metric, unit, value in values
    )  # fmt: skip


def with_rows(outcome: Outcome, values: Sequence[Row], reasons: Sequence[str] = ()) -> Outcome:
    """The same trial with more rows; with `reasons` more, none of it counts. Its certificate keeps its causes."""
    told = (*outcome.reasons, *reasons)
    labels = {"valid": not told, "reason": "; ".join(told)}
    first = outcome.measurements[0]
    whole = [
        replace(m, valid=not told) if m.metric.startswith(PREFIX) else replace(m, **labels)
        for m in outcome.measurements
    ]
    whole += [
        replace(first, component=component, metric=metric, unit=unit, value=value, **labels)
        for component, metric, unit, value in values
    ]
    return replace(outcome, measurements=tuple(whole), reasons=told)
