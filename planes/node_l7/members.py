"""How one node's proxy reaches a workload: by a tunnel to the proxy of the workload's node, its own node's included.

The way leads through the proxy even on one node, for it is at its inbound side that policy is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from planes.l7.dial import Security, Way
from planes.l7.members import Members
from planes.l7.program import L7Program
from planes.l7.view import Cluster
from planes.mesh.view import HBONE_PORT, MeshView, NetworkMode, WorkloadView
from planes.node_l7.place import NAMESPACE


def node_proxies(mesh: MeshView) -> Mapping[str, WorkloadView]:
    """By node."""
    return {
        w.node: w
        for w in mesh.workloads
        if w.namespace == NAMESPACE and w.network_mode is NetworkMode.HOST_NETWORK and w.addresses
    }


class NodeMembers(Members):
    def __init__(self, program: L7Program) -> None:
        super().__init__(program, speaks_mtls=False)
        self._proxies = node_proxies(program.mesh)

    def security_of(self, workload: WorkloadView) -> Security:
        return super().security_of(workload) if workload.node in self._proxies else Security.PLAIN

    def way(self, workload: WorkloadView, port: int, cluster: Cluster | None, *, http2: bool, tcp: bool) -> Way:
        if self.security_of(workload) is not Security.HBONE:
            return super().way(workload, port, cluster, http2=http2, tcp=tcp)
        proxy = self._proxies[workload.node]
        return Way(
            security=Security.HBONE, address=(workload.addresses[0], port), http2=http2, tcp=tcp,
            expected=frozenset((str(proxy.identity),)), tunnel=(proxy.addresses[0], HBONE_PORT),
        )  # fmt: skip
