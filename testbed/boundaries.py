"""Boundaries of a deployed plane, tried from where an attacker would stand: keys, plaintext, calls that must not pass.

What happened is the finding, not what the plane says; each refusal is weighed against the same call by one who may.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.deploy import Deployment, file_name
from testbed.model.experiment import Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Encryption
from testbed.pki import KEY_FILE, CertificateAuthority
from testbed.proof import run_probe

HBONE_PORT = 15008


def try_all(deployment: Deployment, *, client: str, packets: Sequence[Finding]) -> list[Finding]:
    """Each boundary tried from where an attacker would stand; what happened is the finding, not what the plane says."""
    return [
        identities_held(deployment),
        plaintext_visible(deployment, packets),
        *_calls(deployment, client),
    ]


def identities_held(deployment: Deployment) -> Finding:
    """Identities whose private key can be read from inside each component's own mount namespace:
    what its capture gives away.
    """
    lab = deployment.lab
    held: dict[str, set[str]] = {}
    unseen = []
    for name, process in {**lab.apps, **deployment.proxies}.items():
        root = Path(f"/proc/{process.pid}/root")
        own_folder = deployment.folder(name) if name in deployment.proxies else lab.folder / "apps" / name
        if not (root / str(own_folder).lstrip("/")).is_dir():
            unseen.append(name)  # it ended, or we may not look: that no key is found then proves nothing
        keys = (root / str(lab.folder).lstrip("/")).rglob(KEY_FILE)
        held[name] = {path.parent.name for path in keys}
    placed = {proxy.name: {file_name(i) for i in proxy.identities} for proxy in deployment.placement.proxies}
    wrong = [name for name, keys in held.items() if keys != placed.get(name, set())]
    proxies = {name: len(keys) for name, keys in held.items() if name in placed}
    listed = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(held.items()))
    if unseen:
        listed += f"; not seen from inside: {', '.join(unseen)}"
    # A key that was found was found, whatever else could not be seen.
    leaked = [name for name, keys in held.items() if keys - placed.get(name, set())]
    if leaked or (wrong and not unseen):
        result = Result.BROKEN
    else:
        result = Result.NO_EVIDENCE if unseen or not held else Result.HOLDS
    return Finding(
        id="boundary.identities-held",
        plane=deployment.placement.plane,
        segment="components",
        statement="each proxy can reach the keys of the workloads it serves and of no other; applications reach none",
        result=result,
        evidence=f"private keys readable in each component's mount namespace: {listed}",
        value=", ".join(f"{name} {count}" for name, count in sorted(proxies.items())) or "0",
    )


def plaintext_visible(deployment: Deployment, packets: Sequence[Finding]) -> Finding:
    """Where the canary could be read without keys, summed from the packet findings."""
    clear = [f for f in packets if f.id.endswith(("/readable", "/hidden"))]
    claimed_clear = any(c.encryption is Encryption.CLEAR for c in deployment.placement.claims)
    results = {f.result for f in clear}
    # A leak is a leak, however little is known of the other segments.
    result = (
        Result.BROKEN
        if Result.BROKEN in results
        else Result.NO_EVIDENCE
        if not clear or Result.NO_EVIDENCE in results
        else Result.HOLDS
    )
    readable = [f for f in clear if not f.value.startswith("0 of")]
    return Finding(
        id="boundary.plaintext-visible",
        plane=deployment.placement.plane,
        segment="wire",
        statement="payload is readable at every wire segment, as is meant to be"
        if claimed_clear
        else "no payload is readable on the wire",
        result=result,
        evidence="; ".join(f"{f.segment}: {f.value}" for f in clear) or "no segment was judged",
        packets=clear[0].packets if clear else (),
        value=f"{len(readable)} of {len(clear)} segments",
    )


def _calls(deployment: Deployment, client: str) -> list[Finding]:
    """Calls that policy or identity should stop; in planes without either, that they pass is the finding."""
    lab = deployment.lab
    topology = lab.topology
    names = {w.name for w in topology.workloads}
    if not {"vault", "intruder", "server"} <= names:
        return []  # these calls need a STRICT workload, one whom policy does not allow, and a pod beside
    vault, other = topology.workload("vault"), topology.workload("server")
    service = topology.service("vault")
    port = service.ports[0]
    meshed = bool(deployment.placement.proxies)
    node = topology.workload(client).node
    stranger = CertificateAuthority(now=time.time(), trust_domain="elsewhere.example")
    intruder_identity = topology.workload("intruder").identity(topology.trust_domain)
    files = {
        **_pem("wrong", stranger, Identity("elsewhere.example", "default", "client")),
        **_pem("client", deployment.authority, topology.workload(client).identity(topology.trust_domain)),
        **_pem("intruder", deployment.authority, intruder_identity),
    }

    def hbone(name: str, leaf: str, address: str, authority: str) -> dict:
        return {
            "name": name,
            "kind": "hbone",
            "address": address,
            "port": HBONE_PORT,
            "authority": authority,
            "cert": f"{leaf}.cert.pem",
            "key": f"{leaf}.key.pem",
        }

    # A node's own namespace is not captured: what stands there is what an attacker on the node, or an unmeshed
    # process, can do.
    outside = run_probe(
        deployment,
        node,
        [
            {"name": "clear", "kind": "http", "address": vault.address, "port": port.target_port},
            hbone("wrong", "wrong", vault.address, f"{vault.address}:{port.target_port}"),
            hbone("foreign", "client", vault.address, f"{other.address}:{port.target_port}"),
            hbone("intruder", "intruder", vault.address, f"{vault.address}:{port.target_port}"),
            hbone("right", "client", vault.address, f"{vault.address}:{port.target_port}"),
        ],
        files=files,
    )
    call = [{"name": "call", "kind": "http", "address": service.address, "port": port.port}]
    allowed = run_probe(deployment, client, call)["call"][0]
    denied = run_probe(deployment, "intruder", call)["call"][0]
    clear, wrong = outside["clear"][0], outside["wrong"][0]
    foreign, right = outside["foreign"][0], outside["right"][0]
    findings = [
        _tried(
            deployment,
            "plaintext-to-strict",
            "a plaintext call to a STRICT workload",
            clear,
            refused=clear["status"] is None,
            meshed=meshed,
            # From where the plaintext came, too: else a dead route would look like a refusal.
            control=allowed["status"] == 200 and (not meshed or right["connect_status"] == 200),
        ),
        _tried(
            deployment,
            "l4-denied",
            f"a call as {intruder_identity} that policy does not allow",
            denied,
            refused=denied["status"] is None,
            meshed=meshed,
            control=allowed["status"] == 200,
        ),
    ]
    if meshed:
        control = right["connect_status"] == 200
        findings += [
            _tried(
                deployment,
                "l4-denied-hbone",
                f"HBONE past the client's proxy as {intruder_identity}, whom policy does not allow,",
                outside["intruder"][0],
                refused=outside["intruder"][0]["connect_status"] == 401,
                meshed=meshed,
                control=control,
            ),
            _tried(
                deployment,
                "wrong-identity",
                "HBONE with a certificate of another trust domain",
                wrong,
                refused=wrong["connect_status"] is None and wrong["status"] is None,
                meshed=meshed,
                control=control,
            ),
            _tried(
                deployment,
                "foreign-authority",
                "HBONE to one pod with the authority of another",
                foreign,
                refused=foreign["connect_status"] == 400,
                meshed=meshed,
                control=control,
            ),
        ]
    else:
        findings += [
            _unheard(deployment, name, what, outside, reachable=clear["status"] == 200)
            for name, what in (
                ("l4-denied-hbone", f"HBONE as {intruder_identity}, whom policy does not allow,"),
                ("wrong-identity", "HBONE with a certificate of another trust domain"),
                ("foreign-authority", "HBONE to one pod with the authority of another"),
            )
        ]
    return findings


def _unheard(
    deployment: Deployment, name: str, what: str, outside: Mapping[str, Sequence[dict]], *, reachable: bool
) -> Finding:
    """Where no proxy ends HBONE there is nobody to be deceived. Tried all the same: that nothing listens is what is
    found, also for the identity that may; `reachable` says that the pod was there to answer."""
    outcomes = {key: outside[key][0] for key in ("wrong", "foreign", "intruder", "right")}
    open_to = [key for key, outcome in outcomes.items() if outcome["connected"]]
    result = Result.BROKEN if open_to else Result.HOLDS if reachable else Result.NO_EVIDENCE
    errors = ", ".join(f"{key} {outcome['error'] or 'connected'}" for key, outcome in outcomes.items())
    return Finding(
        id=f"boundary.{name}",
        plane=deployment.placement.plane,
        segment="call",
        statement=f"{what} is not applicable: nothing here ends HBONE",
        result=result,
        evidence=f"probe of port {HBONE_PORT}: {errors}; the pod's own port "
        + ("answered" if reachable else "did NOT answer either"),
        value=f"something listens on {HBONE_PORT}" if open_to else "not applicable: no HBONE listener",
    )


def _tried(
    deployment: Deployment, name: str, what: str, outcome: dict, *, refused: bool, meshed: bool, control: bool
) -> Finding:
    """`control`: the same call by one who may. Without it a refusal proves nothing."""
    judged = Result.HOLDS if refused == meshed else Result.BROKEN
    result = judged if control else Result.NO_EVIDENCE
    status = outcome["connect_status"] or outcome["status"]
    seen = f"refused ({status or outcome['error'] or 'closed'})" if refused else f"passed ({status})"
    return Finding(
        id=f"boundary.{name}",
        plane=deployment.placement.plane,
        segment="call",
        statement=f"{what} is refused" if meshed else f"{what} passes, as nothing here could stop it",
        result=result,
        evidence=f"probe: {json.dumps({k: v for k, v in outcome.items() if v not in (None, '', False, 0)})}; "
        + ("the same call by one who may passed" if control else "the same call by one who may FAILED too"),
        value=seen,
    )


def _pem(name: str, authority: CertificateAuthority, identity: Identity) -> dict[str, bytes]:
    leaf = authority.issue(identity, lifetime_s=600.0, now=time.time())
    return {f"{name}.cert.pem": leaf.cert_pem, f"{name}.key.pem": leaf.key_pem}
