"""What an exchange asks of the side that serves it, and who listens when it is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from planes.l7.decision import Decision
from planes.l7.message import Fields, Request, Response
from planes.l7.upstream import Upstream
from planes.l7.view import Cluster

if TYPE_CHECKING:
    from planes.l7.exchange import Exchange


class Place(Protocol):
    """Who decides: one listener's side of a proxy."""

    loop: asyncio.AbstractEventLoop

    def decide(self, exchange: Exchange) -> Decision:
        """Policy first, then the route."""
        ...

    def choose(self, exchange: Exchange) -> Upstream | None:
        """An endpoint for this attempt (`exchange.tried` holds those before); None: no healthy one."""
        ...

    def mirror(self, exchange: Exchange, cluster: Cluster) -> Upstream | None:
        """An endpoint for a copy."""
        ...

    def outgoing(self, exchange: Exchange) -> Request:
        """The request as it goes upstream, edited."""
        ...

    def incoming(self, exchange: Exchange, response: Response) -> Response:
        """The response as it goes downstream, edited."""
        ...

    def draw(self) -> float: ...
    def finished(self, exchange: Exchange) -> None:
        """After the last byte, both ways. For telemetry."""
        ...


class Nobody:
    """Takes what still comes for an exchange that is over. Also breaks the circle of exchange and stream."""

    __slots__ = ()

    def data(self, data: bytes | memoryview) -> None: ...
    def ended(self, trailers: Fields) -> None: ...
    def was_reset(self, reason: str, *, unprocessed: bool) -> None: ...
    def writable(self) -> None: ...


NOBODY = Nobody()
