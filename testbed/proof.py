"""Proof of one deployed plane: canary requests under capture, judged from packets. What is tried beside: `boundaries`.

Everything here happens in a window of its own, never while something is measured: the proxies write their TLS secrets,
and a capture costs CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import honoured, program
from testbed.deploy import Deployment
from testbed.errors import PeerError, UsageError
from testbed.lab import APP_UID, log_tail
from testbed.model.experiment import Finding
from testbed.model.placement import Claim
from testbed.model.policy import AuthorizationPolicy, selects
from testbed.model.topology import ROOT_NAMESPACE, Service, ServicePort, Topology
from testbed.observe import pcapng
from testbed.observe.capture import Capture, embed_secrets
from testbed.pki import ROOTS_FILE
from testbed.runtime.enter import owner_for
from testbed.runtime.routing import paths
from testbed.runtime.wiring import port_name
from testbed.seams import Spawn
from testbed.verify.evidence import Canary, first_stops, gather
from testbed.verify.judge import judge
from testbed.verify.segments import Layout, capture_points, lay_out

REQUESTS = 32
"""Canary requests, each over a connection of its own: enough to see pooling, few enough to read packet by packet."""
EVERY_NTH_BY_HTTP2 = 4
"""Where the application is known to speak it: there a canary is an HPACK field, found by decoding and in no byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Canary requests to one service: who asks, what is sent, and how each endpoint's share of them is told apart."""

    service: Service
    port: ServicePort
    kind: str
    """`http`; `tcp`: what is sent comes back; `line`: one line, which any answer will do for."""
    token: str
    by_http2: bool = False
    """Whether some requests go by HTTP/2."""

    def attempts(self) -> list[dict]:
        return [
            {
                "name": f"{self.token}-{number}",
                "kind": self._kind(number),
                "address": self.service.address,
                "port": self.port.port,
                "canary": f"{self.token}-{number}" + ("\r\n" if self.kind == "line" else ""),
            }
            for number in range(REQUESTS)
        ]

    def _kind(self, number: int) -> str:
        if self.by_http2 and number % EVERY_NTH_BY_HTTP2 == EVERY_NTH_BY_HTTP2 - 1:
            return "http2"
        return "http" if self.kind == "http" else "tcp"

    def succeeded(self, outcome: dict) -> bool:
        if self.kind == "line":
            return bool(outcome["bytes_received"])
        return outcome["status"] == 200 if self.kind == "http" else bool(outcome["echoed"])

    def shares(self, tries: Mapping[str, Sequence[dict]]) -> dict[str, frozenset[str]]:
        """Endpoint -> numbers of the requests that it answered; a lone endpoint needs not say that it was it."""
        lone = self.service.endpoints[0] if len(self.service.endpoints) == 1 else None
        shares: dict[str, set[str]] = {name: set() for name in self.service.endpoints}
        for name, (outcome,) in tries.items():
            endpoint = lone or outcome["answered_by"]
            if endpoint not in shares:
                raise PeerError(
                    f"proof: {self.service.name} was answered by {endpoint}; its endpoints are {', '.join(shares)}"
                )
            shares[endpoint].add(name.rpartition("-")[2])
        return {name: frozenset(numbers) for name, numbers in shares.items()}


def errand(topology: Topology, target: str, token: str) -> Errand:
    """`target` is `service` (its first port) or `service:port`. Raises UsageError where nothing could be proven."""
    name, _, wanted = target.partition(":")
    service = topology.service(name)
    port = next((p for p in service.ports if not wanted or str(p.port) == wanted), None)
    if port is None:
        raise UsageError(f"service {name} has no port {wanted}; it has {', '.join(str(p.port) for p in service.ports)}")
    kinds = {topology.workload(endpoint).app.kind for endpoint in service.endpoints}
    if kinds == {"tcp-echo"} and len(service.endpoints) > 1:
        raise UsageError(
            f"proof: service {name} has {len(service.endpoints)} endpoints of kind tcp-echo, which do not say who "
            "answered; prove an http-echo, or give it one endpoint"
        )
    foreign = kinds == {"image"} and port.protocol == "tcp"  # whose protocol we do not speak: it will say so
    kind = "tcp" if kinds == {"tcp-echo"} else "line" if foreign else "http"
    return Errand(service=service, port=port, kind=kind, token=token, by_http2=kinds == {"http-echo"})


def prove(deployment: Deployment, *, client: str, target: str, captures: Path) -> list[Finding]:
    """Findings of every claim between the client and the target's endpoints, from packets at every segment on the way.

    An endpoint that load balancing never chose is not judged, for nothing was sent that its claims speak of.
    """
    lab, plane = deployment.lab, deployment.placement.plane
    going = errand(lab.topology, target, f"canary-{secrets.token_hex(8)}")
    asked = concerned(deployment.placement.claims, lab.topology, going, client)
    proxies = {p.sandbox: (p.node, p.own_address) for p in deployment.placement.proxies if p.own_address}
    stops = [stop for claim in asked for stop in claim.call]
    watched = dict.fromkeys((client, *(s for s in stops if s in proxies), *going.service.endpoints))
    layout = lay_out(
        lab.topology, {name: port_name(name) for name in watched}, extra=proxies, routes=paths(lab.topology),
        catching=[node.name for node in lab.topology.nodes if node.name in stops],
    )
    file = captures / f"{plane}.pcapng"
    capture = Capture(capture_points(layout.segments, lab.running.sandboxes), file)
    with capture:
        tries = run_probe(deployment, client, going.attempts())
        time.sleep(0.2)  # the last acknowledgements are still on their way over the delayed link
        capture.stop()  # losses stand in the file, per point; the judge has them from there
    lost = [name for name, (outcome,) in tries.items() if not going.succeeded(outcome)]
    if lost:
        first = tries[lost[0]][0]
        raise PeerError(
            f"{len(lost)} of {REQUESTS} canary requests failed, so nothing can be proven "
            f"(first: {first['error'] or first['status']})"
            + "".join(f"\n{line}" for line in policies_before(going.service, lab.topology, plane))
        )
    embed_secrets(file, deployment.keylogs())
    heard = gather(
        pcapng.read(file), layout.segments, file=f"captures/{file.name}", roots=trusted(deployment)
    )
    shares = {endpoint: numbers for endpoint, numbers in going.shares(tries).items() if numbers and endpoint != client}
    taken = first_stops(heard, going.token.encode(), lab.topology.workload(client).address)
    claims, canaries = share_out(asked, shares, taken, layout, token=going.token.encode(), client=client)
    findings = judge(plane=plane, claims=claims, canaries=canaries, evidence=heard, layout=layout)
    return [dataclasses.replace(finding, id=f"packets.{finding.id}") for finding in findings]


def policies_before(service: Service, topology: Topology, plane: str) -> list[str]:
    """Why canaries may be refused rightly: the policies of a service's endpoints, with what the plane makes of them."""
    undone: dict[str, list[str]] = {}
    for one in honoured.not_honoured(topology.policies, plane):
        undone.setdefault(one.resource, []).append(f"{one.field}: {one.why}" if one.field else one.why)
    endpoints = [topology.workload(name) for name in service.endpoints]
    found = []
    for policy in topology.policies:
        if not isinstance(policy, AuthorizationPolicy) or policy.target_refs:
            continue
        if any(selects(policy.selector or (), policy.namespace, one, ROOT_NAMESPACE) for one in endpoints):
            name = f"AuthorizationPolicy {policy.namespace}/{policy.name}"
            why = "; ".join(undone.get(name, ["as it is written"]))
            found.append(f"{name} ({policy.action.value}) stands before {service.name}; under {plane}: {why}")
    return found


def trusted(deployment: Deployment) -> bytes:
    """PEM of the authorities whose leaves the proxies were given."""
    folders = [deployment.folder(proxy.name) for proxy in deployment.placement.proxies]
    found = {path.read_bytes() for folder in folders for path in sorted(folder.rglob(ROOTS_FILE))}
    return b"".join(sorted(found))


def concerned(claims: Sequence[Claim], topology: Topology, going: Errand, client: str) -> list[Claim]:
    """Claims that speak of this errand: of this client's calls of the service's port, on every leg of them."""

    def speaks(claim: Claim) -> bool:
        first, last = claim.call[0], claim.call[-1]
        if first != client or last not in going.service.endpoints:
            return False
        if claim.service is not None:
            return (claim.service, claim.port) == (going.service.name, going.port.port)
        return claim.authority in (None, f"{topology.workload(last).address}:{going.port.target_port}")

    return [claim for claim in claims if speaks(claim)]


def share_out(
    claims: Sequence[Claim],
    shares: Mapping[str, frozenset[str]],
    taken: Mapping[str, str],
    layout: Layout,
    *,
    token: bytes,
    client: str,
) -> tuple[list[Claim], list[Canary]]:
    """A canary for each way that requests took, and the claims of those ways.

    Where several ways lead to one endpoint (replicas of a waypoint), `taken` says which of them a request took; one
    that was never seen is put on the first, where it will be missed.
    """
    ways = list(dict.fromkeys(claim.call for claim in claims))
    canaries = []
    for endpoint, numbers in shares.items():
        mine = [way for way in ways if way[-1] == endpoint] or [(client, endpoint)]
        requests: dict[tuple[str, ...], set[str]] = {way: set() for way in mine}
        for number in numbers:
            address = taken.get(number)
            took = next((way for way in mine if address in layout.addresses[way[1]]), mine[0])
            requests[took].add(number)
        canaries += [
            Canary(
                token=token, source=client, destination=endpoint, count=len(some), via=way[1:-1],
                requests=frozenset(some),
            )
            for way, some in requests.items()
            if some
        ]  # fmt: skip
    travelled = {(c.source, *c.via, c.destination) for c in canaries}
    judged = [dataclasses.replace(c, stops=(), service=None, port=None) for c in claims if c.call in travelled]
    return list(dict.fromkeys(judged)), canaries


def run_probe(
    deployment: Deployment, sandbox: str, attempts: Sequence[dict], *, files: dict[str, bytes] | None = None
) -> dict[str, list[dict]]:
    """Attempts made by an application's user inside a sandbox; outcome per name.

    Files lie beside it, readable for it alone.
    """
    return run_probes(deployment, {sandbox: attempts}, files={sandbox: files or {}})[sandbox]


def run_probes(
    deployment: Deployment,
    attempts: Mapping[str, Sequence[dict]],
    *,
    files: Mapping[str, Mapping[str, bytes]] | None = None,
) -> dict[str, dict[str, list[dict]]]:
    """The same in several sandboxes at once: by sandbox."""
    lab = deployment.lab
    folders, spawns = {}, []
    for sandbox, tried in attempts.items():
        folders[sandbox] = folder = lab.folder / "probes" / secrets.token_hex(4)
        folder.mkdir(parents=True, mode=0o755)
        (folder / "attempts.json").write_text(json.dumps(list(tried)))
        for name, data in (files or {}).get(sandbox, {}).items():
            (folder / name).write_bytes(data)
        own(folder)
        spawns.append(
            Spawn(
                name=f"probe.{folder.name}",
                sandbox=sandbox,
                argv=program.argv(
                    "testbed.verify.probe",
                    "--attempts", str(folder / "attempts.json"),
                    "--out", str(folder / "out.json"),
                ),
                env=program.environment(folder),
                uid=APP_UID,
                folder=folder,
            )
        )  # fmt: skip
    for sandbox, process in zip(attempts, lab.running.spawn(spawns), strict=True):
        code = process.wait(60.0)
        if code != 0:
            raise PeerError(
                f"probe in {sandbox}: {'not done in 60 s' if code is None else f'ended with {code}'}:\n"
                f"{log_tail(process)}"
            )
    return {
        sandbox: {row["name"]: row["tries"] for row in json.loads((folder / "out.json").read_text())}
        for sandbox, folder in folders.items()
    }


def own(folder: Path) -> None:
    """To the applications' user, where user ids are ours to give."""
    if (owner := owner_for(APP_UID)) != os.geteuid():
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner, owner)
