"""Where ztunnels go: one per node that has captured workloads, entering these, holding their identities and no others.

Two terms that a plane adds up: `mesh_view` (what every proxy knows) and `ztunnels` (proxies and captures); what must
then be seen on the wire is `planes.claims`. Sidecars and waypoints are further terms beside them: a workload
label decides who captures, `waypoints` says which services are reached through one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from testbed.model.identity import Identity
from testbed.model.placement import Capture, CaptureKind, Placement, Proxy
from testbed.model.policy import policies_for_view
from testbed.model.topology import ROOT_NAMESPACE, Service, ServicePort, Topology, Workload

CLUSTER = "Kubernetes"
AMBIENT_LABELS = (None, "ambient")
_PREFERENCES = {
    "prefer-same-zone": ("Failover", ["Network", "Region", "Zone"]),
    "prefer-same-node": ("Failover", ["Network", "Region", "Zone", "Subzone", "Node"]),
    "local": ("Strict", ["Node"]),
}


def ambient_workloads(topology: Topology) -> frozenset[str]:
    """Names of the workloads whose label puts them, or leaves them, in the ambient mesh."""
    return frozenset(w.name for w in topology.workloads if w.plane in AMBIENT_LABELS)


def mesh_view(
    topology: Topology,
    *,
    captured: Collection[str],
    waypoints: Mapping[str, str] | None = None,
    workload_waypoints: Mapping[str, str] | None = None,
    extra_workloads: tuple[dict, ...] = (),
    extra_services: tuple[dict, ...] = (),
) -> dict:
    """The whole mesh in LOCAL shape. `captured` workloads take HBONE.

    `waypoints` is service name to its waypoint, as `namespace/hostname` or `network/address`; services not in it are
    reached directly, whatever the topology wishes. `workload_waypoints` is the same for workloads. The extras are the
    waypoints themselves, in LOCAL shape.
    """
    policies, attached = policies_for_view(topology)
    return {
        "workloads": [
            *(
                _workload(topology, w, w.name in captured, attached.get(w.name, []))
                | _through((workload_waypoints or {}).get(w.name))
                for w in topology.workloads
            ),
            *extra_workloads,
        ],
        "services": [*(_service(s, (waypoints or {}).get(s.name)) for s in topology.services), *extra_services],
        "policies": policies,
    }


def _workload(topology: Topology, w: Workload, captured: bool, policies: list[str]) -> dict:
    labels = dict(w.labels)
    return {
        "uid": f"{CLUSTER}//Pod/{w.namespace}/{w.name}",
        "name": w.name,
        "namespace": w.namespace,
        "serviceAccount": w.service_account,
        "trustDomain": topology.trust_domain,
        "workloadIps": [w.address],
        "protocol": "HBONE" if captured else "TCP",
        "node": w.node,
        "workloadName": w.group,
        "workloadType": "deployment",
        "canonicalName": labels.get("app", w.group),
        "canonicalRevision": labels.get("version", "latest"),
        "clusterId": CLUSTER,
        "locality": {"region": "", "zone": topology.node(w.node).zone, "subzone": ""},
        "authorizationPolicies": policies,
        "services": {
            f"{s.namespace}/{s.hostname}": _ports(s.ports) for s in topology.services if w.name in s.endpoints
        },
    }


def _service(service: Service, waypoint: str | None) -> dict:
    view: dict = {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [f"/{service.address}"],
        "ports": _ports(service.ports),
    }
    if service.traffic_distribution in _PREFERENCES:
        mode, preferences = _PREFERENCES[service.traffic_distribution]
        view["loadBalancer"] = {"mode": mode, "routingPreferences": preferences, "healthPolicy": "OnlyHealthy"}
    return view | _through(waypoint)


def _through(waypoint: str | None) -> dict:
    return {} if waypoint is None else {"waypoint": {"destination": waypoint, "hboneMtlsPort": 15008}}


def _ports(ports: tuple[ServicePort, ...]) -> dict[str, int]:
    return {str(p.port): p.target_port for p in ports}


def by_name(topology: Topology, view: dict) -> tuple[dict, dict[str, list[str]]]:
    """`view` as ztunnels have it, where workloads with a host name have no address, and the addresses of the names."""
    named = {(w.namespace, w.name): w.hostname for w in topology.workloads if w.hostname}
    hosts: dict[str, list[str]] = {}
    for w in topology.workloads:
        if w.hostname:
            hosts.setdefault(w.hostname, []).append(w.address)
    if not hosts:
        return view, hosts
    known = [
        {**w, "workloadIps": [], "hostname": host} if (host := named.get((w["namespace"], w["name"]))) else w
        for w in view["workloads"]
    ]
    return {**view, "workloads": known}, hosts


def ztunnels(topology: Topology, *, captured: Collection[str], view: dict) -> Placement:
    """One ztunnel per node that has captured workloads. Its identities are its workloads': that is its boundary."""
    proxies = []
    view, hosts = by_name(topology, view)
    for node in topology.nodes:
        entered = [w for w in topology.on_node(node.name) if w.name in captured]
        if entered:
            proxies.append(
                Proxy(
                    name=f"ztunnel.{node.name}",
                    role="ztunnel",
                    node=node.name,
                    sandbox=node.name,
                    program="planes.ztunnel",
                    serves=tuple(w.name for w in entered),
                    identities=tuple(sorted({w.identity(topology.trust_domain) for w in entered})),
                    view=view,
                    options={"hosts": hosts} if hosts else {},
                    enters=tuple(w.name for w in entered),
                )
            )
    captures = tuple(
        Capture(workload=w.name, kind=CaptureKind.IN_POD) for w in topology.workloads if w.name in captured
    )
    return Placement(plane="ztunnel", proxies=tuple(proxies), captures=captures)


def own_name(node: str) -> str:
    """Of the ztunnel on it, as a workload of the mesh."""
    return f"ztunnel-{node}"


def with_own_metrics(topology: Topology, placement: Placement) -> Placement:
    """Each ztunnel is a workload of the mesh as well, at its node's address: who may see its metrics, by HBONE, is a
    question of policy. It holds an identity of its own then, beside those of its node's workloads.
    """
    identity = Identity(topology.trust_domain, ROOT_NAMESPACE, "ztunnel")
    placed = [p for p in placement.proxies if p.role == "ztunnel"]
    entries = [_own(topology, p.node) for p in placed]
    proxies = tuple(
        dataclasses.replace(
            p,
            identities=tuple(sorted({*p.identities, identity})),
            view={**p.view, "workloads": [*p.view["workloads"], *entries]},
            options={**p.options, "own_workload": f"{ROOT_NAMESPACE}/{own_name(p.node)}"},
        )
        if p in placed
        else p
        for p in placement.proxies
    )
    return dataclasses.replace(placement, proxies=proxies)


def _own(topology: Topology, node: str) -> dict:
    return {
        "uid": f"{CLUSTER}//Pod/{ROOT_NAMESPACE}/{own_name(node)}",
        "name": own_name(node),
        "namespace": ROOT_NAMESPACE,
        "serviceAccount": "ztunnel",
        "trustDomain": topology.trust_domain,
        "workloadIps": [topology.node(node).address],
        "protocol": "HBONE",
        "node": node,
        "workloadName": "ztunnel",
        "workloadType": "daemonset",
        "canonicalName": "ztunnel",
        "canonicalRevision": "latest",
        "clusterId": CLUSTER,
        "locality": {"region": "", "zone": topology.node(node).zone, "subzone": ""},
        "services": {},
    }
