"""Proof of one deployed plane: canary requests under capture, judged from packets; then its boundaries, tried.

Everything here happens in a window of its own, never while something is measured: the proxies write their TLS secrets,
and a capture costs CPU.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import program
from testbed.deploy import Deployment, file_name
from testbed.errors import PeerError
from testbed.lab import APP_UID, log_tail
from testbed.model.experiment import Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Encryption
from testbed.observe import pcapng
from testbed.observe.capture import Capture, embed_secrets
from testbed.pki import KEY_FILE, CertificateAuthority
from testbed.runtime.enter import owner_for
from testbed.runtime.wiring import port_name
from testbed.seams import Spawn
from testbed.verify.evidence import Canary, gather
from testbed.verify.judge import judge
from testbed.verify.segments import capture_points, lay_out

REQUESTS = 32
"""Canary requests, each over a connection of its own: enough to see pooling, few enough to read packet by packet."""


def prove(deployment: Deployment, *, client: str, target: str, captures: Path) -> list[Finding]:
    """Findings of every claim between the client and the target's endpoints,
    from packets at every segment on the way.
    """
    lab, plane = deployment.lab, deployment.placement.plane
    service = lab.topology.service(target.partition(":")[0])
    (endpoint, *others) = service.endpoints
    if others:
        raise PeerError(f"proof needs a service with one endpoint, {service.name} has {len(service.endpoints)}")
    layout = lay_out(lab.topology, {name: port_name(name) for name in (client, endpoint)})
    token = f"canary-{secrets.token_hex(8)}"
    attempts = [
        {
            "name": f"{token}-{number}",
            "kind": "http",
            "address": service.address,
            "port": service.ports[0].port,
            "canary": f"{token}-{number}",
        }
        for number in range(REQUESTS)
    ]
    file = captures / f"{plane}.pcapng"
    capture = Capture(capture_points(layout.segments, lab.running.sandboxes), file)
    with capture:
        tries = run_probe(deployment, client, attempts)
        time.sleep(0.2)  # the last acknowledgements are still on their way over the delayed link
        evidence = capture.stop()
    lost = [name for name, (outcome,) in tries.items() if outcome["status"] != 200]
    if lost:
        first = tries[lost[0]][0]
        raise PeerError(
            f"{len(lost)} of {REQUESTS} canary requests failed, so nothing can be proven (first: {first['error']})"
        )
    embed_secrets(file, deployment.keylogs())
    heard = gather(pcapng.read(file), layout.segments, file=f"captures/{file.name}")
    claims = [c for c in deployment.placement.claims if (c.source, c.destination) == (client, endpoint)]
    canary = Canary(token=token.encode(), source=client, destination=endpoint, count=REQUESTS)
    findings = judge(plane=plane, claims=claims, canaries=[canary], evidence=heard, layout=layout)
    del evidence  # drops stand in the file, per point; the judge has them from there
    return [dataclasses.replace(finding, id=f"packets.{finding.id}") for finding in findings]


def run_probe(
    deployment: Deployment, sandbox: str, attempts: Sequence[dict], *, files: dict[str, bytes] | None = None
) -> dict[str, list[dict]]:
    """Attempts made by an application's user inside a sandbox; outcome per name.

    Files lie beside it, readable for it alone.
    """
    lab = deployment.lab
    folder = lab.folder / "probes" / secrets.token_hex(4)
    folder.mkdir(parents=True, mode=0o755)
    (folder / "attempts.json").write_text(json.dumps(list(attempts)))
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
    own(folder)
    spawn = Spawn(
        name=f"probe.{folder.name}",
        sandbox=sandbox,
        argv=program.argv(
            "testbed.verify.probe", "--attempts", str(folder / "attempts.json"), "--out", str(folder / "out.json")
        ),
        env=program.environment(folder),
        uid=APP_UID,
        folder=folder,
    )
    (process,) = lab.running.spawn([spawn])
    code = process.wait(60.0)
    if code != 0:
        raise PeerError(
            f"probe in {sandbox}: {'not done in 60 s' if code is None else f'ended with {code}'}:\n{log_tail(process)}"
        )
    return {row["name"]: row["tries"] for row in json.loads((folder / "out.json").read_text())}


def own(folder: Path) -> None:
    """To the applications' user, where user ids are ours to give."""
    import os

    if (owner := owner_for(APP_UID)) != os.geteuid():
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner, owner)


# boundaries


def try_boundaries(deployment: Deployment, *, client: str, packets: Sequence[Finding]) -> list[Finding]:
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
    result = Result.NO_EVIDENCE if unseen or not held else Result.BROKEN if wrong else Result.HOLDS
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
    result = (
        Result.NO_EVIDENCE
        if not clear or Result.NO_EVIDENCE in results
        else Result.BROKEN
        if Result.BROKEN in results
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
    if not {"vault", "intruder"} <= names:
        return []
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
            "port": 15008,
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
    return findings


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
