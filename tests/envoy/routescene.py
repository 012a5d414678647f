"""Four live proxies of one view on loopback: our sidecar and waypoint, and Envoy's of the same placement.

A case is a service of its own with resources of its own; every service has the endpoints `v1` and `v2`, which are
outside the mesh, so that nothing but the proxy under test stands between the caller and what the application saw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from planes import catalog
from planes.envoy import binary, bootstrap
from planes.envoy import place as envoy_place
from testbed.bench.loopback import write_certificates
from testbed.model.placement import Placement, Proxy
from testbed.model.topology import App, Node, Service, ServicePort, Topology, WaypointRef, Workload
from testbed.model.traffic import DestinationRule, Subset
from tests.envoy.scene import TRUST_DOMAIN, on_loopback
from tests.envoy.test_interop import ROOT, Bench, listening, wait_for

LIMIT_S = 20.0
APP_PORT = 8080
ENDPOINTS = {"v1": 11, "v2": 12, "other": 13, "dead": 14}
"""By name, the last part of their addresses. Nobody listens at `dead`."""
RAW = "raw"
"""The service whose port is declared TCP; given first, it is where a sidecar's connections were going."""
ROLES = ("sidecar", "waypoint")
IMPLEMENTATIONS = ("ours", "envoy")
_numbers = itertools.count(1)


def topology(services: Sequence[str], resources: Sequence[object]) -> Topology:
    """`services` beside `other` and `dead`, each before v1 and v2, subsets of those names declared."""
    number = next(_numbers)
    net = f"127.{40 + os.getpid() % 80}.{(os.getpid() // 80 * 16 + number) % 250 + 1}"
    node = Node(name="node", zone="zone", address=f"{net}.1", network=f"{net}.0/24")
    client = Workload(
        name="client", group="client", namespace="default", service_account="client", node="node", address=f"{net}.2",
        app=App(kind="idle"), plane="sidecar",
    )  # fmt: skip
    endpoints = [
        Workload(
            name=name, group=name, namespace="default", service_account=name, node="node", address=f"{net}.{last}",
            app=App(kind="http-echo", ports=(APP_PORT,)), plane="none", labels=(("version", name),),
        )
        for name, last in ENDPOINTS.items()
    ]  # fmt: skip
    members = dict.fromkeys(services, ("v1", "v2")) | {"other": ("other",), "dead": ("dead",)}
    made = tuple(
        Service(
            name=name, namespace="default", address=f"10.96.{n >> 8}.{n & 255}",
            ports=(ServicePort(port=80, target_port=APP_PORT, protocol="tcp" if name == RAW else "http"),),
            endpoints=endpoints_of,
            waypoint=WaypointRef(name="waypoint", node="node"),
        )
        for n, (name, endpoints_of) in enumerate(members.items(), 1)
    )  # fmt: skip
    ruled = {r.host for r in resources if isinstance(r, DestinationRule)}
    subsets = tuple(Subset(name=v, labels=(("version", v),)) for v in ("v1", "v2"))
    rules = [DestinationRule(name=n, namespace="default", host=n, subsets=subsets) for n in services if n not in ruled]
    return Topology(
        name="routes", nodes=(node,), workloads=(client, *endpoints), services=made, links=(),
        policies=(*resources, *rules),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as it reached an application."""

    by: str
    method: str
    path: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    """0: the connection ended without one."""
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    took_s: float = 0.0

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request. `plan` is what the application does with its attempts, the last entry with all that follow."""

    path: str = "/"
    method: str = "GET"
    authority: str = ""
    """Empty: the service's short name."""
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    plan: str = ""


class RouteScene:
    def __init__(self, folder: Path, services: Sequence[str], resources: Sequence[object]) -> None:
        self.folder, self.topology = folder, topology(services, resources)
        self.net = self.topology.nodes[0].network.rpartition(".")[0]
        self.stack = contextlib.ExitStack()
        self.seen: dict[str, list[Seen]] = {}
        """By the id that a request bore: what applications saw of it, mirrors too."""
        self._ids = itertools.count(1)
        self._ports: dict[tuple[str, str], tuple[str, int]] = {}
        self._open: dict[tuple[str, str, str], Channel] = {}

    def __enter__(self) -> RouteScene:
        uris = {"client": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/client",
                "waypoint": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/waypoint"}  # fmt: skip
        write_certificates(self.folder, uris)
        for name, last in ENDPOINTS.items():
            if name != "dead":
                _serve(self, name, (f"{self.net}.{last}", APP_PORT))
        ours = catalog.hybrid.place(self.topology, {})
        theirs = envoy_place.instead(Placement(plane="x", proxies=tuple(
            p for p in ours.proxies if p.role in ROLES
        )))  # fmt: skip
        try:
            for implementation, placed, last in (("ours", ours, 2), ("envoy", theirs, 102)):
                for proxy in placed.proxies:
                    role = proxy.role.removeprefix("envoy-")
                    if role in ROLES:
                        self._run(implementation, role, proxy, f"{self.net}.{last + ROLES.index(role)}")
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._open.values():
            channel.sock.close()
        self.stack.close()

    # -- proxies

    def _run(self, implementation: str, role: str, proxy: Proxy, address: str) -> None:
        account = "client" if role == "sidecar" else "waypoint"
        uri = str(proxy.identities[0])
        files = {"certificate": f"{self.folder}/{account}.pem", "key": f"{self.folder}/{account}.key",
                 "roots": f"{self.folder}/roots.pem"}  # fmt: skip
        config = {"name": proxy.name, "role": proxy.role, "node": "node", "identities": {uri: files},
                  "options": dict(proxy.options)}  # fmt: skip
        home = self.folder / f"{implementation}-{role}"
        home.mkdir()
        if implementation == "envoy":
            made, _ = bootstrap.build(json.loads(json.dumps(config)), proxy.view)
            on_loopback(made, address)
            file = home / "envoy.json"
            argv = [str(binary.required()), "-c", str(file), "--disable-hot-restart", "--concurrency", "1",
                    "-l", "warning"]  # fmt: skip
            file.write_text(json.dumps(made))
        else:
            config["options"] |= {"address": address, "admin_port": 0, "stats_port": 0, "ready_port": 0,
                                  "envoy_stats_port": 0, "access_log": "stderr"}  # fmt: skip
            if role == "sidecar":
                config["options"] |= {"original_destination": ["10.96.0.1", 80], "ports": {"inbound": 15106}}
            (home / "view.json").write_text(json.dumps(proxy.view))
            file = home / "config.json"
            file.write_text(json.dumps({**config, "view": "view.json"}))
            argv = [sys.executable, "-m", proxy.program, "--config", str(file)]
        port = 15001 if role == "sidecar" else 15008
        log = self.stack.enter_context((home / "log").open("wb"))
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        self.stack.callback(Bench._end, process)
        wait_for(lambda: listening(address, port) or process.poll() is not None, f"{implementation} {role} listens")
        assert process.poll() is None, (home / "log").read_text()[-3000:]
        self._ports[implementation, role] = address, port

    # -- calls

    def ask(self, implementation: str, role: str, service: str, asked: Asked) -> tuple[Answer, list[Seen]]:
        """The answer, and what applications saw of the request until then."""
        identifier = f"{implementation}-{role}-{next(self._ids)}"
        fields = (("host", asked.authority or service), *asked.fields, ("x-id", identifier), ("x-plan", asked.plan))
        if asked.body:
            fields += (("content-length", str(len(asked.body))),)
        head = "\r\n".join((f"{asked.method} {asked.path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields), "", ""))
        began_s = time.monotonic()
        answer = self._exchange(implementation, role, service, head.encode() + asked.body, asked.method)
        took_s = time.monotonic() - began_s
        return dataclasses.replace(answer, took_s=took_s), list(self.seen.get(identifier, ()))

    def _exchange(self, implementation: str, role: str, service: str, data: bytes, method: str) -> Answer:
        key = (implementation, role, service if role == "waypoint" else "")
        for fresh in (False, True):
            channel = self._open.pop(key, None) if not fresh else None
            if channel is None:
                fresh, channel = True, self._channel(*key)
            try:
                channel.sock.sendall(data)
                answer = channel.answer(method)
            except (EOFError, ConnectionError):
                channel.sock.close()
                if fresh:
                    return Answer(status=0)
                continue
            if answer.field("connection") == "close":
                channel.sock.close()
            else:
                self._open[key] = channel
            return answer
        raise AssertionError("BUG: a fresh channel gives an answer or none")

    def _channel(self, implementation: str, role: str, service: str) -> Channel:
        sock = socket.create_connection(self._ports[implementation, role], timeout=LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if role == "waypoint":
            return Channel(Tunnel(sock, self.folder, f"{self.topology.service(service).address}:80"))
        if implementation == "envoy":
            sock.sendall(f"PROXY TCP4 {self.net}.2 10.96.0.1 40000 80\r\n".encode())
        return Channel(sock)


class Refused(ConnectionError):
    """A CONNECT was answered, and not with 200; the first argument is the status."""


class Tunnel:
    """A CONNECT by HBONE as a socket: what a client's ztunnel does, by other libraries."""

    def __init__(self, sock: socket.socket, folder: Path, authority: str, *, proves: str = "client") -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(folder / f"{proves}.pem", folder / f"{proves}.key")
        context.set_alpn_protocols(["h2"])
        self._tls = context.wrap_socket(sock)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
        self._held, self._ended, self._status = b"", False, 0
        self._flush()
        while not self._status:
            self._read()
        if self._status != 200:
            sock.close()
            raise Refused(self._status, f"CONNECT {authority}: {self._status}")

    def _flush(self) -> None:
        self._tls.sendall(self._h2.data_to_send())

    def _read(self) -> None:
        data = self._tls.recv(65536)
        if not data:
            raise EOFError
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._status = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self._held += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                self._ended = True
        self._flush()

    def sendall(self, data: bytes) -> None:
        if self._ended:
            raise EOFError
        self._h2.send_data(1, data)
        self._flush()

    def recv(self, size: int) -> bytes:
        while not self._held and not self._ended:
            self._read()
        held, self._held = self._held, b""
        return held

    def close(self) -> None:
        self._tls.close()


class Channel:
    """A keep-alive connection with whatever came too much."""

    def __init__(self, sock: socket.socket | Tunnel) -> None:
        self.sock, self._held = sock, b""

    def _more(self) -> None:
        part = self.sock.recv(65536)
        if not part:
            raise EOFError
        self._held += part

    def answer(self, method: str) -> Answer:
        while True:
            while b"\r\n\r\n" not in self._held:
                self._more()
            head, _, self._held = self._held.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                break
        fields = tuple((n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines))
        answer = Answer(status=status, fields=fields)
        if method == "HEAD" or status in (204, 304):
            return answer
        body = b""
        if answer.field("transfer-encoding") == "chunked":
            while True:
                while b"\r\n" not in self._held:
                    self._more()
                line, _, self._held = self._held.partition(b"\r\n")
                need = int(line, 16) + 2
                while len(self._held) < need:
                    self._more()
                body, self._held = body + self._held[: need - 2], self._held[need:]
                if need == 2:
                    return dataclasses.replace(answer, body=body)
        length = int(answer.field("content-length") or 0)
        while len(self._held) < length:
            self._more()
        body, self._held = self._held[:length], self._held[length:]
        return dataclasses.replace(answer, body=body)


# -- the applications


def _serve(scene: RouteScene, name: str, address: tuple[str, int]) -> None:
    listener = socket.create_server(address, backlog=128)
    scene.stack.callback(listener.close)
    scene.stack.callback(listener.shutdown, socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_serve_one, args=(scene, name, sock), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _serve_one(scene: RouteScene, name: str, sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.settimeout(LIMIT_S * 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held = b""
        while True:
            while b"\r\n\r\n" not in held:
                part = sock.recv(65536)
                if not part:
                    return
                held += part
            head, _, held = held.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            fields = tuple((n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines))
            need = int(dict(fields).get("content-length", 0))
            while len(held) < need:
                held += sock.recv(65536)
            seen = Seen(by=name, method=method, path=path, fields=fields, body=held[:need])
            held = held[need:]
            if not _act(scene, seen, sock):
                return


def _act(scene: RouteScene, seen: Seen, sock: socket.socket) -> bool:
    """What the plan says of this attempt. A mirror's copy has no say in which attempt it is."""
    tries = scene.seen.setdefault(seen.field("x-id") or "", [])
    number = sum(not is_mirror(s) for s in tries)
    tries.append(seen)
    plan = (seen.field("x-plan") or "200").split(",")
    act = plan[min(number, len(plan) - 1)]
    if act == "reset":
        return False
    if act.startswith("slow"):
        time.sleep(int(act[4:]) / 1000)
        act = "200"
    extra = ""
    if act.startswith("grpc"):
        extra, act = f"content-type: application/grpc\r\ngrpc-status: {act[4:]}\r\n", "200"
    body = b"" if seen.method == "HEAD" or extra else f"{seen.by}|{seen.method}|{seen.path}".encode()
    sock.sendall(
        f"HTTP/1.1 {act} Said\r\n{extra}content-length: {len(body)}\r\nx-from: {seen.by}\r\nx-given: one\r\n"
        "x-given: two\r\n\r\n".encode() + body
    )
    return True


def is_mirror(seen: Seen) -> bool:
    return "-shadow" in (seen.field("host") or "")
