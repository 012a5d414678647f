"""A sidecar's listeners: 15001 for what its workload calls, 15006 for who calls it, 15008 if it takes HBONE."""

from __future__ import annotations

from planes.l7.program import L7Program
from planes.sidecar.inbound import Inbound
from planes.sidecar.outbound import Outbound


class Sidecar(L7Program):
    async def open(self) -> None:
        ports = self.settings.ports
        inbound, outbound = Inbound(self), Outbound(self)
        self.parts += [inbound, outbound]
        inbound.listen(self.listen(ports.inbound))
        if self.settings.listens_hbone:
            await inbound.listen_hbone(self.listen(ports.hbone))
        await outbound.listen(self.listen(ports.outbound))

    def reloaded(self) -> None:
        for part in self.parts:
            part.reloaded()  # type: ignore[attr-defined]
