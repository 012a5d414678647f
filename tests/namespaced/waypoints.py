"""A lab with ztunnels and waypoints: calls by name of a service, its waypoints' pods, real clients let into the lab."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.model.identity import Identity
from testbed.model.placement import Placement
from testbed.model.plain import to_plain
from testbed.model.policy import Action, AuthorizationPolicy
from testbed.model.topology import Topology
from testbed.planespec import place
from testbed.runtime.enter import in_netns
from testbed.seams import Process
from tests.namespaced.sidecars import SidecarWorld, resource
from tests.namespaced.worlds import wait_for

# `client` and `other` call; `outsider` and `plain` are not in the mesh. `shared` stands before several services with
# two replicas, `lone` before another service of the namespace, `own` before account `vault`'s own addresses, `whole`
# before all of namespace `whole`. `tester` loses its application (`made_ready`): cases listen there themselves.
WAYPOINTS = """
name: waypoints
nodes: {node-a: {}, node-b: {}}
namespaces:
  whole: {waypoint: {name: whole, node: node-b, for: all}}
  default: {serviceAccounts: {vault: {waypoint: {name: own, node: node-b, for: workload}}}}
workloads:
  client: {node: node-a, serviceAccount: client}
  other: {node: node-a, serviceAccount: other}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  web: {node: node-b, serviceAccount: web, labels: {version: v1}, app: {kind: http-echo, ports: [8080]}}
  web2: {node: node-a, serviceAccount: web2, labels: {version: v2}, app: {kind: http-echo, ports: [8080]}}
  plain: {node: node-b, serviceAccount: plain, plane: none, app: {kind: http-echo, ports: [8080]}}
  echo: {node: node-b, serviceAccount: echo, app: {kind: tcp-echo, ports: [9000]}}
  vault: {node: node-b, serviceAccount: vault, app: {kind: http-echo, ports: [8080]}}
  member: {node: node-b, namespace: whole, serviceAccount: member, app: {kind: http-echo, ports: [8080]}}
  tester: {node: node-b, serviceAccount: tester, app: {kind: tcp-echo, ports: [3306, 7000, 8081, 8082]}}
services:
  web:
    ports: &http [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: &shared {name: shared, node: node-b, replicas: 2}
  both: {ports: *http, workloads: [web, web2], waypoint: *shared}
  mixed: {ports: *http, workloads: [web, plain], waypoint: *shared}
  plain: {ports: *http, workloads: [plain], waypoint: *shared}
  echo: {ports: [{port: 90, targetPort: 9000, protocol: tcp}], workloads: [echo], waypoint: *shared}
  tester:
    ports:
      - {port: 80, targetPort: 8081, protocol: http}
      - {port: 81, targetPort: 8082, protocol: grpc}
      - {port: 3306, protocol: tcp}
    workloads: [tester]
    waypoint: *shared
  sniffed: {ports: [{port: 7000}], workloads: [tester], waypoint: *shared}
  alone: {ports: *http, workloads: [web], waypoint: {name: lone, node: node-a}}
  direct: {ports: *http, workloads: [web]}
  vault: {ports: *http, workloads: [vault]}
  member: {namespace: whole, ports: *http, workloads: [member]}
links:
  - {between: [node-a, node-b]}
"""

# What a case may kill: one service, one waypoint with two replicas.
DOOMED = """
name: doomed
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  web: {node: node-b, serviceAccount: web, app: {kind: http-echo, ports: [8080]}}
services:
  web:
    ports: [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: {name: way, node: node-b, replicas: 2}
links:
  - {between: [node-a, node-b]}
"""

# A waypoint between an ambient client and an endpoint with a sidecar.
MIXED = """
name: mixed
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client, plane: ambient}
  near: {node: node-b, serviceAccount: near, plane: ambient, app: {kind: http-echo, ports: [8080]}}
  web: {node: node-b, serviceAccount: web, plane: sidecar, app: {kind: http-echo, ports: [8080]}}
services:
  web:
    ports: [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: {name: way, node: node-b}
links:
  - {between: [node-a, node-b]}
"""


def sniffing(topology: Topology) -> Topology:
    """Service `sniffed` says nothing of its protocol, which a topology file cannot leave open."""
    services = tuple(
        dataclasses.replace(s, ports=tuple(dataclasses.replace(p, protocol="") for p in s.ports))
        if s.name == "sniffed"
        else s
        for s in topology.services
    )
    return dataclasses.replace(topology, services=services)


def told(placement: Placement, **options: object) -> Placement:
    """The waypoints have these options."""
    proxies = (
        dataclasses.replace(p, options={**p.options, **options}) if p.role == "waypoint" else p
        for p in placement.proxies
    )
    return dataclasses.replace(placement, proxies=tuple(proxies))


@dataclass(slots=True)
class WaypointWorld(SidecarWorld):
    """A lab of plane `ambient`, whose waypoints have pods of their own."""

    def pod(self, name: str) -> str:
        """The address of a waypoint's replica."""
        return next(p.own_address for p in self.deployment.placement.proxies if p.name == f"waypoint.{name}")

    def waypoint_identity(self, name: str, namespace: str = "default") -> Identity:
        return Identity(self.topology.trust_domain, namespace, name)

    def waypoint(self, name: str) -> Process:
        return self.deployment.proxies[f"waypoint.{name}"]

    def total(self, metric: str, *pods: str, **labels: str) -> float:
        return sum(self.counted(pod, metric, **labels) for pod in pods)

    @contextlib.contextmanager
    def through(self, *pods: str, by: float = 1, metric: str = "istio_requests_total", **labels: str) -> Iterator[None]:
        """The body's calls pass these pods together, `by` in number; no other number."""
        before = self.total(metric, *pods, **labels)
        yield
        moved = [0.0]

        def done() -> bool:
            moved[0] = self.total(metric, *pods, **labels) - before
            return moved[0] == by

        give_up_s = time.monotonic() + 3.0
        while not done():
            assert time.monotonic() < give_up_s, f"{metric}{labels} of {pods} moved by {moved[0]}, not {by}"
            time.sleep(0.05)

    # -- configuration

    def _place(self, topology: Topology) -> None:
        self._configure(place(self.deployment.placement.plane, sniffing(topology)), lambda _view: None, ())

    def _load(self, change: Callable[[dict], None], only: Sequence[str]) -> None:
        self._configure(self.deployment.placement, change, only)

    def _configure(self, placement: Placement, change: Callable[[dict], None], only: Sequence[str]) -> None:
        """Proxies show by a policy with a name that is new each time that they have loaded what they were given."""
        marker = f"generation-{next(self._generation)}"
        silent = {"name": marker, "namespace": "none", "scope": "WorkloadSelector", "action": "Deny", "dryRun": False}
        on_trial = to_plain(AuthorizationPolicy(name=marker, namespace="none", action=Action.DENY, dry_run=True))
        told = [p for p in placement.proxies if not only or p.name in only]
        for proxy in told:
            view = copy.deepcopy(proxy.view)
            change(view)
            if "l7" in proxy.options:
                view["l7"] = copy.deepcopy(proxy.options["l7"])
                view["l7"].setdefault("authorization", []).append(on_trial)
            view["policies"].append({**silent, "rules": []})
            self.deployment.configure(proxy, view)
        for proxy in told:
            if self.deployment.proxies[proxy.name].poll() is None:
                wait_for(lambda proxy=proxy: marker in self.dump(proxy.sandbox), f"{proxy.name} loads its view")

    # -- real clients and servers

    @contextlib.contextmanager
    def door(self, source: str, address: str, port: int) -> Iterator[int]:
        """A port on the test's own loopback, each of whose connections goes on from inside `source`."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.1)
        ending, taken = threading.Event(), []

        def accept() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    near, _ = listener.accept()
                    far = self.connect(source, address, port)
                    far.settimeout(None)
                    taken.extend((near, far))
                    for a, b in ((near, far), (far, near)):
                        threading.Thread(target=_pump, args=(a, b), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            thread.join()
            listener.close()
            for sock in taken:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def inside(self, sandbox: str, function: Callable[[], object]) -> object:
        return in_netns(self.lab.netns(sandbox), function)


def _pump(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
        destination.shutdown(socket.SHUT_WR)


def pss_mib(process: Process) -> float:
    """Proportional share of memory, of a live process."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))) / 1024


def at(kind: str, name: str, *, group: str = "gateway.networking.k8s.io") -> dict:
    """One targetRef."""
    return {"kind": kind, "group": "" if kind == "Service" else group, "name": name}


def authorization(
    *targets: dict, action: str = "ALLOW", rules: Sequence[dict] = (), namespace: str = "default", name: str = "case",
    selector: dict | None = None,
) -> str:  # fmt: skip
    """AuthorizationPolicy attached by targetRefs, or by a selector."""
    spec: dict = {"action": action, "rules": list(rules)}
    if targets:
        spec["targetRefs"] = list(targets)
    if selector is not None:
        spec["selector"] = {"matchLabels": selector}
    return resource("AuthorizationPolicy", spec, name=name, namespace=namespace)
