"""Where sidecars go: one per workload that wants one, in its namespace, with its identity and no other."""

from __future__ import annotations

from collections.abc import Collection

from planes.l7.place import l7_view
from testbed.model.placement import Capture, CaptureKind, Placement, Proxy
from testbed.model.topology import Topology


def sidecars(
    topology: Topology,
    *,
    injected: Collection[str],
    view: dict,
    listens_hbone: bool = False,
    outbound_any: bool = True,
) -> Placement:
    """`injected` are names of workloads; `view` is the LOCAL one. `listens_hbone`: they take tunnels, too.

    Without `outbound_any` what no service or route knows is not reached at all (REGISTRY_ONLY).
    """
    uids = [w["uid"] for w in view["workloads"] if w["name"] in injected]
    proxies, captures = [], []
    for workload in topology.workloads:
        if workload.name not in injected:
            continue
        name = f"sidecar.{workload.name}"
        proxies.append(
            Proxy(
                name=name,
                role="sidecar",
                node=workload.node,
                sandbox=workload.name,
                program="planes.sidecar",
                serves=(workload.name,),
                identities=(workload.identity(topology.trust_domain),),
                view=view,
                options={
                    "workload": f"{workload.namespace}/{workload.name}",
                    "l7": l7_view(topology, workload=workload, outbound_any=outbound_any),
                    "sidecars": uids,
                    "open_address": "0.0.0.0",
                    "envoy_stats_port": 15090,
                    **({"listens_hbone": True} if listens_hbone else {}),
                },
            )
        )
        captures.append(Capture(workload=workload.name, kind=CaptureKind.SIDECAR, proxy=name))
    return Placement(plane="sidecar", proxies=tuple(proxies), captures=tuple(captures))
