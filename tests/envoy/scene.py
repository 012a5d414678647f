"""A small mesh on loopback addresses: placements of the catalogue's planes run as they are, ours or Envoy's.

Nothing is redirected here. Our proxies are told by an option where every captured connection was going; Envoys read it
from a PROXY header that the caller sends first, which restores the destination as the kernel would. A sidecar's own
inbound listener stands at the port that others dial, its application at another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

import h2.config
import h2.connection
import h2.events

from planes import catalog
from planes.envoy import binary, bootstrap, pieces
from planes.envoy.pieces import Json
from testbed.bench.loopback import write_certificates
from testbed.model.placement import Placement, Proxy
from testbed.model.policy import AuthorizationPolicy, Rule, Source, TargetRef
from testbed.model.topology import App, Node, Service, ServicePort, Topology, WaypointRef, Workload
from tests.envoy.test_interop import ROOT, Bench, listening, wait_for

LIMIT_S = 20.0
APP_PORT, CAPTURED_PORT = 8080, 18080
TRUST_DOMAIN = "cluster.local"
OTHER_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/other"
ALIEN_URI = "spiffe://elsewhere/ns/default/sa/client"
Kind = Literal["ours", "envoy"]
_numbers = itertools.count(1)


def topology(
    *, protocol: str = "http", waypoint: bool, policies: tuple = (), sidecars: bool = False, handles: str = "service"
) -> Topology:
    """A client, a server behind the service `server`, and for that a waypoint if asked, in a network of its own.

    `handles` as of a `WaypointRef`: before the service, the server's own address, or both.
    """
    number = next(_numbers)
    net = f"127.{30 + os.getpid() % 90}.{(os.getpid() // 90 * 16 + number) % 250 + 1}"
    node = Node(name="node", zone="zone", address=f"{net}.1", network=f"{net}.0/24")
    app = App(kind="http-echo", ports=(APP_PORT,))

    asked = WaypointRef(name="waypoint", node="node", handles=handles) if waypoint else None

    def workload(name: str, last: int, app: App) -> Workload:
        return Workload(
            name=name, group=name, namespace="default", service_account=name, node="node", address=f"{net}.{last}",
            app=app, waypoint=asked if name == "server" and handles != "service" else None,
        )  # fmt: skip

    target = CAPTURED_PORT if sidecars else APP_PORT
    service = Service(
        name="server", namespace="default", address=f"{net}.100",
        ports=(ServicePort(port=80, target_port=target, protocol=protocol),), endpoints=("server",),
        waypoint=asked if handles != "workload" else None,
    )  # fmt: skip
    return Topology(
        name="scene", nodes=(node,), workloads=(workload("client", 2, App(kind="idle")), workload("server", 3, app)),
        services=(service,), links=(), policies=policies,
    )  # fmt: skip


def only(principal: str, *, at_waypoint: bool) -> AuthorizationPolicy:
    """Lets in whoever has proved this account of `default`, and nobody else."""
    return AuthorizationPolicy(
        name="only", namespace="default",
        rules=(Rule(sources=(Source(principals=(f"{TRUST_DOMAIN}/ns/default/sa/{principal}",)),)),),
        target_refs=(TargetRef(kind="Service", name="server"),) if at_waypoint else (),
        selector=None if at_waypoint else (),
    )  # fmt: skip


@dataclasses.dataclass(slots=True)
class Scene:
    folder: Path
    topology: Topology
    stack: contextlib.ExitStack
    requests: list[dict] = dataclasses.field(default_factory=list)
    """What reached the application."""
    own_address: bool = False
    """The client's connections were going to the server's own address and not to its service's."""
    _preamble: bytes = b""
    """What a captured connection begins with."""

    def __post_init__(self) -> None:
        uris = {w.name: str(w.identity(TRUST_DOMAIN)) for w in self.topology.workloads}
        uris |= {"waypoint": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/waypoint", "other": OTHER_URI, "alien": ALIEN_URI}
        write_certificates(self.folder, uris)
        listener = socket.create_server((self.address("server"), APP_PORT))
        self.stack.callback(listener.close)
        self.stack.callback(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def address(self, name: str) -> str:
        if name == "waypoint":
            return self.topology.nodes[0].network.rpartition(".")[0] + ".254"
        return self.topology.workload(name).address

    @property
    def destination(self) -> tuple[str, int]:
        """Where the client's captured connections were going."""
        service = self.topology.services[0]
        return (self.address("server"), APP_PORT) if self.own_address else (service.address, service.ports[0].port)

    # -- proxies

    def run(self, placed: Placement, name: str, *, proves: str | None = None) -> None:
        """The placed proxy of workload (or waypoint) `name`; `proves` names another certificate than its own."""
        proxy = next(p for p in placed.proxies if name in (p.name.rpartition(".")[2], *p.enters, p.sandbox))
        file = proves or name
        uri = str(next(i for i in proxy.identities if i.service_account == name))
        identities = {uri: {k: f"{self.folder}/{file}{s}" for k, s in (("certificate", ".pem"), ("key", ".key"))}}
        identities[uri]["roots"] = f"{self.folder}/roots.pem"
        config = {
            "name": proxy.name, "role": proxy.role, "node": "node", "identities": identities, "options": proxy.options,
        }  # fmt: skip
        if proxy.role.startswith("envoy-"):
            self._envoy(config, proxy, name)
        else:
            self._ours(config, proxy, name)

    def _ours(self, config: dict, proxy: Proxy, name: str) -> None:
        options = {
            **proxy.options, "address": self.address(name), "admin_port": 0, "stats_port": 0, "ready_port": 0,
            "access_log": "stderr",
        }  # fmt: skip
        if proxy.role == "ztunnel":
            options["original_source"] = False
            config["workload"] = f"default/{name}"
        if name == "client":
            options["original_destination"] = list(self.destination)
        elif proxy.role == "sidecar":
            options["original_destination"] = [self.address(name), APP_PORT]
            options["ports"] = {"inbound": CAPTURED_PORT}
        folder = self.folder / f"ours-{name}"
        folder.mkdir()
        (folder / "view.json").write_text(json.dumps(proxy.view))
        file = folder / "config.json"
        file.write_text(json.dumps({**config, "view": "view.json", "options": options}))
        self._start(name, proxy, [sys.executable, "-m", proxy.program, "--config", str(file)])

    def _envoy(self, config: dict, proxy: Proxy, name: str) -> None:
        made, _ = bootstrap.build(json.loads(json.dumps(config)), proxy.view)
        on_loopback(made, self.address(name))
        file = self.folder / f"{proxy.name}.json"
        file.write_text(json.dumps(made, indent=1))
        argv = [str(binary.required()), "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        self._start(name, proxy, argv)

    def _start(self, name: str, proxy: Proxy, argv: list[str]) -> None:
        if name == "client":
            host, to = self.destination
            text = f"PROXY TCP4 {self.address('client')} {host} 40000 {to}\r\n"
            self._preamble = text.encode() if proxy.role.startswith("envoy-") else b""
        sidecar = proxy.role in ("sidecar", "envoy-sidecar")
        port = 15001 if name == "client" else CAPTURED_PORT if sidecar else 15008
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        self.stack.callback(Bench._end, process)
        wait_for(lambda: listening(self.address(name), port) or process.poll() is not None, f"{proxy.name} listens")
        assert process.poll() is None, self.log(name)[-3000:]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    # -- calls

    def call(self, path: str = "/", *, http2: bool = False, method: str = "GET", **headers: str) -> tuple[int, dict]:
        """(status, what the application says it saw); status 0 when the connection was cut."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        authority = fields.pop("host", "server.default.svc.cluster.local")
        with socket.create_connection((self.address("client"), 15001), timeout=LIMIT_S) as sock:
            sock.sendall(self._preamble)
            try:
                ask = _ask_http2 if http2 else _ask_http1
                status, body = ask(sock, method, authority, path, fields)
            except (ConnectionError, EOFError):
                return 0, {}
        with contextlib.suppress(ValueError):
            return status, json.loads(body)
        return status, {}

    # -- the application: tells what it saw, by either protocol

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_one, args=(sock,), daemon=True).start()

    def _serve_one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(LIMIT_S)
            held = sock.recv(65536)
            if held.startswith(b"PRI "):
                self._serve_http2(sock, held)
            else:
                self._serve_http1(sock, held)

    def _saw(self, version: str, method: str, path: str, fields: list[tuple[str, str]]) -> bytes:
        seen = {"version": version, "method": method, "path": path, "fields": dict(fields)}
        self.requests.append(seen)
        return json.dumps(seen).encode()

    def _serve_http1(self, sock: socket.socket, held: bytes) -> None:
        while held:
            while b"\r\n\r\n" not in held:
                held += sock.recv(65536) or b"\r\n\r\n"
            head, _, held = held.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            if not first:
                return
            method, path, version = first.split(" ")
            fields = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines)]
            body = self._saw(version, method, path, fields)
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            held = held or sock.recv(65536)

    def _serve_http2(self, sock: socket.socket, held: bytes) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        while held:
            for event in connection.receive_data(held):
                if isinstance(event, h2.events.RequestReceived):
                    fields = dict(event.headers)
                    rest = [(n, v) for n, v in fields.items() if n[0] != ":"]
                    body = self._saw("HTTP/2", fields[":method"], fields[":path"], rest)
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, body, end_stream=True)
            sock.sendall(connection.data_to_send())
            held = sock.recv(65536)


def on_loopback(made: Json, address: str) -> None:
    """The same configuration with its listeners at one address, and nobody to redirect to them."""
    resources: Json = made["static_resources"]  # type: ignore[assignment]
    made["admin"]["address"]["socket_address"]["address"] = address  # type: ignore[index]
    kept = []
    for held in resources["listeners"]:  # type: ignore[attr-defined]
        if "internal_listener" in held:
            kept.append(held)
            continue
        if held["name"] == "ready":
            continue
        held["address"]["socket_address"]["address"] = address
        filters = held.get("listener_filters", [])
        if held["name"] == "outbound":
            filters[0] = {
                "name": "envoy.filters.listener.proxy_protocol",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
                },
            }
        elif held["name"] == "inbound" and filters:
            held["address"]["socket_address"]["port_value"] = CAPTURED_PORT
            del filters[0]
        kept.append(held)
    resources["listeners"] = kept
    for cluster in resources["clusters"]:  # type: ignore[attr-defined]
        if cluster["name"] == "inbound":  # nothing was redirected, so there is no original destination
            endpoints = [{"lb_endpoints": [pieces.endpoint(address, APP_PORT)]}]
            cluster |= {"type": "STATIC", "lb_policy": "ROUND_ROBIN", "load_assignment": {
                "cluster_name": "inbound", "endpoints": endpoints,
            }}  # fmt: skip


def _ask_http1(sock: socket.socket, method: str, authority: str, path: str, fields: dict) -> tuple[int, bytes]:
    lines = [f"{method} {path} HTTP/1.1", f"host: {authority}", *(f"{n}: {v}" for n, v in fields.items())]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    held = b""
    while b"\r\n\r\n" not in held:
        held += _received(sock)
    head, _, body = held.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < length:
        body += _received(sock)
    return int(head.split(b" ")[1]), body


def _ask_http2(sock: socket.socket, method: str, authority: str, path: str, fields: dict) -> tuple[int, bytes]:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), *fields.items()]
    connection.send_headers(1, head, end_stream=True)
    sock.sendall(connection.data_to_send())
    status, body, ended = 0, b"", False
    while not ended:
        for event in connection.receive_data(_received(sock)):
            if isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                ended = True
            elif isinstance(event, h2.events.StreamReset):
                raise ConnectionResetError
        sock.sendall(connection.data_to_send())
    return status, body


def _received(sock: socket.socket) -> bytes:
    part = sock.recv(65536)
    if not part:
        raise EOFError
    return part


PLANES = {
    ("ours", "ambient"): catalog.ambient,
    ("envoy", "ambient"): catalog.envoy_ambient,
    ("ours", "sidecar"): catalog.sidecar,
    ("envoy", "sidecar"): catalog.envoy_sidecar,
}


def placed(kind: Kind, plane: str, topology: Topology) -> Placement:
    return PLANES[kind, plane].place(topology, {})
