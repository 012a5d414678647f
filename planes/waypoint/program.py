"""A waypoint has one listener, 15008: whoever reaches it has proved who he is."""

from __future__ import annotations

from planes.l7.program import L7Program
from planes.waypoint.inbound import Inbound


class Waypoint(L7Program):
    async def open(self) -> None:
        inbound = Inbound(self)
        self.parts.append(inbound)
        await inbound.listen(self.listen(self.settings.ports.hbone))

    def reloaded(self) -> None:
        for part in self.parts:
            part.reloaded()  # type: ignore[attr-defined]
