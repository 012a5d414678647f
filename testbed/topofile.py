"""Topology files: YAML -> `model.topology.Topology`, checked at this door and nowhere after.

`topofields.DOCUMENT` describes the keys once; the strict reading and `json_schema()` both come from it. What a schema
cannot say (names that must exist, a connected graph, device names that must differ) is checked in `_Builder`. Every
problem of a file is reported at once. Declared delays are milliseconds one way; `forward` is from the first node of
`between` to the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from testbed import policyfile, registry
from testbed.errors import TopologyError, UsageError
from testbed.model.identity import DEFAULT_TRUST_DOMAIN
from testbed.model.topology import (
    App,
    GilbertElliott,
    Impairment,
    Link,
    Node,
    Service,
    ServicePort,
    Topology,
    Workload,
    link_addresses,
    node_network,
    service_address,
    workload_address,
)
from testbed.seams import end_name
from testbed.topofields import DOCUMENT, json_schema
from testbed.topowaypoints import Waypoints
from testbed.yamlpos import Item, Reader, suggestion

__all__ = ["DOCUMENT", "FOLDER", "find", "json_schema", "load", "parse", "shipped"]

FOLDER = Path(__file__).parent.parent / "topologies"
IDLE = "idle"
IMAGE = "image"
"""The kind of app that is no module of ours."""
_OF_IMAGES = ("image", "command", "environment", "writable", "userId")
_PROXY_USERS = range(1337, 2000)
"""User ids of proxies: what runs as one of them is not captured."""
_WORKLOADS_PER_NODE = 253
_PLACE = re.compile(r"(.*?):(\d+):(\d+): ", re.DOTALL)


# -- the door


def shipped() -> dict[str, Path]:
    """The topologies that come with the package, by name."""
    return {p.stem: p for p in sorted(FOLDER.glob("*.yml")) if "." not in p.stem}


def find(name: str) -> Path:
    """A path from a path or from the bare name of a shipped topology. Raises UsageError naming the known ones."""
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file():
        return path
    raise UsageError(f"no topology {name!r}: neither a file nor a shipped topology; {suggestion(name, known)}")


def load(path: Path | str) -> Topology:
    """From a file, or a shipped topology by its bare name. Raises TopologyError with every problem of the file."""
    path = find(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError([f"{path}:1:1: cannot be read ({error}); check the path and its encoding"]) from error
    return parse(text, str(path))


def parse(text: str, filename: str) -> Topology:
    """`filename` is for messages, and policy files are looked for beside it."""
    reader = Reader(filename)
    documents = reader.documents(text)
    if not reader.problems and len(documents) != 1:
        found = "no document" if not documents else f"{len(documents)} documents"
        reader.problems.append(
            f"{filename}:1:1: a topology file holds one document ({found}); write one topology a file"
        )
    if reader.problems:
        raise TopologyError(reader.problems)
    item = DOCUMENT.read(documents[0], reader)
    topology = _Builder(item, reader).build() if item is not None else None
    if topology is None or reader.problems:
        raise TopologyError(sorted(set(reader.problems), key=_place))
    return topology


def _place(problem: str) -> tuple[str, int, int]:
    """A file's name may hold colons itself: the first two numbers between colons are the place."""
    found = _PLACE.match(problem)
    return (found[1], int(found[2]), int(found[3])) if found else (problem, 0, 0)


# -- references and addresses


class _Builder:
    """From Items to values; goes on past problems as far as it makes sense, so that all are told."""

    def __init__(self, item: Item, reader: Reader) -> None:
        self.item = item
        self.reader = reader
        self.problem = reader.problem
        self.zones = [z.value for z in item.each("zones")]
        self.node_names = tuple(self._known("nodes"))
        self.workload_names = tuple(self._known("workloads"))
        self.service_names = tuple(self._known("services"))
        self.sandboxes: dict[str, str] = {}
        self.waypoints = Waypoints(item, self.problem, self._refer_node, self._claim)

    def _known(self, key: str) -> Iterable[str]:
        child = self.item.child(key)
        return child.keys if child is not None else ()

    def build(self) -> Topology | None:
        nodes = self._nodes()
        workloads = self._workloads()
        services = self._services(workloads)
        links = self._links()
        policies = self._policies()
        self._check_calls(workloads, services)
        self._check_connected([link for link, _ in links])
        if self.reader.problems:
            return None
        return Topology(
            name=self.item.get("name"),
            nodes=nodes,
            workloads=workloads,
            services=services,
            links=tuple(link for link, _ in links),
            trust_domain=self.item.get("trustDomain", DEFAULT_TRUST_DOMAIN),
            policies=policies,
        )

    def _refer(self, item: Item | None, kind: str, known: Iterable[str]) -> bool:
        """Whether the name at `item` exists; a problem when not."""
        if item is None or item.value in (known := tuple(known)):
            return item is not None
        self.problem(item.mark, f"no {kind} of that name ({item.value!r})", suggestion(item.value, known))
        return False

    def _refer_node(self, item: Item | None) -> bool:
        return self._refer(item, "node", self.node_names)

    def _refer_all(self, items: Iterable[Item], kind: str, known: Iterable[str]) -> bool:
        """Each is looked up, so that each unknown one is told."""
        return False not in [self._refer(item, kind, known) for item in items]

    def _claim(self, name: str, kind: str, mark: yaml.Mark) -> None:
        """Nodes, workloads and waypoints are sandboxes of one lab: one name, one sandbox."""
        if name in self.sandboxes:
            what = f"the {kind}'s name is taken by a {self.sandboxes[name]} ({name!r})"
            self.problem(mark, what, "nodes, workloads and waypoints share their names; rename one")
        self.sandboxes.setdefault(name, kind)

    def _nodes(self) -> tuple[Node, ...]:
        for index, zone in enumerate(self.item.each("zones")):
            if zone.value in self.zones[:index]:
                self.problem(zone.mark, f"zone given twice ({zone.value!r})", "take one out")
        nodes = []
        for number, (name, item) in enumerate(self.item.items("nodes"), 1):
            self._claim(name, "node", self.item.value["nodes"].keys[name])
            zone = item.child("zone")
            if zone is not None:
                self._refer(zone, "zone", self.zones)
            elif len(self.zones) > 1:
                self.problem(item.mark, f"the node's zone is not said ({name!r})", f"add zone: {self.zones[0]}")
            try:
                network, address = node_network(number)
            except ValueError as error:
                self.problem(item.mark, f"too many nodes ({number})", str(error))
                break
            default = self.zones[0] if self.zones else "default"
            nodes.append(Node(name=name, zone=zone.value if zone else default, address=address, network=network))
        return tuple(nodes)

    def _workloads(self) -> tuple[Workload, ...]:
        workloads: list[Workload] = []
        used: dict[str, int] = {}
        for group, item in self.item.items("workloads"):
            mark = self.item.value["workloads"].keys[group]
            spread = [*item.each("nodes"), *([n] if (n := item.child("node")) else [])]
            if not spread or not self._refer_all(spread, "node", self.node_names):
                continue
            app = self._app(item.child("app"))
            waypoint = self.waypoints.of_workload(group, item)
            replicas = item.get("replicas", 1)
            for index in range(replicas):
                name = group if replicas == 1 else f"{group}-{index}"
                self._claim(name, "workload", mark)
                node = spread[index % len(spread)].value
                place = used.setdefault(node, 0)
                used[node] += 1
                if place >= _WORKLOADS_PER_NODE:
                    what = f"node {node} has more than {_WORKLOADS_PER_NODE} workloads ({group}, replica {index})"
                    self.problem(mark, what, "add a node and spread the replicas with nodes: [...]")
                    break
                labels = {"app": group, **{k: v.value for k, v in item.items("labels")}}
                workloads.append(
                    Workload(
                        name=name,
                        group=group,
                        namespace=item.get("namespace", "default"),
                        service_account=item.get("serviceAccount", "default"),
                        node=node,
                        address=workload_address(self.node_names.index(node) + 1, place),
                        app=app,
                        plane=item.get("plane"),
                        labels=tuple(sorted(labels.items())),
                        waypoint=waypoint,
                        hostname=item.get("hostname", ""),
                    )
                )
        return tuple(workloads)

    def _app(self, item: Item | None) -> App:
        if item is None:
            return App(kind=IDLE)
        kinds = {*registry.names("app"), IDLE, IMAGE}
        kind = item.child("kind")
        if kind is not None and kind.value not in kinds:
            self.problem(kind.mark, f"unknown kind of app ({kind.value!r})", suggestion(kind.value, kinds))
        for call in item.each("calls"):
            self._refer(call, "service", self.service_names)
        calls, ports = item.each("calls"), item.each("ports")
        name = item.get("kind", IDLE)
        if calls and name in (IDLE, IMAGE, "tcp-echo"):
            self.problem(calls[0].mark, f"{name} makes no calls ({calls[0].value!r})", "use kind: http-echo")
        self._check_image(item, name)
        if name != IDLE and not ports:
            self.problem(item.mark, f"the app listens nowhere ({name})", "add ports: [8080]")
        for port in ports:
            if port.value in (15001, 15006, 15008):
                self.problem(port.mark, f"the port belongs to the proxies ({port.value})", "take another port")
        return App(
            kind=name,
            ports=tuple(p.value for p in ports),
            service_time_ms=item.get("serviceTimeMs", 0.0),
            calls=tuple(c.value for c in calls),
            image=item.get("image", ""),
            command=tuple(word.value for word in item.each("command")),
            environment=tuple(sorted((key, value.value) for key, value in item.items("environment"))),
            writable=tuple(folder.value for folder in item.each("writable")),
            user_id=item.get("userId"),
        )

    def _check_image(self, item: Item, kind: str) -> None:
        if kind != IMAGE:
            for key in _OF_IMAGES:
                if (child := item.child(key)) is not None:
                    self.problem(child.mark, f"only an app of kind image has {key} ({kind})", f"use kind: {IMAGE}")
            return
        if item.child("image") is None:
            self.problem(item.mark, "the app's image is not said", "add image: <name of an image in the engine>")
        if (own := item.child("serviceTimeMs")) is not None:
            self.problem(own.mark, f"an image takes the time it takes ({own.value:g})", "use kind: http-echo")
        if (user := item.child("userId")) is not None and user.value in _PROXY_USERS:
            what = f"the user id belongs to the proxies, whose traffic is not captured ({user.value})"
            self.problem(user.mark, what, "take another, or leave it out")

    def _services(self, workloads: tuple[Workload, ...]) -> tuple[Service, ...]:
        services = []
        for index, (name, item) in enumerate(self.item.items("services")):
            namespace = item.get("namespace", "default")
            groups = [g for g in item.each("workloads") if self._refer(g, "workload", self.workload_names)]
            behind = [w for g in groups for w in workloads if w.group == g.value]
            for group in groups:
                if any(w.group == group.value and w.namespace != namespace for w in workloads):
                    mend = f"a service stands for workloads of its own namespace ({namespace})"
                    self.problem(group.mark, f"the workload is of another namespace ({group.value!r})", mend)
            services.append(
                Service(
                    name=name,
                    namespace=namespace,
                    address=service_address(index),
                    ports=self._ports(item, behind),
                    endpoints=tuple(dict.fromkeys(w.name for w in behind)),
                    waypoint=self.waypoints.of_service(name, item, [w.service_account for w in behind]),
                    traffic_distribution=item.get("trafficDistribution", "any"),
                )
            )
        return tuple(services)

    def _ports(self, item: Item, behind: list[Workload]) -> tuple[ServicePort, ...]:
        ports: dict[int, ServicePort] = {}
        for entry in item.each("ports"):
            port = entry.get("port")
            if port is None:
                continue
            if port in ports:
                self.problem(entry.mark, f"service port given twice ({port})", "take one out")
            target = entry.get("targetPort", port)
            for workload in behind:
                if target not in workload.app.ports:
                    listens = ", ".join(map(str, workload.app.ports)) or "nowhere"
                    mend = f"set targetPort; {workload.group} listens at: {listens}"
                    self.problem(entry.mark, f"nothing listens at the target port ({target})", mend)
                    break
            ports[port] = ServicePort(port=port, target_port=target, protocol=entry.get("protocol", "tcp"))
        return tuple(ports.values())

    def _links(self) -> list[tuple[Link, yaml.Mark]]:
        links: list[tuple[Link, yaml.Mark]] = []
        pairs: set[frozenset[str]] = set()

        def add(a: str, b: str, there: Impairment, back: Impairment, mark: yaml.Mark) -> None:
            pairs.add(frozenset((a, b)))
            a_address, b_address = link_addresses(len(links))
            link = Link(a=a, b=b, a_address=a_address, b_address=b_address, a_to_b=there, b_to_a=back)
            links.append((link, mark))

        for item in self.item.each("links"):
            ends = item.each("between")
            if len(ends) != 2 or not self._refer_all(ends, "node", self.node_names):
                continue
            a, b = (end.value for end in ends)
            if a == b:
                self.problem(ends[1].mark, f"a link needs two nodes ({a!r} twice)", "name another node")
            elif frozenset((a, b)) in pairs:
                self.problem(
                    ends[0].mark, f"link given twice ({a}, {b})", "take one out; directions go in forward, backward"
                )
            else:
                base = _impairment(item, Impairment())
                add(a, b, _directed(item, "forward", base), _directed(item, "backward", base), item.mark)
        for item in self.item.each("zoneLinks"):
            ends = item.each("between")
            if len(ends) != 2 or not self._refer_all(ends, "zone", self.zones):
                continue
            impairment = _impairment(item, Impairment(delay_ms=item.get("rttMs", 0.0) / 2))
            for a in self._in_zone(ends[0].value):
                for b in self._in_zone(ends[1].value):
                    if a != b and frozenset((a, b)) not in pairs:
                        add(a, b, impairment, impairment, item.mark)
        self._check_device_names(links)
        return links

    def _in_zone(self, zone: str) -> list[str]:
        default = self.zones[0] if self.zones else None
        return [name for name, item in self.item.items("nodes") if item.get("zone", default) == zone]

    def _check_device_names(self, links: list[tuple[Link, yaml.Mark]]) -> None:
        devices: dict[tuple[str, str], str] = {}
        for link, mark in links:
            for node, peer in ((link.a, link.b), (link.b, link.a)):
                device = end_name(link, node)
                other = devices.setdefault((node, device), peer)
                if other != peer:
                    what = f"links of node {node} to {other} and {peer} would both be the device {device!r}"
                    self.problem(mark, what, "rename a node: the first 12 letters of neighbours must differ")

    def _check_connected(self, links: list[Link]) -> None:
        if not self.node_names:
            return
        neighbours: dict[str, set[str]] = {name: set() for name in self.node_names}
        for link in links:
            neighbours[link.a].add(link.b)
            neighbours[link.b].add(link.a)
        reached, front = {self.node_names[0]}, [self.node_names[0]]
        while front:
            new = neighbours[front.pop()] - reached
            reached |= new
            front += new
        for name in self.node_names:
            if name not in reached:
                what = f"node is not reachable from {self.node_names[0]} over links ({name!r})"
                self.problem(self.item.value["nodes"].keys[name], what, "add a link to one of its neighbours")

    def _check_calls(self, workloads: tuple[Workload, ...], services: tuple[Service, ...]) -> None:
        """A chain that calls itself would never answer."""
        apps = {w.name: w.app for w in workloads}
        calls = {s.name: dict.fromkeys(c for e in s.endpoints for c in apps[e].calls) for s in services}
        if loop := _circle(calls):
            mark = self.item.value["services"].keys[loop[0]]
            self.problem(mark, f"services call each other in a circle ({' -> '.join(loop)})", "take one call out")

    def _policies(self) -> tuple[object, ...]:
        policies: list[object] = []
        for item in self.item.each("policies"):
            if not isinstance(item.value, dict):
                policies.append(item.value)
                continue
            name = item.child("file")
            if name is None:
                continue
            if name.value.startswith("/") or ".." in Path(name.value).parts:
                what = f"the policy file is not in this file's folder ({name.value!r})"
                self.problem(name.mark, what, "put it there, or in a folder below; a symbolic link will do, too")
                continue
            path = Path(self.reader.filename).parent / name.value
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "neither a path nor UTF-8 text"
                self.problem(
                    name.mark,
                    f"the policy file cannot be read ({name.value!r}: {reason})",
                    "its path is beside this file",
                )
                continue
            beside = Reader(str(path), self.reader.problems)
            policies += [resource.value for resource in policyfile.read(text, beside)]
        return tuple(policies)


def _circle(calls: Mapping[str, Iterable[str]]) -> list[str]:
    """Names along the first circle, its first one again at the end; empty when there is none.

    Without recursion, for chains are as long as their file.
    """
    finished: set[str] = set()
    for start in calls:
        path: dict[str, Iterator[str]] = {} if start in finished else {start: iter(calls[start])}
        while path:
            here = next(reversed(path))
            callee = next(path[here], None)
            if callee is None:
                finished.add(here)
                del path[here]
            elif callee in path:
                names = list(path)
                return [*names[names.index(callee) :], callee]
            elif callee not in finished:
                path[callee] = iter(calls.get(callee, ()))
    return []


def _directed(item: Item, key: str, base: Impairment) -> Impairment:
    child = item.child(key)
    return base if child is None else _impairment(child, base)


def _impairment(item: Item, base: Impairment) -> Impairment:
    """What the item says over `base`. One kind of loss replaces the other."""
    names = {"delayMs": "delay_ms", "jitterMs": "jitter_ms", "rateMbit": "rate_mbit", "queueMs": "queue_ms"}
    changes: dict[str, Any] = {name: item.get(key) for key, name in names.items() if item.child(key) is not None}
    burst = item.child("gilbertElliott")
    if burst is not None and burst.child("p") and burst.child("r"):
        changes["loss"] = 0.0
        changes["gilbert_elliott"] = GilbertElliott(
            p=burst.get("p"), r=burst.get("r"), loss_bad=burst.get("lossBad", 1.0), loss_good=burst.get("lossGood", 0.0)
        )
    elif item.child("loss") is not None:
        changes["loss"], changes["gilbert_elliott"] = item.get("loss"), None
    return replace(base, **changes)
