"""The `l7` object of a sidecar's or waypoint's configuration, from a topology: which resources concern it. Pure.

It stands beside the LOCAL view in the proxy's file (`Proxy.options["l7"]`), is read by `planes.l7.view.L7View.parse`.
"""

from __future__ import annotations

from collections.abc import Iterable

from planes.l7.view import WAYPOINT_CLASS, L7Config, L7Port, L7Service, PlainPort, PortMode, Role, WorkloadLabels, write
from testbed.model.policy import AuthorizationPolicy, Mode, PeerAuthentication, peer_mode, selects
from testbed.model.topology import ROOT_NAMESPACE, Service, Topology, Workload
from testbed.model.traffic import DestinationRule, HttpRoute, VirtualService

CLUSTER = "Kubernetes"


def sidecar_config(topology: Topology, workload: Workload, *, outbound_any: bool = True) -> L7Config:
    """Every service and route, for it may call any; policies and modes of its own workload."""
    peers = _of(topology, PeerAuthentication)
    mode = peer_mode(peers, workload, None)
    named = {port for peer in peers for port, _ in peer.port_modes}
    ports = {*workload.app.ports, *_target_ports(topology, workload), *named}
    modes = {port: peer_mode(peers, workload, port) for port in sorted(ports)}
    return _config(
        topology,
        role=Role.SIDECAR,
        name=workload.name,
        namespace=workload.namespace,
        labels=workload.labels,
        serves=tuple(_key(s) for s in topology.services if workload.name in s.endpoints),
        authorization=tuple(
            p
            for p in _of(topology, AuthorizationPolicy)
            if not p.target_refs and selects(p.selector or (), p.namespace, workload, ROOT_NAMESPACE)
        ),
        plain_ports=tuple(
            PlainPort(uid=f"{CLUSTER}//Pod/{w.namespace}/{w.name}", port=port)
            for w in topology.workloads
            for port in w.app.ports or _target_ports(topology, w)
            if peer_mode(peers, w, port) is Mode.DISABLE
        ),
        mode=mode,
        port_modes=tuple(PortMode(port=port, mode=m) for port, m in modes.items() if m is not mode),
        outbound_any=outbound_any,
    )


def waypoint_config(topology: Topology, name: str, namespace: str, services: Iterable[Service]) -> L7Config:
    """Waypoint `name` of `namespace` before `services`. PeerAuthentication does not concern it: it is always mTLS."""
    served = tuple(services)
    return _config(
        topology,
        role=Role.WAYPOINT,
        name=name,
        namespace=namespace,
        labels=(("gateway.networking.k8s.io/gateway-name", name),),
        serves=tuple(_key(s) for s in served),
        authorization=tuple(p for p in _of(topology, AuthorizationPolicy) if _targets(p, name, namespace, served)),
        mode=Mode.STRICT,
    )


def l7_view(
    topology: Topology, *, workload: Workload | None = None, waypoint: tuple[str, str] | None = None,
    services: Iterable[Service] = (), outbound_any: bool = True,
) -> dict:  # fmt: skip
    """Plain JSON: for a `workload`'s sidecar, or for `waypoint` (namespace, name) before `services`."""
    if workload is not None:
        return write(sidecar_config(topology, workload, outbound_any=outbound_any))
    namespace, name = waypoint or ("", "")
    return write(waypoint_config(topology, name, namespace, services))


def _config(topology: Topology, **own: object) -> L7Config:
    rules = tuple(_of(topology, DestinationRule))
    with_subsets = any(r.subsets for r in rules)
    return L7Config(
        trust_domain=topology.trust_domain,
        services=tuple(_service(s) for s in topology.services),
        workload_labels=tuple(
            WorkloadLabels(uid=f"{CLUSTER}//Pod/{w.namespace}/{w.name}", labels=w.labels)
            for w in topology.workloads
            if with_subsets and any(w.name in s.endpoints for s in topology.services)
        ),
        virtual_services=tuple(_of(topology, VirtualService)),
        http_routes=tuple(_of(topology, HttpRoute)),
        destination_rules=rules,
        **own,  # type: ignore[arg-type]
    )


def _of(topology: Topology, kind: type) -> list:
    return [r for r in topology.policies if isinstance(r, kind)]


def _target_ports(topology: Topology, workload: Workload) -> tuple[int, ...]:
    return tuple({p.target_port for s in topology.services if workload.name in s.endpoints for p in s.ports})


def _key(service: Service) -> str:
    return f"{service.namespace}/{service.hostname}"


def _service(service: Service) -> L7Service:
    return L7Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        address=service.address,
        ports=tuple(L7Port(port=p.port, target_port=p.target_port, protocol=p.protocol) for p in service.ports),
    )


def _targets(policy: AuthorizationPolicy, name: str, namespace: str, served: Iterable[Service]) -> bool:
    for ref in policy.target_refs:
        if ref.kind == "Gateway" and (policy.namespace, ref.name) == (namespace, name):
            return True
        if ref.kind == "GatewayClass" and policy.namespace == ROOT_NAMESPACE and ref.name == WAYPOINT_CLASS:
            return True
        if ref.kind == "Service" and any((s.namespace, s.name) == (policy.namespace, ref.name) for s in served):
            return True
    return False
