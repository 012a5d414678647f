"""Where real Envoys go: the placements of our own planes with Envoy in each role, for results to be held against.

Raises MachineError where Envoy's binary is not: it is an extra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from planes.envoy.binary import required
from testbed.model.placement import Capture, CaptureKind, Placement, Proxy
from testbed.model.topology import Topology

_ROLES = {"sidecar": "envoy-sidecar", "waypoint": "envoy-waypoint"}


def ztunnels(topology: Topology, *, captured: Collection[str], view: dict) -> Placement:
    """One per workload, in its namespace: Envoy enters no other's (see `planes.envoy.ztunnel`)."""
    required()
    proxies, captures = [], []
    for workload in topology.workloads:
        if workload.name in captured:
            proxies.append(
                Proxy(
                    name=f"envoy.{workload.name}",
                    role="envoy-ztunnel",
                    node=workload.node,
                    sandbox=workload.name,
                    program="planes.envoy",
                    serves=(workload.name,),
                    identities=(workload.identity(topology.trust_domain),),
                    view=view,
                    options={"workload": f"{workload.namespace}/{workload.name}"},
                )
            )
            captures.append(Capture(workload=workload.name, kind=CaptureKind.SIDECAR, proxy=f"envoy.{workload.name}"))
    return Placement(plane="envoy-ztunnel", proxies=tuple(proxies), captures=tuple(captures))


def instead(ours: Placement) -> Placement:
    """Our sidecars and waypoints with Envoy in their place: same sandboxes, identities, views and captures."""
    required()
    proxies = tuple(
        dataclasses.replace(p, name=f"envoy-{p.name}", role=_ROLES[p.role], program="planes.envoy")
        for p in ours.proxies
    )
    captures = tuple(
        dataclasses.replace(c, proxy=f"envoy-{c.proxy}" if c.proxy is not None else None) for c in ours.captures
    )
    return dataclasses.replace(ours, proxies=proxies, captures=captures)
