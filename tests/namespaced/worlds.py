"""A lab with ztunnels for tests of three lines: topology from YAML text, plane on it, views edited while it runs.

Calls are made by sockets born inside a workload's namespace, so capture sees them as it sees an application's. Servers
that must misbehave (a fake waypoint, a banner) are threads of the test on sockets born inside the workload likewise.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

from testbed import deploy, lab, planespec, topofile
from testbed.links.probe import choose
from testbed.model.identity import Identity
from testbed.model.placement import Capture, CaptureKind, Placement, Proxy
from testbed.model.topology import Topology
from testbed.pki import CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE, CertificateAuthority, write_identity
from testbed.registry import load
from testbed.runtime.enter import in_netns
from testbed.seams import Process, Runtime
from testbed.sweep import extra_sandboxes

LIMIT_S = 8.0
WAIT_S = 30.0
MARK = 0x539
_numbers = itertools.count(1)
_runtimes: list[Runtime] = [load("runtime", "netns")()]
"""The last one makes the worlds."""

# On each node: captured and uncaptured workloads, with and without an application. `tester` and `waypoint` have no
# application: tests listen there themselves. `named` is known by its host name only. `outsider` is where the ztunnels
# look for a name server.
TWO_NODES = """
name: world
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  near: {node: node-a, serviceAccount: near, app: {kind: tcp-echo, ports: [9000]}}
  far: {node: node-b, serviceAccount: far, app: {kind: tcp-echo, ports: [9000]}}
  plain: {node: node-b, serviceAccount: plain, plane: none, app: {kind: tcp-echo, ports: [9000]}}
  web: {node: node-b, serviceAccount: web, app: {kind: http-echo, ports: [8080]}}
  tester: {node: node-b, serviceAccount: tester}
  waypoint: {node: node-b, serviceAccount: waypoint, plane: none}
  named:
    {node: node-b, serviceAccount: named, hostname: named.example.com, app: {kind: tcp-echo, ports: [9000]}}
services:
  named: {ports: [{port: 80, targetPort: 9000, protocol: tcp}], workloads: [named]}
  far: {ports: [{port: 80, targetPort: 9000, protocol: tcp}], workloads: [far]}
  mixed: {ports: [{port: 80, targetPort: 9000, protocol: tcp}], workloads: [near, far, plain]}
links:
  - {between: [node-a, node-b]}
"""
ONE_NODE = """
name: small
nodes: {node-a: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  server: {node: node-a, serviceAccount: server, app: {kind: tcp-echo, ports: [9000]}}
  free: {node: node-a, serviceAccount: free, plane: none, app: {kind: tcp-echo, ports: [9000]}}
"""


def wait_for(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, f"not in time: {what}"
        time.sleep(0.02)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the peer ends; a reset ends it, too."""
    parts = []
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


@dataclass(slots=True)
class World:
    """A running lab with a plane on it."""

    lab: lab.Lab
    deployment: deploy.Deployment
    folder: Path
    _issued: dict[tuple[str, str], Path] = field(default_factory=dict)
    _generation: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def topology(self) -> Topology:
        return self.lab.topology

    def ip(self, name: str) -> str:
        """Of a workload, or of a node's own end."""
        if any(n.name == name for n in self.topology.nodes):
            return self.topology.node(name).address
        return self.topology.workload(name).address

    def vip(self, service: str) -> str:
        return self.topology.service(service).address

    def identity(self, workload: str) -> Identity:
        return self.topology.workload(workload).identity(self.topology.trust_domain)

    def proxy(self, node: str) -> Process:
        return self.deployment.proxies[f"ztunnel.{node}"]

    # -- calls

    def connect(self, source: str, address: str, port: int, timeout_s: float = LIMIT_S) -> socket.socket:
        """A connected socket of `source`'s; raises OSError as connect() does."""
        return in_netns(
            self.lab.netns(source), lambda: socket.create_connection((address, port), timeout=timeout_s)
        )

    def echo(self, source: str, address: str, port: int, message: bytes = b"hello") -> bytes:
        """What comes back until the end; the client has shut its side by then. Empty when a proxy cut it."""
        with self.connect(source, address, port) as sock:
            try:
                sock.sendall(message)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                return b""
            return read_all(sock)

    def get(self, source: str, address: str, port: int) -> dict[str, str]:
        """Fields of the answer's head, lower-case, from http-echo."""
        head = self.echo(source, address, port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def credentials(self, identity: Identity, authority: CertificateAuthority | None = None) -> Path:
        """A folder with key, certificate and roots, of the lab's own CA unless another is given."""
        key = (str(identity), str(id(authority)))
        if key not in self._issued:
            signer = authority or self.deployment.authority
            place = self.folder / f"issued-{len(self._issued)}"
            write_identity(place, signer.issue(identity, now=time.time()), self.deployment.authority.bundle, uid=0)
            self._issued[key] = place
        return self._issued[key]

    def secured(self, source: str, address: str, credentials: Path, port: int = 15008) -> ssl.SSLSocket:
        """TLS from inside `source`, by the standard library; the peer's chain is checked, its identity is not."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_cert_chain(credentials / CERTIFICATE_FILE, credentials / KEY_FILE)
        context.load_verify_locations(credentials / ROOTS_FILE)
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(self.connect(source, address, port))

    def connect_status(self, source: str, address: str, authority: str, identity: Identity) -> int:
        """Status of a bare CONNECT, asked by h2 and not by our own client; 0 when the connection ended without."""
        with self.hbone(source, address, authority, identity) as (status, _):
            return status

    @contextlib.contextmanager
    def hbone(
        self, source: str, address: str, authority: str, identity: Identity
    ) -> Iterator[tuple[int, Callable[[bytes], bytes]]]:
        """Status, and `talk(bytes)`: sends and returns as many bytes, fewer if the tunnel ended."""
        made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_outbound_headers=False))
        with self.secured(source, address, self.credentials(identity)) as sock:
            made.initiate_connection()
            made.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
            sock.sendall(made.data_to_send())
            events: list[h2.events.Event] = []

            def more() -> bool:
                try:
                    data = sock.recv(65536)
                except (ConnectionResetError, ssl.SSLError):
                    return False
                events.extend(made.receive_data(data) if data else ())
                sock.sendall(made.data_to_send())
                return bool(data)

            def talk(message: bytes) -> bytes:
                if message:
                    made.send_data(1, message)
                    sock.sendall(made.data_to_send())
                got = b""
                while len(got) < max(len(message), 1):
                    for event in events:
                        if isinstance(event, h2.events.DataReceived):
                            got += event.data
                        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                            return got
                    events.clear()
                    if len(got) < max(len(message), 1) and not more():
                        return got
                return got

            status = 0
            while not status:
                for event in events:
                    if isinstance(event, h2.events.ResponseReceived):
                        status = int(dict(event.headers)[b":status"])
                if not status and not more():
                    break
            events[:] = [e for e in events if not isinstance(e, h2.events.ResponseReceived)]
            yield status, talk

    # -- servers of the test's own

    @contextlib.contextmanager
    def serve(self, sandbox: str, port: int, handle: Callable[[socket.socket], None]) -> Iterator[None]:
        """`handle(connection)` in a thread for each connection that comes to `port` inside the sandbox."""
        listener = in_netns(self.lab.netns(sandbox), lambda: socket.create_server(("0.0.0.0", port)))
        listener.settimeout(0.1)
        ending = threading.Event()
        taken: list[socket.socket] = []

        def one(sock: socket.socket, held: socket.socket) -> None:
            with sock, contextlib.suppress(OSError, ssl.SSLError):
                sock.settimeout(LIMIT_S)
                handle(sock)
            _shut(held)

        def accept() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    sock, _ = listener.accept()
                    taken.append(sock.dup())
                    threading.Thread(target=one, args=(sock, taken[-1]), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
            listener.close()
            for sock in taken:  # else a ztunnel's pool would keep this server for the next case
                _shut(sock)
                sock.close()

    @contextlib.contextmanager
    def fake_waypoint(self, sandbox: str, identity: Identity, *, resets: bool = False) -> Iterator[list[str]]:
        """ztunnel's HboneTestServer: says `waypoint` on every tunnel, then echoes. Yields the authorities asked for.

        With `resets` the 200 and RST_STREAM come in one write instead.
        """
        asked: list[str] = []
        files = self.credentials(identity)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files / CERTIFICATE_FILE, files / KEY_FILE)
        context.set_alpn_protocols(["h2"])

        def handle(raw: socket.socket) -> None:
            with context.wrap_socket(raw, server_side=True) as sock:
                made = h2.connection.H2Connection(
                    h2.config.H2Configuration(client_side=False, validate_inbound_headers=False)
                )
                made.initiate_connection()
                sock.sendall(made.data_to_send())
                while data := sock.recv(65536):
                    for event in made.receive_data(data):
                        _waypoint_step(made, event, asked, resets)
                    sock.sendall(made.data_to_send())

        with self.serve(sandbox, 15008, handle):
            yield asked

    # -- views

    @contextlib.contextmanager
    def edited(self, change: Callable[[dict], None], *only: str) -> Iterator[None]:
        """The ztunnels (or `only` these) have loaded the view as `change` left it; the old one is back afterwards."""
        self._load(change, only)
        try:
            yield
        finally:
            self._load(lambda _view: None, only)

    def _load(self, change: Callable[[dict], None], only: Sequence[str]) -> None:
        # A policy that does nothing, with a name that is new each time, shows in /config_dump when the view is in.
        marker = f"generation-{next(self._generation)}"
        silent = {"name": marker, "namespace": "none", "scope": "WorkloadSelector", "action": "Deny", "dryRun": False}
        told = [p for p in self.deployment.placement.proxies if not only or p.name in only]
        for proxy in told:
            view = copy.deepcopy(proxy.view)
            change(view)
            view["policies"].append({**silent, "rules": []})
            self.deployment.configure(proxy, view)
        for proxy in told:
            wait_for(lambda proxy=proxy: marker in self.dump(proxy.sandbox), f"{proxy.name} loads its view")

    def dump(self, sandbox: str) -> str:
        return lab.http_get(self.lab, sandbox, "127.0.0.1", 15000, "/config_dump")[1].decode()

    def metrics(self, sandbox: str) -> str:
        return lab.http_get(self.lab, sandbox, "127.0.0.1", 15020, "/metrics")[1].decode()

    def log(self, proxy: str) -> str:
        return Path(self.deployment.proxies[proxy].log).read_text()

    @contextlib.contextmanager
    def logs(self, proxy: str, *wanted: str) -> Iterator[list[str]]:
        """Some line that the proxy writes because of the body holds all of `wanted`; the list has such lines then."""
        before = len(self.log(proxy))
        found: list[str] = []
        yield found

        def look() -> bool:
            found[:] = [x for x in self.log(proxy)[before:].splitlines() if all(text in x for text in wanted)]
            return bool(found)

        give_up_s = time.monotonic() + 3.0
        while not look():
            assert time.monotonic() < give_up_s, f"{proxy} does not log {wanted} but:\n{self.log(proxy)[before:]}"
            time.sleep(0.02)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _waypoint_step(made: h2.connection.H2Connection, event: h2.events.Event, asked: list[str], resets: bool) -> None:
    if isinstance(event, h2.events.RequestReceived):
        asked.append(dict(event.headers)[b":authority"].decode())
        made.send_headers(event.stream_id, [(":status", "200")])
        if resets:
            made.reset_stream(event.stream_id)
            return
        made.send_data(event.stream_id, b"waypoint\n")
    elif isinstance(event, h2.events.DataReceived):
        made.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        made.send_data(event.stream_id, event.data)
    elif isinstance(event, h2.events.StreamEnded):
        made.end_stream(event.stream_id)


def of(items: Sequence[dict], name: str) -> dict:
    """The workload or service of that name in a view."""
    return next(item for item in items if item["name"] == name)


def policy(name: str, action: str, principals: Sequence[str], *, negated: bool = False) -> dict:
    """A namespace-wide policy for `default`, in LOCAL shape."""
    kind = "notPrincipals" if negated else "principals"
    match = {kind: [{"Exact": p.removeprefix("spiffe://")} for p in principals]}
    return {
        "name": name, "namespace": "default", "scope": "Namespace", "action": action, "dryRun": False,
        "rules": [[[match]]] if principals else [],
    }  # fmt: skip


def with_more(topology: Topology, placement: Placement) -> Placement:
    """Its ztunnels ask names at `outsider`, where nobody answers unless a case does, and watch for a list of revoked
    certificates, which is not there unless a case brings one.
    """
    told = {"name_server": [topology.workload("outsider").address, 53], "crl": "crl.pem"}
    proxies = tuple(dataclasses.replace(p, options={**p.options, **told}) for p in placement.proxies)
    return dataclasses.replace(placement, proxies=proxies)


def dedicated(topology: Topology, shared: Placement) -> Placement:
    """The same mesh with one ztunnel in each captured workload's own sandbox, that serves it alone."""
    view = shared.proxies[0].view
    workloads = [w for p in shared.proxies for w in map(topology.workload, p.serves)]
    proxies = tuple(
        Proxy(
            name=f"ztunnel.{w.name}",
            role="ztunnel",
            node=w.node,
            sandbox=w.name,
            program="planes.ztunnel",
            serves=(w.name,),
            identities=(w.identity(topology.trust_domain),),
            view=view,
            options={"workload": f"{w.namespace}/{w.name}", "mark": MARK},
        )
        for w in workloads
    )
    captures = tuple(Capture(workload=w.name, kind=CaptureKind.IN_POD) for w in workloads)
    return Placement(plane="ambient-l4 dedicated", proxies=proxies, captures=captures)


@contextlib.contextmanager
def on(runtime: str) -> Iterator[None]:
    """Worlds made in the body are of that runtime, and of one instance of it: it looks for its image once."""
    _runtimes.append(load("runtime", runtime)())
    try:
        yield
    finally:
        _runtimes.pop()


def runtime_name() -> str:
    """Of the worlds that are made now."""
    return _runtimes[-1].name


@contextlib.contextmanager
def world(
    text: str = TWO_NODES,
    *,
    plane: str = "ambient-l4",
    place: Callable[[Topology, Placement], Placement] = lambda _topology, placement: placement,
    options: dict | None = None,
    made: type[World] = World,
    **deployed: Any,
) -> Iterator[World]:
    """`place` may change what the plane places; `options` go to every proxy, `deployed` to the deployer."""
    topology = topofile.parse(text, "world.yml")
    placement = place(topology, planespec.place(plane, topology))
    proxies = tuple(dataclasses.replace(p, options={**p.options, **(options or {})}) for p in placement.proxies)
    placement = dataclasses.replace(placement, proxies=proxies)
    # Not pytest's own folder: its path is long, and a Unix socket's may hold 108 bytes only.
    folder = Path(tempfile.mkdtemp(prefix="world-"))
    old = os.environ.get("MESHBED_STATE")
    os.environ["MESHBED_STATE"] = str(folder / "state")
    try:
        name = f"t{os.getpid()}-{next(_numbers)}"
        with (
            lab.up(
                topology, runtime=_runtimes[-1], links=choose("auto"), name=name, logs=folder / "logs",
                extra=extra_sandboxes(placement),
            ) as running,
            deploy.deploy(running, placement, **deployed) as deployment,
        ):
            yield made(lab=running, deployment=deployment, folder=folder)
            assert not _complaints(deployment)
    finally:
        os.environ.pop("MESHBED_STATE") if old is None else os.environ.update(MESHBED_STATE=old)
        shutil.rmtree(folder, ignore_errors=True)


def _complaints(deployment: deploy.Deployment) -> list[str]:
    """What no ztunnel should ever write: its own failures."""
    return [
        f"{name}: {line}"
        for name, process in deployment.proxies.items()
        for line in Path(process.log).read_text().splitlines()
        if "Traceback" in line or "Task exception" in line or "BUG" in line
    ]


