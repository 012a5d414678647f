"""The ztunnel as a workload of its own: its metrics through HBONE, under its own identity and under policy.

Only its node's port 15008 is opened and only the metrics' port is reached through it, at the address where the metrics
listen anyway: they are served in clear no further than before.
"""

from __future__ import annotations

from planes.mesh import net
from planes.ztunnel.workload import WorkloadProxy


class OwnProxy(WorkloadProxy):
    """Acts for the ztunnel itself, in the ztunnel's own namespace."""

    async def start(self) -> None:
        settings = self.context.settings
        self.identity = (await self._known()).identity
        contexts = self.context.certificates.fetch(self.identity)
        self._secure(self._listen(settings.address, settings.ports.hbone), contexts.server)

    def destination(self, address: str, port: int) -> tuple[str, int]:
        settings = self.context.settings
        if port != settings.stats_port:
            raise ConnectionRefusedError(f"the ztunnel serves its metrics, at port {settings.stats_port}, and no more")
        return settings.admin_address, port

    def upstream(self, destination: tuple[str, int], source: str | None = None) -> object:
        return net.upstream(destination)  # a caller's address cannot be kept on a loopback that is not its own
