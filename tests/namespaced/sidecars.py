"""Labs of workloads with sidecars: HTTP calls, resources that change while they run, servers that record."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import http.client
import json
import queue
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from testbed import lab, planespec, policyfile
from testbed.model.plain import to_plain
from testbed.model.policy import Action, AuthorizationPolicy
from testbed.model.topology import Topology
from testbed.runtime.enter import in_netns
from tests.namespaced.worlds import LIMIT_S, World, wait_for

# `client` and `other` call; `outsider` and `plain` have no proxy; `tester` loses its application (`made_ready`), so
# that cases listen there themselves. `sniffed` says nothing of its protocol: `placed` sees to that.
SIDECARS = """
name: sidecars
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  other: {node: node-a, serviceAccount: other}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  web: {node: node-b, serviceAccount: web, labels: {version: v1, app: web}, app: {kind: http-echo, ports: [8080]}}
  web2: {node: node-b, serviceAccount: web, labels: {version: v2, app: web}, app: {kind: http-echo, ports: [8080]}}
  echo: {node: node-b, serviceAccount: echo, labels: {app: echo}, app: {kind: tcp-echo, ports: [9000]}}
  plain: {node: node-b, serviceAccount: plain, plane: none, app: {kind: http-echo, ports: [8080]}}
  tester:
    {node: node-b, serviceAccount: tester, labels: {app: tester}, app: {kind: tcp-echo, ports: [8081, 3306, 7000]}}
services:
  web: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [web]}
  both: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [web, web2]}
  mixed: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [web, plain]}
  plain: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [plain]}
  echo: {ports: [{port: 90, targetPort: 9000, protocol: tcp}], workloads: [echo]}
  tester:
    ports:
      - {port: 80, targetPort: 8081, protocol: http}
      - {port: 3306, targetPort: 3306, protocol: tcp}
    workloads: [tester]
  sniffed: {ports: [{port: 7000, targetPort: 7000}], workloads: [tester]}
links:
  - {between: [node-a, node-b]}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    """0: the connection ended without an answer."""
    fields: Mapping[str, str]
    body: bytes

    @property
    def served_by(self) -> str:
        return self.fields.get("x-workload", "")


NO_ANSWER = Answer(status=0, fields={}, body=b"")


@dataclass(slots=True)
class SidecarWorld(World):
    """A lab whose proxies read traffic resources, too."""

    def http(
        self, source: str, service: str, path: str = "/", *, method: str = "GET",
        headers: Mapping[str, str] | None = None, address: str = "", port: int = 80, body: bytes = b"",
    ) -> Answer:  # fmt: skip
        """One request over a connection of its own, to `service` by its address, or to `address` with that as host."""
        host = service or address
        with self.keep_alive(source, address or self.vip(service), port, host) as ask:
            return ask(path, method=method, headers=headers, body=body)

    @contextlib.contextmanager
    def keep_alive(self, source: str, address: str, port: int, host: str) -> Iterator:
        """Requests one after another over one connection."""
        sock = self.connect(source, address, port)
        made = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
        made.sock = sock

        def ask(
            path: str = "/", *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
        ) -> Answer:
            try:
                made.request(method, path, body=body or None, headers={"host": host, **(headers or {})})
                got = made.getresponse()
                fields = {name.lower(): value for name, value in got.getheaders()}
                return Answer(status=got.status, fields=fields, body=got.read())
            except (OSError, http.client.HTTPException):
                return NO_ANSWER

        try:
            yield ask
        finally:
            sock.close()

    def made_ready(self) -> None:
        app = self.lab.apps["tester"]
        app.signal(signal.SIGKILL)
        assert app.wait(LIMIT_S) is not None

    # -- resources

    @contextlib.contextmanager
    def resources(
        self, *texts: str, change: Callable[[Topology], Topology] = lambda topology: topology
    ) -> Iterator[None]:
        """Every proxy has loaded these Istio resources, and the topology as `change` left it; afterwards none."""
        policies = policyfile.parse("\n---\n".join(texts), "case.yml")
        self._place(dataclasses.replace(change(self.topology), policies=policies))
        try:
            yield
        finally:
            self._place(self.topology)

    def _place(self, topology: Topology) -> None:
        # The same markers as `World._load`, for L7 proxies as a policy on trial.
        marker = f"generation-{next(self._generation)}"
        silent = AuthorizationPolicy(name=marker, namespace="none", action=Action.DENY, dry_run=True)
        placement = planespec.place(self.deployment.placement.plane, topology)
        placed = {p.name: p for p in placement.proxies}
        for proxy in self.deployment.placement.proxies:
            fresh = placed[proxy.name]
            view = copy.deepcopy(fresh.view)
            if "l7" in fresh.options:
                l7 = copy.deepcopy(fresh.options["l7"])
                l7["outbound_any"] = proxy.options["l7"].get("outbound_any", True)
                l7.setdefault("authorization", []).append(to_plain(silent))
                view["l7"] = l7
            else:
                view["policies"].append({
                    "name": marker, "namespace": "none", "scope": "WorkloadSelector", "action": "Deny",
                    "dryRun": False, "rules": [],
                })  # fmt: skip
            self.deployment.configure(proxy, view)
        for proxy in self.deployment.placement.proxies:
            wait_for(lambda proxy=proxy: marker in self.dump(proxy.sandbox), f"{proxy.name} loads its resources")

    # -- what was seen

    def counted(self, sandbox: str, metric: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        total = 0.0
        for line in self.metrics(sandbox).splitlines():
            found = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
            if found is None or found[1] != metric:
                continue
            has = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2]))
            if all(has.get(name) == value for name, value in labels.items()):
                total += float(found[3])
        return total

    @contextlib.contextmanager
    def counts(self, sandbox: str, metric: str, by: float = 1, **labels: str) -> Iterator[None]:
        """The body moves the metric by `by`, no more and no less."""
        before = self.counted(sandbox, metric, **labels)
        yield
        wait_for(
            lambda: self.counted(sandbox, metric, **labels) - before == by,
            f"{metric}{labels} of {sandbox} moves by {by} (now {self.counted(sandbox, metric, **labels) - before})",
            3.0,
        )

    @contextlib.contextmanager
    def recorder(
        self, sandbox: str, port: int, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    ) -> Iterator[queue.Queue[bytes]]:
        """A server of the case's own: yields a queue of heads as they came, answers each with `answer`."""
        heads: queue.Queue[bytes] = queue.Queue()

        def handle(sock: socket.socket) -> None:
            data = b""
            while part := sock.recv(65536):
                data += part
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    heads.put(head)
                    sock.sendall(answer)

        with self.serve(sandbox, port, handle):
            yield heads


_GROUPS = {
    "PeerAuthentication": "security.istio.io/v1", "AuthorizationPolicy": "security.istio.io/v1",
    "VirtualService": "networking.istio.io/v1", "DestinationRule": "networking.istio.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
}  # fmt: skip


def resource(kind: str, spec: dict, *, name: str = "case", namespace: str = "default") -> str:
    """A resource as YAML, of which JSON is a part."""
    metadata = {"name": name, "namespace": namespace}
    return json.dumps({"apiVersion": _GROUPS[kind], "kind": kind, "metadata": metadata, "spec": spec})


def peer(mode: str, *, app: str = "", namespace: str = "default", ports: Mapping[int, str] | None = None) -> str:
    """PeerAuthentication for the mesh (`istio-system`), a namespace, or workloads labelled `app`."""
    spec: dict = {"mtls": {"mode": mode}}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    if ports:
        spec["portLevelMtls"] = {str(port): {"mode": m} for port, m in ports.items()}
    return resource("PeerAuthentication", spec, namespace=namespace, name=f"peer-{app or namespace}")


def allow(*principals: str, app: str, action: str = "ALLOW", **operation: list[str]) -> str:
    """AuthorizationPolicy at workloads labelled `app`."""
    rule: dict = {}
    if principals:
        rule["from"] = [{"source": {"principals": list(principals)}}]
    if operation:
        rule["to"] = [{"operation": operation}]
    spec = {"selector": {"matchLabels": {"app": app}}, "action": action, "rules": [rule]}
    return resource("AuthorizationPolicy", spec, name=f"{action.lower()}-{app}")


def routes(host: str, *rules: dict) -> str:
    return resource("VirtualService", {"hosts": [host], "http": list(rules)})


def traffic(host: str, policy: dict, **more: object) -> str:
    return resource("DestinationRule", {"host": host, "trafficPolicy": policy, **more})


def fields_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def get(world: World, source: str, address: str, port: int, path: str) -> tuple[int, bytes]:
    return lab.http_get(world.lab, source, address, port, path)


def listening(world: World, sandbox: str, address: str, port: int) -> bool:
    def attempt() -> bool:
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return False
        return True

    return in_netns(world.lab.netns(sandbox), attempt)
