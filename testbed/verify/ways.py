"""Whom a call meets on its way, and what each of them must say: predictions for every pair, by who stands where. Pure.

From facts/hbone 1.4, 2.4 to 2.8, 3.2 to 3.7, 4.3 and 4.4. The verdicts are `oracle`'s; nothing is asked of a proxy's
own routing. A node's proxy (`node-l7`) is no plane of Istio's: its page says that it judges as a sidecar would, with
the identity that the caller's node tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from testbed.model.topology import Service, Topology, Workload
from testbed.verify import oracle
from testbed.verify.oracle import Call, Document, Gateway, Message, Pod, Ruling

PLAIN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Who takes what is sent to a workload, and what it sends."""

    kind: str
    """`sidecar`, `ambient`, `node` or `none`."""
    takes_hbone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Policies on a topology under a plane."""

    topology: Topology
    documents: Sequence[Document]
    stands: Mapping[str, Stand]
    """By workload; who is not named (a node's own processes) is `none`."""
    waypoints: Mapping[str, str]
    """Service -> address of the waypoint that stands before it."""

    def kind(self, name: str) -> str:
        return self.stands[name].kind if name in self.stands else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call: of whom, by what address, for what."""

    caller: str
    """A workload, or a node, whose own processes nobody captures."""
    endpoint: str
    service: str = ""
    """Empty: by the endpoint's own address."""
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    allowed: bool
    at: str
    """Who decides: the first that refuses, else the last that was asked."""
    why: str


def predict(scene: Scene, asked: Asked) -> Prediction:
    endpoint = scene.topology.workload(asked.endpoint)
    service = scene.topology.service(asked.service) if asked.service else None
    if service is not None and service.name in scene.waypoints and scene.kind(asked.caller) == "ambient":
        first = _at_waypoint(scene, asked, service)
        if not first.allowed:
            return _told("waypoint", first)
        return _arrives(scene, asked, endpoint, service, through_waypoint=True)
    return _arrives(scene, asked, endpoint, service, through_waypoint=False)


def intended(scene: Scene, asked: Asked) -> bool:
    """What all policies together mean, were each asked by somebody who knows the caller and reads the request."""
    endpoint = scene.topology.workload(asked.endpoint)
    service = scene.topology.service(asked.service) if asked.service else None
    named = service or next(s for s in scene.topology.services if endpoint.name in s.endpoints)
    sni = f"outbound_.{service.ports[0].port}_._.{service.hostname}" if service is not None else ""
    call = replace(_call(scene, asked, endpoint, principal=_principal(scene, asked.caller)), sni=sni)
    strict = oracle.mode(scene.documents, _pod(endpoint), call.port, sidecar=True) == "STRICT"
    at_pod = _rule_at(scene, "node", endpoint, call).allowed and not (strict and call.principal is None)
    return at_pod and (named.waypoint is None or _at_waypoint(scene, asked, named).allowed)


def _at_waypoint(scene: Scene, asked: Asked, service: Service) -> Ruling:
    assert service.waypoint is not None
    gateway = Gateway(
        name=service.waypoint.name, namespace=service.namespace, service=service.name,
        service_namespace=service.namespace,
    )  # fmt: skip
    call = Call(
        source_ip=_address(scene, asked.caller), destination_ip=service.address, port=service.ports[0].port,
        principal=_principal(scene, asked.caller) or None, message=asked.message,
    )  # fmt: skip
    return oracle.at_waypoint(scene.documents, gateway, call)


def _arrives(
    scene: Scene, asked: Asked, endpoint: Workload, service: Service | None, *, through_waypoint: bool
) -> Prediction:
    """At the endpoint's own proxy, as whoever the last hop can prove to be."""
    stand = scene.stands.get(endpoint.name, Stand(kind="none"))
    if stand.kind == "none":
        return Prediction(allowed=True, at="nobody", why="no proxy")
    if through_waypoint:
        assert service is not None and service.waypoint is not None
        proved = stand.kind == "ambient" or stand.takes_hbone
        domain = scene.topology.trust_domain
        principal = f"{domain}/ns/{service.namespace}/sa/{service.waypoint.name}" if proved else PLAIN
        call = replace(_call(scene, asked, endpoint, principal=principal), source_ip=scene.waypoints[service.name])
        return _told(stand.kind, _rule_at(scene, stand.kind, endpoint, call))
    principal, sni = _proves(scene, asked, endpoint, service)
    if stand.kind == "node" and scene.kind(asked.caller) != "node":
        return Prediction(allowed=True, at="nobody", why="nobody stands before a pod")
    call = replace(_call(scene, asked, endpoint, principal=principal), sni=sni)
    return _told(stand.kind, _rule_at(scene, stand.kind, endpoint, call))


def _proves(scene: Scene, asked: Asked, endpoint: Workload, service: Service | None) -> tuple[str, str]:
    """(principal, SNI) with which the call arrives."""
    theirs, stand = scene.kind(asked.caller), scene.stands[endpoint.name]
    own = _principal(scene, asked.caller)
    if theirs == "node":
        return (own if stand.kind == "node" else PLAIN), ""
    if theirs == "ambient":
        return (own if stand.kind == "ambient" or stand.takes_hbone else PLAIN), ""
    if theirs == "sidecar" and service is not None:  # it knows services only: to a pod's own address it passes plain
        if stand.kind == "ambient":
            return own, ""
        if stand.kind == "sidecar":
            port = service.ports[0]
            if oracle.mode(scene.documents, _pod(endpoint), port.target_port, sidecar=True) == "DISABLE":
                return PLAIN, ""
            return own, f"outbound_.{port.port}_._.{service.hostname}"
    return PLAIN, ""


def _call(scene: Scene, asked: Asked, endpoint: Workload, *, principal: str) -> Call:
    return Call(
        source_ip=_address(scene, asked.caller), destination_ip=endpoint.address, port=endpoint.app.ports[0],
        principal=principal or None, message=asked.message,
    )  # fmt: skip


def _rule_at(scene: Scene, kind: str, endpoint: Workload, call: Call) -> Ruling:
    pod = _pod(endpoint)
    if kind == "ambient":
        return oracle.at_ztunnel(scene.documents, pod, replace(call, message=None))
    if kind == "sidecar":
        return oracle.at_sidecar(scene.documents, pod, call)
    return oracle.at_node(scene.documents, pod, call)


def _told(where: str, ruling: Ruling) -> Prediction:
    return Prediction(allowed=ruling.allowed, at="ztunnel" if where == "ambient" else where, why=ruling.why)


def _pod(workload: Workload) -> Pod:
    return Pod(namespace=workload.namespace, labels=dict(workload.labels))


def _principal(scene: Scene, caller: str) -> str:
    """What its proxy could prove; a node's own process has none."""
    found = next((w for w in scene.topology.workloads if w.name == caller), None)
    if found is None or scene.kind(caller) == "none":
        return PLAIN
    return str(found.identity(scene.topology.trust_domain)).removeprefix("spiffe://")


def _address(scene: Scene, caller: str) -> str:
    found = next((w for w in scene.topology.workloads if w.name == caller), None)
    return found.address if found is not None else scene.topology.node(caller).address
