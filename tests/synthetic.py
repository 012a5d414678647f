"""A made-up run for tests of tables and reports. Its numbers are invented and must never be shown as results."""

from __future__ import annotations

import random
from pathlib import Path

from testbed import store
from testbed.model.experiment import Experiment, Finding, Load, Measurement, RequestRow, Result
from testbed.model.topology import App, Impairment, Link, Node, Service, ServicePort, Topology, Workload

PLANES = ("none", "none (A/A)", "ambient-l4")
BASE_MS = {"none": 1.9, "none (A/A)": 1.9, "ambient-l4": 2.7, "ambient-waypoint": 4.1, "sidecar": 4.6}
ORDER = ("latency_p50", "latency_p90", "latency_p99")


def row(plane: str, round_: int, metric: str, value: float, component: str = "client", **other: object) -> Measurement:
    unit = {"memory_pss": "MiB", "rate_achieved": "1/s", "error_share": ""}.get(metric, "ms")
    return Measurement(
        round=round_, trial=f"r{round_}-{plane}", block=0, plane=plane, component=component, metric=metric, unit=unit,
        value=value, **other,  # type: ignore[arg-type]
    )  # fmt: skip


def topology() -> Topology:
    slow = Impairment(delay_ms=0.5)
    nodes = [("node-a", "zone-1"), ("node-b", "zone-1"), ("node-c", "zone-2")]
    app = App(kind="http-echo", ports=(8080,))

    def workload(name: str, node: str, number: int, kind: App = app) -> Workload:
        return Workload(
            name=name,
            group=name,
            namespace="shop",
            service_account=name,
            node=node,
            address=f"10.0.{number}.2",
            app=kind,
        )

    return Topology(
        name="two-zones",
        nodes=tuple(
            Node(name=n, zone=z, address=f"10.0.{i}.1", network=f"10.0.{i}.0/24") for i, (n, z) in enumerate(nodes, 1)
        ),
        workloads=(
            workload("client", "node-a", 1, App(kind="idle")),
            workload("cart", "node-b", 2),
            workload("echo-1", "node-c", 3),
            workload("echo-2", "node-c", 3),
        ),
        services=(
            Service(
                name="echo", namespace="shop", address="10.96.0.10", endpoints=("echo-1", "echo-2"),
                ports=(ServicePort(port=80, target_port=8080),),
            ),
        ),
        links=(
            Link(a="node-a", b="node-b", a_address="172.16.0.0", b_address="172.16.0.1"),
            Link(a="node-a", b="node-c", a_address="172.16.0.2", b_address="172.16.0.3", a_to_b=slow, b_to_a=slow),
            Link(a="node-b", b="node-c", a_address="172.16.0.4", b_address="172.16.0.5", a_to_b=slow, b_to_a=slow),
        ),
    )  # fmt: skip


def experiment(planes: tuple[str, ...]) -> Experiment:
    return Experiment(
        name="synthetic", question="What does a plane add, and what does it prove?", topology="two-zones",
        planes=planes, client="client", target="echo", load=Load(rate_rps=200, window_s=4), rounds=5,
    )  # fmt: skip


def findings(planes: tuple[str, ...]) -> list[Finding]:
    found = []
    for plane in planes:
        if plane == "none (A/A)":
            continue
        clear = plane == "none"

        def add(id_: str, segment: str, statement: str, value: str, packets: tuple[int, ...] = (),
                result: Result = Result.HOLDS, plane: str = plane) -> None:  # fmt: skip
            evidence = f"{plane}.pcapng" if packets else f"probe: {value}"
            found.append(
                Finding(id=id_, plane=plane, segment=segment, statement=statement, result=result, evidence=evidence,
                        packets=packets, value=value)
            )  # fmt: skip

        for segment in ("node-a--node-c", "node-b--node-c"):
            readable = "64 of 64 readable" if clear else "0 of 64 readable"
            add("boundary.plaintext-visible", segment, "how often the canary is readable", readable, (12, 19, 40))
            statement = (
                "the payload crosses in clear, as meant" if clear else "TLS 1.3 with SPIFFE identities both ways"
            )
            add("packets.encryption", segment, statement, "clear" if clear else "TLS 1.3", (12, 19, 23, 40, 41, 77))
        if not clear:
            add("packets.hbone", "node-a--node-c", "CONNECT to 15008", "10.0.3.2:8080", (), Result.NO_EVIDENCE)
            add("boundary.identities-held", "ztunnel.node-a", "keys in its memory", "1")
            add("boundary.identities-held", "ztunnel.node-c", "keys in its memory", "2")
            add("boundary.foreign-authority", "ztunnel.node-c", "refused", "401")
        add("boundary.identities-held", "app", "keys in its memory", "0")
        add("boundary.plaintext-to-strict", "client -> echo", "refused", "allowed" if clear else "refused")
        add("boundary.l4-denied", "cart -> echo", "refused", "allowed" if clear else "refused (401)")
        add("boundary.wrong-identity", "client -> echo", "refused", "no identities" if clear else "refused")
    return found


def measurements(planes: tuple[str, ...], rounds: int = 5, seed: int = 3) -> list[list[Measurement]]:
    """Trials, each a list of rows; the last trial of the last plane is invalid."""
    rng = random.Random(seed)
    trials = []
    for round_ in range(1, rounds + 1):
        drift = rng.uniform(0, 0.3)
        for plane in planes:
            base = BASE_MS[plane] + drift + rng.gauss(0, 0.04)
            bad = plane == planes[-1] and round_ == rounds
            why = {"valid": False, "reason": "send lag p99 2.1 ms above 0.5 ms"} if bad else {}
            rows = [row(plane, round_, m, base * f, **why) for m, f in zip(ORDER, (1.0, 1.5, 2.6), strict=True)]
            rows += [
                row(plane, round_, "cpu_per_1000_requests", 90 + rng.gauss(0, 4), "client", **why),
                row(plane, round_, "cpu_per_1000_requests", 60 + rng.gauss(0, 3), "app", **why),
                row(plane, round_, "cpu_per_1000_requests", 25 + rng.gauss(0, 3), "wire", **why),
                row(plane, round_, "rate_achieved", 199.6 + rng.gauss(0, 0.2), **why),
                row(plane, round_, "send_lag_p99", 2.1 if bad else rng.uniform(0.1, 0.3), **why),
                row(plane, round_, "error_share", 0.0, **why),
            ]
            for link, asked in (("node-a--node-b", 0.0), ("node-a--node-c", 1.0), ("node-b--node-c", 1.0)):
                rows.append(row(plane, round_, "link_rtt_p50", asked + 0.04 + rng.gauss(0, 0.01), link, **why))
            proxies = {"none": 0, "none (A/A)": 0, "ambient-l4": 2, "ambient-waypoint": 3, "sidecar": 4}[plane]
            for i in range(proxies):
                kind = "sidecar" if plane == "sidecar" else ("waypoint" if i == 2 else "ztunnel")
                cpu = 100 if kind == "waypoint" else 40
                rows.append(row(plane, round_, "cpu_per_1000_requests", cpu + rng.gauss(0, 3), f"{kind}.{i}", **why))
                rows.append(row(plane, round_, "memory_pss", 27 + rng.gauss(0, 0.3), f"{kind}.{i}", **why))
            trials.append(rows)
    return trials


def requests(plane: str, count: int, seed: int) -> list[RequestRow]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        start = i / 200
        took = (BASE_MS[plane] + rng.expovariate(2.0)) / 1000
        rows.append(
            RequestRow(intended_s=start, sent_s=start + 1e-4, first_byte_s=start + took, last_byte_s=start + took,
                       status=200, bytes=128, connection=i % 8)
        )  # fmt: skip
    return rows


def make_run(root: Path, planes: tuple[str, ...] = PLANES) -> store.Run:
    plan = store.Plan(
        topology=topology(), seed=3, block_order=tuple(planes for _ in range(5)), runtime="netns", link_kind="wire",
        planes={p: {"implementation": "invented", "version": "0"} for p in planes},
        gate={"rate_achieved_share_min": 0.97, "send_lag_p99_ms_max": 0.5}, commit="0" * 40, lock_sha256="0" * 64,
        command="./inv experiment.run synthetic --seed 3",
        machine={"kernel": "Linux 6.1", "cpu": "invented CPU", "cores": 2, "packages": {"h2": "4.4.1"}},
    )  # fmt: skip
    run = store.Run.create(root, experiment(planes), plan, started="2026-01-02T03:04:05Z")
    for number, rows in enumerate(measurements(planes)):
        run.append_trial(rows, requests(rows[0].plane, 300, number))
    run.append_findings(findings(planes))
    run.finish(ended="2026-01-02T03:08:05Z")
    run.close()
    return store.Run.open(run.path)
