"""Attempts made for real from inside every component of a plane, and components ended one by one: findings.

A finding holds where what happened is what `model` expects, also where that is that an attempt succeeds: what it is
worth then shows in the score. One lab takes all attempts; each component that is ended has a lab of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from testbed import deploy, lab, netlink, program
from testbed.attack import attempts as made
from testbed.attack import matrix, onpath
from testbed.attack.insider import Row
from testbed.attack.model import APP, NEIGHBOUR, UNPROVEN, Component, Expected, Pair, World, components, expected
from testbed.deploy import Deployment, extra_sandboxes
from testbed.errors import PeerError
from testbed.lab import http_get
from testbed.model.experiment import DOCUMENTED, Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.pki import CertificateAuthority
from testbed.runtime.enter import in_netns
from testbed.seams import LinkMaker, Process, Progress, Runtime, Spawn

NEIGHBOUR_UID = 3000
NEIGHBOUR_RIGHTS = ("net_admin", "net_raw")
INSIDER_LIMIT_S = 90.0
MORE_TRIES = 2
CALL_LIMIT_S = 5.0
SETTLED_S = 15.0
"""Within which every allowed call must pass before something is ended."""


@dataclass(slots=True)
class Attack:
    """One deployment under attack."""

    deployment: Deployment
    world: World
    components: list[Component]
    processes: dict[str, Process] = field(default_factory=dict)
    """Into which of them the attacker's code gets, by component."""

    def netns(self, sandbox: str) -> str:
        return self.deployment.lab.netns(sandbox)

    def place(self, component: Component) -> made.Place:
        running, folder = self.deployment.lab.folder, {}
        for proxy in self.world.proxies:
            folder[proxy.name] = str(self.deployment.folder(proxy.name))
        near = [p for p in self.world.proxies if p.node == component.node]
        own = folder.get(component.name, str(running / "apps" / component.sandbox))
        if component.role == NEIGHBOUR:
            own = str(running / "neighbour")
        return made.Place(state=str(running.parent), own=own, agents=tuple(made.agents_of(near, folder)))

    def inside(self, component: Component, tried: Sequence[made.Attempt]) -> dict[str, Row]:
        """Rows by attempt. Raises PeerError where the attacker could not begin."""
        job = {
            "attempts": [{"name": a.name, **a.job} for a in tried],
            "files": leaves(self.deployment, self.world),
        }
        started = subprocess.run(
            [sys.executable, "-m", "testbed.attack.enter", str(self.processes[component.name].pid)],
            input=json.dumps(job), capture_output=True, text=True, timeout=INSIDER_LIMIT_S,
            env=program.environment(Path("/")), check=False,
        )  # fmt: skip
        if started.returncode != 0:
            raise PeerError(f"attacker in {component.name}: ended with {started.returncode}:\n{started.stderr[-2000:]}")
        return {name: Row(**row) for name, row in json.loads(started.stdout).items()}

    def insisting(self, component: Component, tried: Sequence[made.Attempt]) -> dict[str, Row]:
        """The same, but what should succeed and did not is tried again: on a busy machine an answer may be late."""
        rows = self.inside(component, tried)
        for _ in range(MORE_TRIES):
            left = [a for a in tried if not rows[a.name].got and expected(self.world, component, a.name).got]
            if left:
                rows |= self.inside(component, left)
        return rows


def leaves(deployment: Deployment, world: World) -> dict[str, str]:
    """Certificates that nobody should believe, in the name of each who may call somebody."""
    domain = world.topology.trust_domain
    signers = {
        "forged": CertificateAuthority(now=time.time(), trust_domain=domain),
        "stranger": CertificateAuthority(now=time.time(), trust_domain="elsewhere.example"),
    }
    files = {}
    for source in dict.fromkeys(source for source, _ in world.flows[:1]):
        identity = world.account(source)
        assert identity is not None
        for proxy in world.proxies:
            if proxy.role == "node-l7" and source in proxy.serves:
                (identity,) = proxy.identities
        for kind, signer in signers.items():
            named = Identity(signer.trust_domain, identity.namespace, identity.service_account)
            leaf = signer.issue(named, now=time.time(), lifetime_s=600.0)
            files[f"{kind}.{source}.cert.pem"] = leaf.cert_pem.decode()
            files[f"{kind}.{source}.key.pem"] = leaf.key_pem.decode()
    return files


def try_all(
    placement: Placement, topology: Topology, *, runtime: Runtime, links: LinkMaker, name: str, logs: Path, app: str,
    neighbour: str, say: Progress = lambda _line: None,
) -> list[Finding]:  # fmt: skip
    """Every attempt from every component, then every component ended; `neighbour` is a node that lies between."""

    @contextlib.contextmanager
    def attacked(number: int) -> Iterator[Attack]:
        with (
            lab.up(
                topology, runtime=runtime, links=links, name=f"{name}-{number}", logs=logs,
                extra=extra_sandboxes(placement),
            ) as running,
            deploy.deploy(running, placement, renewed=True) as deployment,
        ):  # fmt: skip
            world = World(topology=topology, proxies=placement.proxies)
            attack = Attack(deployment, world, components(world, app=app, neighbour=neighbour))
            attack.processes = _entered(attack)
            yield attack

    findings: list[Finding] = []
    with attacked(0) as attack:
        told = _Told(attack)
        findings += _on_path(attack, told)
        findings += _from_inside(attack, told)
        findings += _spoofed(attack, told)
        findings += _quit(attack, told)
        say(f"{placement.plane}: {len(findings)} attempts from {len(attack.components)} components")
        ended = [c for c in attack.components if c.role != NEIGHBOUR]
    for number, component in enumerate(ended, start=1):
        with attacked(number) as attack:
            findings += _lost(attack, _Told(attack), component)
    return findings


def _entered(attack: Attack) -> dict[str, Process]:
    running = attack.deployment.lab
    found: dict[str, Process] = {}
    for component in attack.components:
        if component.role == APP:
            found[component.name] = running.apps[component.sandbox]
        elif component.role == NEIGHBOUR:
            folder = running.folder / "neighbour"
            folder.mkdir(mode=0o700)
            spawn = Spawn(
                name=component.name, sandbox=component.sandbox, argv=["/bin/sleep", "600"], uid=NEIGHBOUR_UID,
                env=program.environment(folder), folder=folder, capabilities=NEIGHBOUR_RIGHTS,
            )  # fmt: skip
            (found[component.name],) = running.running.spawn([spawn])
        else:
            found[component.name] = attack.deployment.proxies[component.name]
    return found


class _Told:
    """What happened as findings, each beside what was expected."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.plane = attack.deployment.placement.plane
        topology = attack.world.topology
        self.alive = {
            w.name: http_get(attack.deployment.lab, w.name, "127.0.0.1", w.app.ports[0], "/")[0] == 200
            for w in topology.workloads
            if w.app.ports
        }

    def finding(self, component: Component, name: str, what: str, row: Row, *, control: bool = True) -> Finding:
        must: Expected = expected(self.attack.world, component, name)
        ending = "which succeeds" if must.got else "which must fail"
        if must.got and must.because:
            ending += f"{DOCUMENTED}{must.because}"
        tried = not row.seen.startswith("not tried")
        result = Result.HOLDS if row.got == must.got else Result.BROKEN
        return Finding(
            id=f"blast.{component.name}/{name}",
            plane=self.plane,
            segment=component.role,
            statement=f"an attacker in {component.name} {what}, {ending}",
            result=result if tried and (control or row.got) else Result.NO_EVIDENCE,
            evidence=f"probe: {row.seen}" + (f"; found: {', '.join(row.found)}" if row.found else ""),
            value=_value(self.attack.world, name) if row.got else matrix.REFUSED,
        )

    def rows(self, component: Component, attempt: made.Attempt, row: Row) -> Iterator[Finding]:
        """One, or one for each identity that a search for keys has found or should have."""
        if attempt.name != "keys":
            end = attempt.name.replace(">", "/").split("/")[-1]
            yield self.finding(component, attempt.name, attempt.what, row, control=self.alive.get(end, True))
            return
        wanted = {str(identity) for identity in component.identities}
        for identity in sorted(wanted | set(row.found)):
            known = [i for p in self.attack.world.proxies for i in p.identities if str(i) == identity]
            called = self.attack.world.called(known[0]) if known else identity
            one = Row(got=identity in row.found, seen=row.seen, found=[identity] if identity in row.found else [])
            yield self.finding(component, f"key/{called}", f"reads the private key of {identity}", one)
        if not wanted | set(row.found):
            yield self.finding(component, "keys-others", "reads a private key in its own folder", row)


def _value(world: World, name: str) -> str:
    """Of what was got: whether policy says otherwise."""
    parts = name.split("/")
    denied = parts[0] == "reach" and (parts[2] == UNPROVEN or not world.allowed(parts[2], parts[3]))
    return matrix.PAST if denied else matrix.GOT


def _from_inside(attack: Attack, told: _Told) -> list[Finding]:
    """All components at once; afterwards all listen at once, while every allowed call is made again and again."""
    tried = {c.name: made.attempts(attack.world, c, attack.place(c)) for c in attack.components}
    target = next(a.job["address"] for a in tried[f"app.{attack.components[0].sandbox}"] if a.job["what"] == "udp")
    answering = next(w.name for w in attack.world.topology.workloads if w.address == target)
    with ThreadPoolExecutor() as pool, _datagrams(attack.netns(answering)):
        outcomes = list(pool.map(lambda c: attack.insisting(c, tried[c.name]), attack.components))
    findings = []
    for component, rows in zip(attack.components, outcomes, strict=True):
        for attempt in tried[component.name]:
            findings += told.rows(component, attempt, rows[attempt.name])
    return findings + _heard(attack, told)


def _heard(attack: Attack, told: _Told) -> list[Finding]:
    tokens = {f"{a}>{b}": f"canary-{secrets.token_hex(8)}" for a, b in attack.world.flows}
    calls: dict[str, int] = dict.fromkeys(tokens, 0)
    ending = threading.Event()

    def talk(flow: Pair) -> None:
        name = ">".join(flow)
        while not ending.is_set():
            calls[name] += _passes(attack, flow, headers={"x-canary": tokens[name]})
            ending.wait(0.02)

    def listen(component: Component) -> Row:
        hoped = sum(expected(attack.world, component, f"read/{flow}").got for flow in tokens)
        attempt = made.listening(attack.world, component, attack.place(component), tokens, hoped)
        row = attack.inside(component, [attempt])[attempt.name]
        for _ in range(MORE_TRIES):
            if len(row.found) >= hoped:
                break
            more = attack.inside(component, [attempt])[attempt.name]
            row.found.extend(one for one in more.found if one not in row.found)
        return row

    talkers = [threading.Thread(target=talk, args=(flow,)) for flow in attack.world.flows]
    for thread in talkers:
        thread.start()
    try:
        with ThreadPoolExecutor() as pool:
            heard = list(pool.map(listen, attack.components))
    finally:
        ending.set()
        for thread in talkers:
            thread.join()
    findings = []
    for component, row in zip(attack.components, heard, strict=True):
        for flow, token in tokens.items():
            one = Row(got=token in row.found, seen=f"{row.seen}; {calls[flow]} calls passed")
            what = f"reads what {flow.replace('>', ' and ')} say to each other"
            findings.append(told.finding(component, f"read/{flow}", what, one, control=calls[flow] > 0))
    return findings


def _on_path(attack: Attack, told: _Told) -> list[Finding]:
    """First of all, for connections that the proxies keep would pass him by."""
    component = next(c for c in attack.components if c.role == NEIGHBOUR)
    world, netns = attack.world, attack.netns(component.sandbox)
    flow = next(
        (a, b) for a, b in world.flows if component.node not in (world.topology.workload(n).node for n in (a, b))
        and world.topology.workload(a).node != world.topology.workload(b).node
    )  # fmt: skip
    name = ">".join(flow)
    with onpath.between(netns) as wire:
        passed = _settle(attack, [flow]) == [] and bool(wire.passed)
        where, sent = next(((w, bytes(kept)) for w, kept in wire.passed if kept), (("", 0), b""))
        back = onpath.again(netns, where, sent) if sent else b""
        replayed = Row(got=b"x-workload: " in back, seen=f"{len(sent)} bytes sent again, {len(back)} came back")
        genuine, false = flow[1].encode(), b"4" * len(flow[1])
        wire.alter = (b"x-workload: " + genuine, b"x-workload: " + false)
        believed = next((who for _ in range(3) if not (who := _answerer(attack, flow)).startswith("nobody")), "nobody")
        tampered = Row(got=believed == false.decode(), seen=f"{wire.altered} writes altered; answer: {believed}")
    _settle(attack, [flow])
    rows = (
        ("tamper", "alters an answer on its way", tampered, wire.altered > 0),
        ("replay", "sends again what it has recorded, and is answered", replayed, bool(sent)),
    )
    return [
        told.finding(component, f"{kind}/{name}", what, row, control=passed and control)
        for kind, what, row, control in rows
    ]


def _spoofed(attack: Attack, told: _Told) -> list[Finding]:
    """The neighbour takes a workload's address as one of his own: answers to it pass him, so they end with him."""
    component = next(c for c in attack.components if c.role == NEIGHBOUR)
    source, target = next(
        (attack.world.topology.workload(a), attack.world.topology.workload(b)) for a, b in attack.world.flows
        if attack.world.topology.workload(a).node != attack.world.topology.workload(b).node
    )  # fmt: skip

    def take(address: str) -> None:
        with netlink.open_socket() as sock:
            netlink.transact(sock, [netlink.address(socket.if_nametoindex("lo"), address, 32)], where="neighbour")

    in_netns(attack.netns(component.sandbox), lambda: take(source.address))
    tried = made.Attempt(
        name=f"spoof/{source.name}>{target.name}", what=f"calls {target.name} from the address of {source.name}",
        job={"what": "spoof", "source": source.address, "address": target.address, "port": target.app.ports[0],
             "transparent": True},
    )  # fmt: skip
    rows = attack.insisting(component, [tried])
    return list(told.rows(component, tried, rows[tried.name]))


def _quit(attack: Attack, told: _Told) -> list[Finding]:
    """The application ends its proxy, where it can; what it sends then must still not leave by itself."""
    component = attack.components[0]
    tried = made.quitting()
    row = attack.inside(component, [tried])[tried.name]
    findings = [told.finding(component, tried.name, tried.what, row)]
    beside = [p.name for p in attack.world.proxies if p.sandbox == component.sandbox]
    if row.got and beside:
        code = attack.deployment.proxies[beside[0]].wait(SETTLED_S)
        after = [a for a in made.attempts(attack.world, component, attack.place(component)) if "/plain/" in a.name]
        rows = attack.inside(component, after).values()
        left = Row(
            got=any(r.got for r in rows), seen=f"the proxy ended with {code}; then {len(rows)} calls, all closed"
        )  # fmt: skip
        findings.append(told.finding(component, "leave-after-quit", "calls others once its proxy has ended", left))
    return findings


def _lost(attack: Attack, told: _Told, component: Component) -> list[Finding]:
    """Which allowed calls end with the component."""
    before = _settle(attack, attack.world.flows)
    process = attack.processes[component.name]
    process.signal(signal.SIGKILL)
    process.wait(SETTLED_S)
    with ThreadPoolExecutor() as pool:
        after = list(pool.map(lambda flow: any(_passes(attack, flow) for _ in range(3)), attack.world.flows))
    findings = []
    for flow, passes in zip(attack.world.flows, after, strict=True):
        row = Row(got=not passes, seen=f"after SIGKILL {'it passes' if passes else 'three calls failed'}")
        what = f"dies, and with it the calls from {flow[0]} to {flow[1]}"
        findings.append(told.finding(component, f"lost/{'>'.join(flow)}", what, row, control=flow not in before))
    return findings


# -- calls of the harness


def _settle(attack: Attack, flows: Sequence[Pair]) -> list[Pair]:
    """Those that did not pass in good time."""
    give_up_s = time.monotonic() + SETTLED_S
    left = list(flows)
    while left and time.monotonic() < give_up_s:
        left = [flow for flow in left if not _passes(attack, flow)]
    return left


def _passes(attack: Attack, flow: Pair, headers: Mapping[str, str] = {}) -> bool:
    return _answerer(attack, flow, headers) == flow[1]


def _answerer(attack: Attack, flow: Pair, headers: Mapping[str, str] = {}) -> str:
    """Who answers a call of the workload's, from its own network namespace; or what happened instead."""
    source, destination = flow
    service = next(s for s in attack.world.topology.services if destination in s.endpoints)
    address = service.address, service.ports[0].port
    connect: Callable[[], socket.socket] = lambda: socket.create_connection(address, timeout=CALL_LIMIT_S)  # noqa: E731
    try:
        with in_netns(attack.netns(source), connect) as sock:
            connection = http.client.HTTPConnection(*address)
            connection.sock = sock
            connection.request("GET", "/", headers={"host": service.hostname, "connection": "close", **headers})
            answer = connection.getresponse()
            answer.read()
            return answer.getheader("x-workload") or f"status {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"nobody ({type(error).__name__})"


@contextlib.contextmanager
def _datagrams(netns: str) -> Iterator[None]:
    """A responder to datagrams inside a workload."""
    sock = in_netns(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("0.0.0.0", made.UDP_PORT))
    sock.settimeout(0.1)
    ending = threading.Event()

    def answer() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                data, who = sock.recvfrom(2048)
                sock.sendto(data, who)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        sock.close()
