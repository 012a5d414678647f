"""Where real Envoys go: the placements of our own planes with Envoy in each role, for results to be held against."""

from __future__ import annotations

from collections.abc import Collection

from testbed.model.placement import Capture, CaptureKind, Placement, Proxy
from testbed.model.topology import Topology


def ztunnels(topology: Topology, *, captured: Collection[str], view: dict) -> Placement:
    """One per workload, in its namespace: Envoy enters no other's (see `planes.envoy.ztunnel`)."""
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
