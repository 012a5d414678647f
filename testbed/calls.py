"""Calls that identity or policy should stop, tried in a deployed plane: what came back is the finding.

Which outcome is right follows from the proxies that stand at both ends, as facts/hbone 4.4 and 7 say, and not from the
plane's name. A refusal is any answer that is not the application's. It counts only beside its control, the same call by
one who may: else a dead route would look like a boundary. Where a call passes although policy names it (an L7 rule
where nobody reads HTTP), that is said and is what must be found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.deploy import Deployment
from testbed.lab import http_get
from testbed.model.experiment import DOCUMENTED, Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Proxy
from testbed.model.topology import Service, Workload
from testbed.pki import CertificateAuthority
from testbed.proof import run_probes

HBONE_PORT = 15008
SECRET = "/secret"
"""The path of `server` that two-zones.policies.yml denies to everybody."""
ISTIO_ALPN = ("istio-http/1.1", "istio", "http/1.1")
_AROUND = "a sidecar goes around the waypoint of whom it calls"
NODE_ROLE = "node-l7"
SOURCE_FIELD = "meshbed-source"
"""In which a node's proxy says whose call it brings."""
_PAST_NODE = "a node's proxy takes what workloads send, and nobody stands before a pod"
NEEDED = frozenset({"vault", "intruder", "server"})
"""Workloads of these names must be there: a STRICT one, one whom policy does not allow, and a pod beside."""

Outcomes = Mapping[str, dict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Who stands at a workload."""

    kind: str
    """`sidecar`, `ambient`, `node` (its node's proxy takes what it sends, and brings what others' send) or `none`."""
    takes_hbone: bool = False

    @property
    def is_guarded(self) -> bool:
        """Whether who calls its address meets a proxy, wherever he stands."""
        return self.kind in ("sidecar", "ambient")

    @property
    def ends_mtls(self) -> bool:
        """Itself, or its node's proxy for it."""
        return self.kind != "none"

    @property
    def reads_http(self) -> bool:
        return self.kind in ("sidecar", "node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """One call: what is tried, what must come of it, and what shows that it was not chance."""

    name: str
    what: str
    tried: str
    """Name of its attempt."""
    stopped: bool
    """What must be found."""
    because: str = ""
    """Where it must pass although policy says otherwise: why. Empty: nobody is there who could stop it."""
    control: str = ""
    """Attempt of one who may; it must pass. Empty where passing is what must be found: that is its own proof."""


def stand(proxies: Sequence[Proxy], workload: str) -> Stand:
    """By the proxy that serves it, ours or another's."""
    roles = {p.role.removeprefix("envoy-"): p for p in proxies if workload in p.serves and not p.own_address}
    if "sidecar" in roles:
        return Stand(kind="sidecar", takes_hbone=bool(roles["sidecar"].options.get("listens_hbone")))
    if "ztunnel" in roles:
        return Stand(kind="ambient", takes_hbone=True)
    return Stand(kind="node" if NODE_ROLE in roles else "none")


def passes(outcome: dict) -> bool:
    """Only the application's own answer is a call that passed; it says who it is."""
    return outcome["answered_by"] is not None


def try_calls(deployment: Deployment, *, client: str) -> list[Finding]:
    """Nothing for a topology without the workloads that these calls need."""
    topology = deployment.lab.topology
    if not {w.name for w in topology.workloads} >= NEEDED:
        return []
    proxies = deployment.placement.proxies
    vault = stand(proxies, "vault")
    trial = _Trial(deployment, client)
    outcomes = trial.run()
    findings = [_found(deployment, boundary, outcomes) for boundary in trial.boundaries(vault)]
    findings += trial.without_listener(vault, outcomes)
    if "ledger" in {w.name for w in topology.workloads}:
        findings += [_found(deployment, boundary, outcomes) for boundary in trial.l7_boundaries()]
        findings.append(_allow_of_l7(deployment, stand(proxies, "ledger"), stand(proxies, client), outcomes))
    return findings


class _Trial:
    def __init__(self, deployment: Deployment, client: str) -> None:
        self.deployment, self.client = deployment, client
        self.topology = deployment.lab.topology
        self.proxies = deployment.placement.proxies
        self.vault, self.server = self.topology.workload("vault"), self.topology.workload("server")
        self.intruder = self.topology.workload("intruder").identity(self.topology.trust_domain)
        self.waypoint = next(
            (p for p in self.proxies if p.own_address and "server" in p.serves), None
        )  # fmt: skip

    def run(self) -> Outcomes:
        """Outcomes by attempt: from the client, from the intruder, and from outside every mesh.

        A node's own namespace is not captured: what stands there is what an attacker on the node, or an unmeshed
        process, can do.
        """
        node = self.topology.workload(self.client).node
        tried = run_probes(
            self.deployment,
            {node: list(self._outside()), self.client: list(self._client()), "intruder": [self._call("denied")]},
            files={node: self._credentials()},
        )
        return {name: tries[0] for attempts in tried.values() for name, tries in attempts.items()}

    def _call(self, name: str) -> dict:
        service = self.topology.service("vault")
        return {"name": name, "kind": "http", "address": service.address, "port": service.ports[0].port}

    def _client(self) -> Iterator[dict]:
        yield self._call("allowed")
        server, pod = self.topology.service("server"), self.server
        for name, address, port in (
            ("service", server.address, server.ports[0].port),
            ("pod", pod.address, server.ports[0].target_port),
        ):
            yield {"name": name, "kind": "http", "address": address, "port": port}
            yield {"name": f"{name}-secret", "kind": "http", "address": address, "port": port, "path": SECRET}
        ledger = next((s for s in self.topology.services if s.name == "ledger"), None)
        if ledger is not None:
            at = {"kind": "http", "address": ledger.address, "port": ledger.ports[0].port}
            yield {"name": "ledger-read", **at}
            yield {"name": "ledger-write", "method": "POST", **at}

    def _outside(self) -> Iterator[dict]:
        port = self.topology.service("vault").ports[0].target_port
        yield {"name": "clear", "kind": "http", "address": self.vault.address, "port": port}
        for leaf in ("right", "wrong", "forged", "intruder"):
            yield self._direct(leaf, leaf, self.vault, port)
        yield self._hbone("foreign", "right", self.vault.address, f"{self.server.address}:{port}")
        for leaf in ("right", "wrong"):
            yield self._hbone(f"hbone-{leaf}", leaf, self.vault.address, f"{self.vault.address}:{port}")
        if self.waypoint is not None:
            service = self.topology.service("server")
            for leaf in ("right", "wrong"):
                authority = f"{service.address}:{service.ports[0].port}"
                yield self._hbone(f"waypoint-{leaf}", leaf, str(self.waypoint.own_address), authority)
        ledger = next((w for w in self.topology.workloads if w.name == "ledger"), None)
        if ledger is not None:
            yield self._direct("ledger-direct", "right", ledger, ledger.app.ports[0])

    def _direct(self, name: str, leaf: str, workload: Workload, port: int) -> dict:
        """As a proxy of the client's would, past it: by what the workload's own proxy takes."""
        if stand(self.proxies, workload.name).kind == "node":
            authority = f"{workload.address}:{port}"
            teller = self.topology.workload(self.client)
            return {
                **self._hbone(name, leaf, self.topology.node(workload.node).address, authority),
                "connect_headers": {SOURCE_FIELD: f"{teller.namespace}/{teller.name}"},
            }
        if stand(self.proxies, workload.name).kind != "sidecar":
            return self._hbone(name, leaf, workload.address, f"{workload.address}:{port}")
        service = next(s for s in self.topology.services if workload.name in s.endpoints)
        return {
            "name": name, "kind": "mtls", "address": workload.address, "port": port, "alpn": ISTIO_ALPN,
            "server_name": _sni(service), "headers": {"host": service.hostname}, **_leaf(leaf),
        }  # fmt: skip

    def _hbone(self, name: str, leaf: str, address: str, authority: str) -> dict:
        return {
            "name": name, "kind": "hbone", "address": address, "port": HBONE_PORT, "authority": authority,
            **_leaf(leaf),
        }  # fmt: skip

    def _credentials(self) -> dict[str, bytes]:
        """`wrong`: of a stranger's trust domain. `forged`: by a stranger, bearing the name of one who may."""
        ours, domain = self.deployment.authority, self.topology.trust_domain
        client = self.topology.workload(self.client).identity(domain)
        for proxy in self.proxies:
            if proxy.role == NODE_ROLE and self.client in proxy.serves:
                (client,) = proxy.identities  # who may call is the node: its workloads have no keys
        elsewhere = CertificateAuthority(now=time.time(), trust_domain="elsewhere.example")
        forger = CertificateAuthority(now=time.time(), trust_domain=domain)
        return {
            **_pem("right", ours, client),
            **_pem("intruder", ours, self.intruder),
            **_pem("wrong", elsewhere, Identity("elsewhere.example", client.namespace, client.service_account)),
            **_pem("forged", forger, client),
        }

    # -- what must be found

    def boundaries(self, vault: Stand) -> Iterator[Boundary]:
        meshed = vault.ends_mtls
        yield Boundary(
            name="plaintext-to-strict", what="a plaintext call to a STRICT workload", tried="clear",
            stopped=vault.is_guarded, because=_PAST_NODE if vault.kind == "node" else "", control="right",
        )  # fmt: skip
        yield Boundary(
            name="l4-denied", what=f"a call as {self.intruder} that policy does not allow", tried="denied",
            stopped=meshed, control="allowed",
        )  # fmt: skip
        if vault.ends_mtls:
            for name, what, tried in (
                ("l4-denied-direct", f"mutual TLS past the client's proxy as {self.intruder}", "intruder"),
                ("wrong-identity", "mutual TLS with a certificate of another trust domain", "wrong"),
                ("forged-identity", "mutual TLS with a stranger's certificate in the name of one who may", "forged"),
            ):
                yield Boundary(name=name, what=what, tried=tried, stopped=True, control="right")
        if vault.takes_hbone:
            yield Boundary(
                name="foreign-authority", what="HBONE to one pod with the authority of another", tried="foreign",
                stopped=True, control="hbone-right",
            )  # fmt: skip
        if self.waypoint is not None:
            yield Boundary(
                name="wrong-identity-waypoint", what="HBONE to the waypoint from another trust domain",
                tried="waypoint-wrong", stopped=True, control="waypoint-right",
            )  # fmt: skip

    def l7_boundaries(self) -> Iterator[Boundary]:
        """`GET /secret` of `server`: who reads HTTP on the way decides (facts/hbone 7, rows 2, 5 and 6)."""
        server, client = stand(self.proxies, "server"), stand(self.proxies, self.client)
        by_waypoint = self.waypoint is not None and client.kind == "ambient"
        if server.kind == "none":
            because = ""
        elif self.waypoint is None:
            because = "no L7 proxy is on the way: of a DENY about HTTP a ztunnel keeps nothing"
        else:
            because = "who has no ztunnel goes around the waypoint" if client.kind != "sidecar" else _AROUND
        yield Boundary(
            name="l7-denied", what=f"GET {SECRET}, which L7 policy denies,", tried="service-secret",
            stopped=server.reads_http or by_waypoint, because=because, control="service",
        )  # fmt: skip
        if self.waypoint is not None and server.kind != "none":
            because = "a call to the pod's address goes around the waypoint of its service"
        yield Boundary(
            name="l7-denied-pod-ip", what=f"GET {SECRET} by the pod's own address", tried="pod-secret",
            stopped=server.reads_http, because=because, control="pod",
        )  # fmt: skip

    def without_listener(self, vault: Stand, outcomes: Outcomes) -> list[Finding]:
        """Where no proxy ends a protocol there is nobody to be deceived. Tried all the same: that nothing listens is
        what is found, also for the identity that may; and that the pod was there to answer on its own port."""
        if vault.takes_hbone:
            return []
        reached = "right" if vault.ends_mtls else "clear"
        tries = ("hbone-right", "hbone-wrong", "foreign")
        told = [("foreign-authority", "HBONE to one pod with the authority of another")]
        if not vault.ends_mtls:
            told += [
                ("l4-denied-direct", f"mutual TLS as {self.intruder}"),
                ("wrong-identity", "mutual TLS with a certificate of another trust domain"),
                ("forged-identity", "mutual TLS with a stranger's certificate in the name of one who may"),
            ]
        open_to = [name for name in tries if outcomes[name]["connected"]]
        alive = passes(outcomes[reached])
        errors = ", ".join(f"{name} {outcomes[name]['error'] or 'connected'}" for name in tries)
        return [
            Finding(
                id=f"boundary.{name}",
                plane=self.deployment.placement.plane,
                segment="call",
                statement=f"{what} is not applicable: nothing here ends {'HBONE' if vault.ends_mtls else 'it'}",
                result=Result.BROKEN if open_to else Result.HOLDS if alive else Result.NO_EVIDENCE,
                evidence=f"probe of port {HBONE_PORT}: {errors}; the pod's own port "
                + ("answered" if alive else "did NOT answer either"),
                value=f"something listens on {HBONE_PORT}" if open_to else "not applicable: no HBONE listener",
            )
            for name, what in told
        ]


def _found(deployment: Deployment, boundary: Boundary, outcomes: Outcomes) -> Finding:
    outcome = outcomes[boundary.tried]
    refused = not passes(outcome)
    control = not refused or not boundary.control or passes(outcomes[boundary.control])
    result = Result.HOLDS if refused == boundary.stopped else Result.BROKEN
    passing = f"{DOCUMENTED}{boundary.because}" if boundary.because else ", as nothing here could stop it"
    ending = "is refused" if boundary.stopped else f"passes{passing}"
    return Finding(
        id=f"boundary.{boundary.name}",
        plane=deployment.placement.plane,
        segment="call",
        statement=f"{boundary.what} {ending}",
        result=result if control else Result.NO_EVIDENCE,
        evidence=f"probe: {_told(outcome)}; "
        + ("" if not refused else "the same call by one who may passed" if control else
           f"the same call by one who may FAILED too: {_told(outcomes[boundary.control])}"),
        value=seen(outcome),
    )  # fmt: skip


def seen(outcome: dict) -> str:
    if passes(outcome):
        return f"passed ({outcome['status']})"
    connect = outcome["connect_status"] if outcome["connect_status"] != 200 else None
    error = outcome["error"].removeprefix("tls: ").removeprefix("tlsv1_alert_").replace("_", " ")
    return f"refused ({connect or outcome['status'] or error or 'closed'})"


def _allow_of_l7(deployment: Deployment, ledger: Stand, client: Stand, outcomes: Outcomes) -> Finding:
    """ALLOW of GET only: a sidecar reads methods; a ztunnel drops such a rule and then allows nobody (row 1)."""
    read, write, direct = (outcomes[name] for name in ("ledger-read", "ledger-write", "ledger-direct"))
    status, _ = http_get(deployment.lab, "ledger", "127.0.0.1", 8080, "/")
    alive = status == 200
    if ledger.kind == "none":
        right, statement = passes(read) and passes(write), "GET and POST pass: nothing here could stop them"
    elif ledger.reads_http:
        reader = "sidecar" if ledger.kind == "sidecar" else "node's proxy"
        right = passes(read) and not passes(write)
        statement = f"GET passes, POST is refused: the {reader} reads methods"
        alive = alive and passes(read)
    else:
        # 401 to one whom the trust domain knows: it is policy that refuses, not a dead route.
        right = not passes(read) and not passes(write) and direct["connect_status"] == 401
        statement = f"GET and POST are refused{DOCUMENTED}a ztunnel drops a rule about HTTP, then allows nobody"
    result = Result.HOLDS if right else Result.BROKEN
    tries = "; ".join(f"{name}: {_told(outcomes[name])}" for name in ("ledger-read", "ledger-write", "ledger-direct"))
    values = [f"{verb} {seen(outcome)}" for verb, outcome in (("GET", read), ("POST", write))]
    return Finding(
        id="boundary.l7-allow",
        plane=deployment.placement.plane,
        segment="call",
        statement=f"where L7 policy allows only GET, {statement}",
        result=result if alive else Result.NO_EVIDENCE,
        evidence=f"probe: {tries}; the application itself answers {status}",
        value=", ".join(values),
    )


def _told(outcome: dict) -> str:
    return json.dumps({k: v for k, v in outcome.items() if v not in (None, "", False, 0)})


def _leaf(name: str) -> dict:
    return {"cert": f"{name}.cert.pem", "key": f"{name}.key.pem"}


def _sni(service: Service) -> str:
    return f"outbound_.{service.ports[0].port}_._.{service.hostname}"


def _pem(name: str, authority: CertificateAuthority, identity: Identity) -> dict[str, bytes]:
    leaf = authority.issue(identity, lifetime_s=600.0, now=time.time())
    return {f"{name}.cert.pem": leaf.cert_pem, f"{name}.key.pem": leaf.key_pem}
