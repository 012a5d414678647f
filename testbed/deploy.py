"""A placement applied to a lab: keys, configuration, captures, programs, readiness.

The order is Istio's: proxies are ready before traffic is captured into them, so that no workload meets a closed port
while its proxy starts. Everything a proxy needs lies in its own folder (0700, its own user id); no application's mount
namespace shows it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from testbed import nftables, program
from testbed.errors import Bug, MachineError, PeerError
from testbed.lab import Lab, http_get, log_tail
from testbed.model.identity import Identity
from testbed.model.placement import CaptureKind, Placement, Proxy
from testbed.model.topology import Topology
from testbed.nodeagent import NodeAgent, PodNetns
from testbed.pki import (
    CERTIFICATE_FILE,
    KEY_FILE,
    LEAF_LIFETIME_S,
    ROOTS_FILE,
    CertificateAuthority,
    entrust,
    write_identity,
)
from testbed.runtime.enter import owner_for, single_uid
from testbed.runtime.keeper import handles
from testbed.seams import Process, Progress, Spawn

PROXY_UID = 1337
"""First of the proxies' user ids (Istio's own number); each further proxy gets one of its own."""
CA_UID = PROXY_UID - 1
CA = "ca"
"""Name of the process that renews certificates."""
IDENTITIES = "identities"
"""Folder of a proxy's certificates inside its own."""
RENEW = f"import sys; sys.path.insert(0, {str(program.CHECKOUT)!r}); from testbed.renewal import main; main()"
READY_PORT = 15021
ZTUNNEL_CAPABILITIES = ("sys_admin", "net_admin", "net_raw")
"""To enter workloads' namespaces, to set marks and transparent addresses:
what Istio's ztunnel holds (facts/hbone 2.14).
"""
ENTERING_CAPABILITIES = {"ztunnel": ZTUNNEL_CAPABILITIES}
MARKING_CAPABILITIES = ("net_raw", "net_admin")
"""To set marks; before Linux 5.17 the second is needed. Their namespace is the workload's, and no other."""
MARKING_ROLES = frozenset({"sidecar", "envoy-sidecar", "envoy-ztunnel"})
"""Those that can mark their connections (`mark` in their options), so that capture rules know them without a user id of
their own."""


@dataclass(slots=True)
class Deployment:
    """A lab with a plane on it."""

    lab: Lab
    placement: Placement
    authority: CertificateAuthority
    proxies: dict[str, Process] = field(default_factory=dict)
    agents: list[NodeAgent] = field(default_factory=list)
    renewer: Process | None = None
    """Renews the certificates for as long as the lab lives; None: they end with their first life."""
    renewal_job: int | None = None
    """Descriptor of the memory in which the renewer looks up whose certificates to write."""
    given: dict[str, list[Identity]] = field(default_factory=dict)
    """Identities by the name of the proxy that has their keys now."""
    uids: dict[str, int] = field(default_factory=dict)
    """User ids by the name of the proxy."""
    keylog: bool = False
    issued_at: float = 0.0
    leaf_lifetime_s: float = LEAF_LIFETIME_S
    spawns: dict[str, Spawn] = field(default_factory=dict)
    """As which each proxy was started, to be started again."""
    stack: ExitStack = field(default_factory=ExitStack)
    """Ends with the deployment."""

    def folder(self, proxy: str) -> Path:
        return self.lab.folder / "proxies" / proxy

    def keylogs(self) -> list[Path]:
        """The key logs that proxies have written, where the deployment asked for them."""
        return [path for proxy in self.placement.proxies if (path := self.folder(proxy.name) / "keys.log").exists()]

    def dead(self) -> list[str]:
        gone = [
            f"proxy {name} (exit {code})"
            for name, process in self.proxies.items()
            if (code := process.poll()) is not None
        ]
        return self.lab.dead() + gone

    def configure(self, proxy: Proxy, view: Mapping[str, object]) -> None:
        """Replace a running proxy's view; it reloads the file when it changes."""
        _write_owned(self.folder(proxy.name) / "view.json", json.dumps(view), owner=None)


@contextmanager
def deploy(
    lab: Lab,
    placement: Placement,
    *,
    keylog: bool = False,
    leaf_lifetime_s: float = LEAF_LIFETIME_S,
    renewed: bool = False,
    progress: Progress = lambda _line: None,
) -> Iterator[Deployment]:
    """The placement on the lab for as long as the `with`.

    `keylog` makes proxies write TLS secrets into their own folders. `renewed` starts a process that renews the
    certificates at half of their life; a trial is over long before that, and goes without.
    """
    with ExitStack() as stack:
        yield start(
            lab, placement, keylog=keylog, leaf_lifetime_s=leaf_lifetime_s, renewed=renewed, progress=progress,
            stack=stack,
        )  # fmt: skip


def start(
    lab: Lab,
    placement: Placement,
    *,
    keylog: bool = False,
    leaf_lifetime_s: float = LEAF_LIFETIME_S,
    renewed: bool = False,
    replacing: bool = False,
    progress: Progress = lambda _line: None,
    stack: ExitStack,
) -> Deployment:
    """As `deploy`, with what must be closed on `stack`. `replacing`: rules of another plane may be there yet."""
    refuse_shared_id(placement)
    now = time.time()
    deployment = Deployment(
        lab=lab,
        placement=placement,
        authority=CertificateAuthority(now=now, trust_domain=lab.topology.trust_domain),
        issued_at=now,
        leaf_lifetime_s=leaf_lifetime_s,
        keylog=keylog,
        stack=stack,
    )
    if placement.proxies:
        progress(f"plane {placement.plane}: {len(placement.proxies)} proxies")
    begin(deployment, placement.proxies)
    if renewed and any(proxy.identities for proxy in placement.proxies):
        start_renewing(deployment)
    for sandbox, batch in capture_batches(lab.topology, placement, deployment.uids):
        nftables.apply(lab.netns(sandbox), batch if replacing else batch.for_new_namespace())
    return deployment


def begin(deployment: Deployment, proxies: Sequence[Proxy]) -> None:
    """Starts these beside those that run, each with a user id that no other has had; returns once they are ready."""
    lab, first_uid = deployment.lab, max(deployment.uids.values(), default=PROXY_UID - 1) + 1
    deployment.uids |= {proxy.name: first_uid + number for number, proxy in enumerate(proxies)}
    spawns = [_prepare(deployment, proxy) for proxy in proxies]
    for proxy, spawn in zip(proxies, spawns, strict=True):
        if proxy.enters:
            agent = NodeAgent(
                spawn.folder / "ztunnel.sock", [pod(lab, name) for name in proxy.enters], owner=owner_for(spawn.uid)
            )
            agent.start()
            deployment.stack.callback(agent.close)
            deployment.agents.append(agent)
    for proxy, spawn, process in zip(proxies, spawns, lab.running.spawn(spawns), strict=True):
        deployment.proxies[proxy.name] = process
        deployment.spawns[proxy.name] = spawn
    for proxy in proxies:
        wait_ready(deployment, proxy)


def refuse_shared_id(placement: Placement) -> None:
    """Raises MachineError where proxies would capture their own traffic: those beside an application, known to the
    rules by a user id that is the application's, too, and not of a role that marks its connections.
    """
    if not single_uid():
        return
    beside = {capture.proxy for capture in placement.captures if capture.kind is CaptureKind.SIDECAR}
    if unknown := [p for p in placement.proxies if p.name in beside and p.role not in MARKING_ROLES]:
        raise MachineError(
            f"plane {placement.plane}: {unknown[0].name} is told from its application by its user id, and here all "
            f"programs of a lab share one; install uidmap (newuidmap) and have a range in /etc/subuid and /etc/subgid, "
            f"run as root, or leave this plane out (--plane names those that are taken)"
        )


def _marks(proxy: Proxy) -> bool:
    return proxy.role in MARKING_ROLES and single_uid()


def extra_sandboxes(placement: Placement) -> list[tuple[str, str, str]]:
    """(name, node, address) of what a runtime makes for proxies that have an address of their own: waypoints."""
    return [(proxy.sandbox, proxy.node, proxy.own_address) for proxy in placement.proxies if proxy.own_address]


def capture_batches(
    topology: Topology, placement: Placement, uids: Mapping[str, int]
) -> Iterator[tuple[str, nftables.Batch]]:
    """(sandbox, rules): of each workload its own, of a node those of all whom it catches, for a table is one."""
    at_nodes: dict[str, list[str]] = {}
    for capture in placement.captures:
        if capture.kind is CaptureKind.IN_POD:
            yield capture.workload, nftables.in_pod_capture()
            continue
        if capture.proxy not in uids:
            raise Bug(f"capture of {capture.workload} names proxy {capture.proxy!r}, which is not placed")
        if capture.kind is CaptureKind.SIDECAR:
            uid = None if single_uid() else uids[capture.proxy]
            yield capture.workload, nftables.sidecar_capture(uid)
            continue
        workload = topology.workload(capture.workload)
        if all((p.name, p.sandbox) != (capture.proxy, workload.node) for p in placement.proxies):
            raise Bug(f"capture of {capture.workload} names proxy {capture.proxy!r}, which is not in {workload.node}")
        at_nodes.setdefault(workload.node, []).append(workload.address)
    for node, sources in at_nodes.items():
        yield node, nftables.node_capture(sources, topology.node(node).address)


def pod(lab: Lab, name: str) -> PodNetns:
    """A workload as the node agent hands it to a ztunnel."""
    workload = lab.topology.workload(name)
    return PodNetns(
        uid=workload.name,
        name=workload.name,
        namespace=workload.namespace,
        service_account=workload.service_account,
        open_netns=lambda: lab.running.open_netns(name),
    )


def _prepare(deployment: Deployment, proxy: Proxy) -> Spawn:
    folder, uid = deployment.folder(proxy.name), deployment.uids[proxy.name]
    # A folder of an earlier deployment of the same proxy in this lab holds keys of a CA that is gone.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    if (owner := owner_for(uid)) != os.geteuid():
        os.chown(folder, owner, owner)
    for identity in proxy.identities:
        _issue(deployment, proxy, identity, now=deployment.issued_at)
    deployment.given[proxy.name] = list(proxy.identities)
    _write_owned(folder / "view.json", json.dumps(proxy.view), owner=owner)
    write_config(deployment, proxy, owner=owner)
    return Spawn(
        name=proxy.name,
        sandbox=proxy.sandbox,
        argv=program.argv(proxy.program, "--config", str(folder / "config.json")),
        env=program.environment(folder),
        uid=uid,
        folder=folder,
        capabilities=MARKING_CAPABILITIES if _marks(proxy) else ENTERING_CAPABILITIES.get(proxy.role, ()),
    )


def _issue(deployment: Deployment, proxy: Proxy, identity: Identity, *, now: float) -> Path:
    place = deployment.folder(proxy.name) / IDENTITIES / file_name(identity)
    leaf = deployment.authority.issue(identity, lifetime_s=deployment.leaf_lifetime_s, now=now)
    write_identity(place, leaf, deployment.authority.bundle, uid=owner_for(deployment.uids[proxy.name]))
    return place


def hand_out(deployment: Deployment, proxy: Proxy, identity: Identity) -> None:
    """A proxy that runs gets one identity more, which is renewed with the others."""
    place = _issue(deployment, proxy, identity, now=time.time())
    deployment.given[proxy.name].append(identity)
    if deployment.renewer is not None:
        entrust(place, owner_for(CA_UID), owner_for(deployment.uids[proxy.name]))
        tell_renewer(deployment)
    write_config(deployment, proxy)


def write_config(deployment: Deployment, proxy: Proxy, *, owner: int | None = None) -> None:
    """config.json as of now; `owner` is for one that has not been written yet."""
    places = {identity: f"{IDENTITIES}/{file_name(identity)}" for identity in deployment.given[proxy.name]}
    config = {
        "name": proxy.name,
        "role": proxy.role,
        "node": proxy.node,
        "view": "view.json",
        "identities": {
            str(identity): {
                "certificate": f"{place}/{CERTIFICATE_FILE}",
                "key": f"{place}/{KEY_FILE}",
                "roots": f"{place}/{ROOTS_FILE}",
            }
            for identity, place in places.items()
        },
        **({"uds": "ztunnel.sock"} if proxy.enters else {}),
        **({"keylog": "keys.log"} if deployment.keylog else {}),
        "options": {**proxy.options, "mark": nftables.MARK} if _marks(proxy) else proxy.options,
    }
    _write_owned(deployment.folder(proxy.name) / "config.json", json.dumps(config, indent=1), owner=owner)


def start_renewing(deployment: Deployment) -> None:
    """Once the proxies run: as they start, all in their folders becomes their own."""
    lab, shown = deployment.lab, []
    for proxy in deployment.placement.proxies:
        if not proxy.identities:
            continue
        home = deployment.folder(proxy.name) / IDENTITIES
        home.chmod(0o711)  # to be passed by who renews, which sees no folder above it
        shown.append(home)
        for identity in proxy.identities:
            entrust(home / file_name(identity), owner_for(CA_UID), owner_for(deployment.uids[proxy.name]))
    memory = deployment.renewal_job = os.memfd_create(CA)
    deployment.stack.callback(os.close, memory)
    tell_renewer(deployment)
    with ExitStack() as handed:
        pidfds = []
        for process in deployment.proxies.values():
            if handles(process.pid, signal.SIGHUP):  # it would end one that does not; that looks at its files itself
                pidfds.append(os.pidfd_open(process.pid))
                handed.callback(os.close, pidfds[-1])
        words = [str(memory), str(deployment.issued_at), str(deployment.leaf_lifetime_s), *map(str, pidfds)]
        folder = lab.folder / CA
        (deployment.renewer,) = lab.running.spawn(
            [
                Spawn(
                    name=CA,
                    sandbox=lab.topology.nodes[0].name,
                    argv=[sys.executable, "-I", "-S", "-B", "-c", RENEW, *words],
                    env=program.environment(folder),
                    uid=CA_UID,
                    folder=folder,
                    capabilities=("kill",),
                    fds=[memory, *pidfds],
                    new_pid_namespace=False,  # a signal goes down into another PID namespace, never across
                    shared_folders=shown,
                )
            ]
        )


def tell_renewer(deployment: Deployment) -> None:
    """Whose certificates to write from the next renewal on. One that reads this half written tries again."""
    if deployment.renewal_job is None:
        return
    job = {
        "path": sys.path,
        "authority": deployment.authority.handed_over().decode(),
        "lifetime_s": deployment.leaf_lifetime_s,
        "identities": [
            [i.trust_domain, i.namespace, i.service_account, str(deployment.folder(name) / IDENTITIES / file_name(i))]
            for name, identities in deployment.given.items()
            for i in identities
        ],
    }
    text = json.dumps(job).encode()
    os.pwrite(deployment.renewal_job, text.ljust(os.fstat(deployment.renewal_job).st_size), 0)


def file_name(identity: Identity) -> str:
    return f"{identity.trust_domain}.{identity.namespace}.{identity.service_account}"


def _write_owned(path: Path, text: str, *, owner: int | None) -> None:
    """Whole or not at all, 0600. The file of a running proxy keeps its owner (`owner=None`)."""
    if owner is None:
        owner = path.stat().st_uid
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
        if owner != os.geteuid():
            os.fchown(file.fileno(), owner, owner)
    temporary.replace(path)


def wait_ready(deployment: Deployment, proxy: Proxy, limit_s: float = 20.0) -> None:
    process = deployment.proxies[proxy.name]
    deadline = time.monotonic() + limit_s
    while True:
        status, _ = http_get(deployment.lab, proxy.sandbox, "127.0.0.1", READY_PORT, "/healthz/ready")
        if status == 200:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            state = (
                f"ended with {process.poll()}"
                if process.poll() is not None
                else f"not ready within {limit_s:g} s (last status {status})"
            )
            raise PeerError(f"{process.name}: {state}; its log ends:\n{log_tail(process)}")
        time.sleep(0.01)
