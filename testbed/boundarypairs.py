"""Every pair of a topology called under sets of policies, and each verdict held against the one that was predicted.

Predictions are `verify.ways`', which shares nothing with the planes; calls are real ones, from each workload's own
namespace and from each node's, where nobody captures. Each set is deployed anew, so that no verdict is an older set's.
What should be refused and passes is a difference at once; what should pass and does not is tried again, for a busy
machine refuses, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from testbed import calls, deploy, events, lab, planespec, policyfile, topofile
from testbed.boundaryclaims import MEANT, VERDICTS
from testbed.deploy import Deployment, extra_sandboxes
from testbed.encoded import csv_bytes
from testbed.model.experiment import DOCUMENTED, Finding, Result
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.runtime.enter import in_netns
from testbed.seams import LinkMaker, Progress, Runtime
from testbed.verify import probe, ways
from testbed.verify.attempt import Attempt
from testbed.verify.oracle import Message
from testbed.verify.ways import Asked, Prediction, Scene, Stand

FILE = "pairs.csv"
"""In a run's folder: one row a call."""
TRIED_AGAIN_S = 30.0
"""For so long after a caller has begun what should pass is tried anew; at least once, whatever the time."""
MOST_TRIES = 20
CALL_LIMIT_S = 10.0
TOLD = 5
"""Differences that a finding tells."""
COLUMNS = (
    "plane", "set", "caller", "called", "by", "request", "predicted", "at", "why", "observed", "seen", "intended",
)  # fmt: skip
GET = Message()
SECRET = Message(path="/secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """A file of policies beside the topology, and the requests that tell its rules apart."""

    name: str
    messages: Mapping[str, Message]

    @property
    def path(self) -> Path:
        return topofile.find(TOPOLOGY).with_name(f"{TOPOLOGY}.{self.name}.policies.yml")


TOPOLOGY = "shop"
SETS = (
    PolicySet(name="identities", messages={"GET": GET}),
    PolicySet(
        name="requests",
        messages={
            "GET": GET,
            "POST": Message(method="POST"),
            "GET /secret": SECRET,
            "GET /secret around": Message(path="/x/../secret"),
            "GET /a/b/c": Message(path="/a/b/c"),
            "GET as red": Message(headers=(("x-team", "blue"), ("x-team", "red"))),
            "GET for another": Message(headers=(("x-forwarded-for", "203.0.113.7, 198.51.100.9"),)),
        },
    ),
    PolicySet(name="modes", messages={"GET": GET}),
)  # fmt: skip
BACK = ("payment", "shipping")
"""Of a namespace of their own, so that namespaces tell somebody apart."""
MIXED = {
    "client": "sidecar", "frontend": "ambient", "catalog": "sidecar", "cart": "ambient", "store": "none",
    "recommend": "ambient", "checkout": "ambient", "payment": "sidecar", "shipping": "ambient", "email": "none",
    "currency": "sidecar",
}  # fmt: skip
"""Labels under hybrid planes, by group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One call: what was predicted of it, what came, and what all policies together mean."""

    asked: Asked
    request: str
    prediction: Prediction
    intended: bool
    observed: bool | None
    """None: no answer and no refusal, however often it was tried."""
    seen: str

    @property
    def as_predicted(self) -> bool:
        return self.observed is self.prediction.allowed


def world(plane: str, policies: PolicySet) -> tuple[Topology, Placement]:
    """The topology under this set, its applications answering at once and calling nobody."""
    base = topofile.load(topofile.find(TOPOLOGY))
    mixed = planespec.split(plane)[0].removeprefix("envoy-").startswith("hybrid")
    workloads = tuple(
        replace(
            w, app=replace(w.app, calls=(), service_time_ms=0.0), plane=MIXED[w.group] if mixed else w.plane,
            namespace="back" if w.group in BACK else w.namespace,
        )
        for w in base.workloads
    )  # fmt: skip
    services = tuple(replace(s, namespace="back") if s.name in BACK else s for s in base.services)
    found = policyfile.load(policies.path)
    topology = replace(base, workloads=workloads, services=services, policies=(*base.policies, *found))
    return topology, planespec.place(plane, topology)


def scene(topology: Topology, placement: Placement, policies: PolicySet) -> Scene:
    """As the placement has it, with the policies as YAML alone reads them."""
    documents = [d for d in yaml.safe_load_all(policies.path.read_text(encoding="utf-8")) if d]
    stands = {w.name: calls.stand(placement.proxies, w.name) for w in topology.workloads}
    before = {s: p.own_address for p in placement.proxies if p.own_address for s in p.serves}
    return Scene(
        topology=topology, documents=documents, waypoints={s: a for s, a in before.items() if a is not None},
        stands={name: Stand(kind=s.kind, takes_hbone=s.takes_hbone) for name, s in stands.items()},
    )  # fmt: skip


def asked(topology: Topology, policies: PolicySet) -> Iterator[tuple[str, Asked]]:
    """(name of the request, call): from every workload and every node to every workload by its address, and from every
    workload to every service. Who stands behind an address does not call it: such a call may never leave its pod.
    """
    callers = [w.name for w in topology.workloads]
    for caller in (*callers, *(n.name for n in topology.nodes)):
        for request, message in policies.messages.items():
            for workload in topology.workloads:
                if workload.app.ports and workload.name != caller:
                    yield request, Asked(caller=caller, endpoint=workload.name, message=_to(message, workload.address))
            for service in topology.services:
                if caller in callers and caller not in service.endpoints:
                    yield request, Asked(
                        caller=caller, endpoint=service.endpoints[0], service=service.name,
                        message=replace(message, host=f"{service.hostname}:{service.ports[0].port}"),
                    )  # fmt: skip


def _to(message: Message, address: str) -> Message:
    return replace(message, host=f"{address}:8080")


def predicted(scene: Scene, one: Asked) -> Prediction | None:
    """None where endpoints of one service would say different things: nobody knows whom a refused call was for."""
    if not one.service:
        return ways.predict(scene, one)
    ends = scene.topology.service(one.service).endpoints
    found = [ways.predict(scene, replace(one, endpoint=end)) for end in ends]
    return found[0] if len({p.allowed for p in found}) == 1 else None


def try_set(deployment: Deployment, topology: Topology, policies: PolicySet) -> tuple[list[Row], int]:
    """(rows, calls that had no one prediction)."""
    here = scene(topology, deployment.placement, policies)
    wanted = [(request, one, predicted(here, one)) for request, one in asked(topology, policies)]
    told = [(request, one, prediction) for request, one, prediction in wanted if prediction is not None]
    by_caller: dict[str, list[tuple[str, Asked, Prediction]]] = {}
    for request, one, prediction in told:
        by_caller.setdefault(one.caller, []).append((request, one, prediction))

    def of(caller: str) -> list[Row]:
        mine = by_caller[caller]
        until_s = time.monotonic() + TRIED_AGAIN_S
        return in_netns(deployment.lab.netns(caller), lambda: [_tried(here, *each, until_s=until_s) for each in mine])

    with ThreadPoolExecutor(max_workers=len(by_caller)) as pool:
        rows = [row for part in pool.map(of, by_caller) for row in part]
    return rows, len(wanted) - len(told)


def _tried(here: Scene, request: str, one: Asked, prediction: Prediction, *, until_s: float) -> Row:
    attempt = _attempt(here.topology, one)
    for _ in range(MOST_TRIES):
        late = time.monotonic() > until_s
        (outcome,) = probe.make(attempt)
        passed = outcome.answered_by is not None and outcome.status == 200
        seen = str(outcome.status or outcome.error or "closed")
        observed = True if passed else None if outcome.error == "timeout" else False
        if observed is prediction.allowed or observed is True or late:
            break
        time.sleep(0.25)
    return Row(
        asked=one, request=request, prediction=prediction, observed=observed, seen=seen,
        intended=ways.intended(here, one),
    )  # fmt: skip


def _attempt(topology: Topology, one: Asked) -> Attempt:
    message, port = one.message, 8080
    address = topology.workload(one.endpoint).address
    if one.service:
        service = topology.service(one.service)
        address, port = service.address, service.ports[0].port
    return Attempt(
        name="a", kind="http", address=address, port=port, method=message.method, path=message.path,
        headers={"host": message.host}, lines=tuple(message.headers), timeout_s=CALL_LIMIT_S,
    )  # fmt: skip


def try_all(
    plane: str, *, runtime: Runtime, links: LinkMaker, name: str, logs: Path, table: Path | None = None,
    sets: Sequence[PolicySet] = SETS, say: Progress = lambda _line: None,
) -> list[Finding]:  # fmt: skip
    """One lab, every set in turn; the rows go to `table` as CSV, after what is there."""
    findings: list[Finding] = []
    topology, placement = world(plane, sets[0])
    logs.mkdir(parents=True, exist_ok=True)
    with (
        lab.up(
            topology, runtime=runtime, links=links, name=name, logs=logs, extra=extra_sandboxes(placement)
        ) as running,
        deploy.deploy(running, placement) as deployment,
    ):  # fmt: skip
        for number, policies in enumerate(sets):
            if number:
                topology, placement = world(plane, policies)
                events.deploy_anew(deployment, placement, deployment.stack)
            rows, unsure = try_set(deployment, topology, policies)
            findings += judged(placement.plane, policies, rows, unsure)
            if table is not None:
                _append(table, placement.plane, policies, rows)
            say(f"{placement.plane}: {findings[-1].value} ({policies.name})")
    return findings


def judged(plane: str, policies: PolicySet, rows: Sequence[Row], unsure: int) -> list[Finding]:
    """Whether each came as predicted, and how far that is from what the policies mean."""
    wrong = [r for r in rows if not r.as_predicted]
    blind = [r for r in wrong if r.observed is None]
    result = Result.BROKEN if len(wrong) > len(blind) else Result.NO_EVIDENCE if blind or not rows else Result.HOLDS
    past = [r for r in rows if r.observed is True and not r.intended]
    shut = [r for r in rows if r.observed is False and r.intended]
    told = "; ".join(_line(r) for r in wrong[:TOLD])
    apart = f"; {unsure} calls of services whose endpoints would differ were left out" if unsure else ""
    meant = Finding(
        id=f"{MEANT}{policies.name}", plane=plane, segment="call", result=result,
        statement=f"under the policies `{policies.name}` what passes or is refused against what they mean"
        f"{DOCUMENTED}it is as predicted from who reads what where",
        evidence=f"let past: {_whom(past)}; refused although allowed: {_whom(shut)}",
        value=f"{len(past)} let past, {len(shut)} refused of {len(rows)}",
    )  # fmt: skip
    as_said = Finding(
        id=f"{VERDICTS}{policies.name}", plane=plane, segment="call", result=result,
        statement=f"every call between all pairs gets the verdict that the policies `{policies.name}` predict",
        evidence=f"probe: {len(rows)} calls, {sum(r.prediction.allowed for r in rows)} of them allowed{apart}"
        + (f"; not so: {told}" if told else ""),
        value=f"{len(rows) - len(wrong)} of {len(rows)} as predicted",
    )  # fmt: skip
    return [meant, as_said]


def _line(row: Row) -> str:
    one = row.asked
    said, by = "passes" if row.prediction.allowed else "is refused", "service" if one.service else "pod"
    return (
        f"{one.caller} to {one.service or one.endpoint} by {by}, {row.request}: {said} "
        f"at {row.prediction.at} ({row.prediction.why}), but {row.seen}"
    )


def _whom(rows: Sequence[Row]) -> str:
    """By called group and way: a table must bear a thousand pairs."""
    counts: dict[str, int] = {}
    for row in rows:
        key = f"{row.asked.endpoint.rstrip('0123456789').rstrip('-')} by {'service' if row.asked.service else 'pod'}"
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{key} {count}" for key, count in sorted(counts.items())) or "none"


def _append(table: Path, plane: str, policies: PolicySet, rows: Sequence[Row]) -> None:
    begun = table.exists()
    lines = [
        (
            plane, policies.name, r.asked.caller, r.asked.service or r.asked.endpoint,
            "service" if r.asked.service else "pod", r.request, _said(r.prediction.allowed), r.prediction.at,
            r.prediction.why, "unknown" if r.observed is None else _said(r.observed), r.seen, _said(r.intended),
        )
        for r in rows
    ]  # fmt: skip
    with table.open("ab") as file:
        file.write(csv_bytes(lines if begun else [COLUMNS, *lines]))


def _said(allowed: bool) -> str:
    return "allowed" if allowed else "refused"
