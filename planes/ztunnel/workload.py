"""One workload's proxy: its three listeners, its pool and its live connections. Shared things are in `Context`."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from planes.mesh import net
from planes.mesh.pool import Pool
from planes.mesh.relay import Endpoint, Pipe, Tunnel
from planes.mesh.resolver import Resolver
from planes.mesh.session import HboneSession
from planes.ztunnel.certificates import Certificates
from planes.ztunnel.decisions import Decisions, Local
from planes.ztunnel.revocation import Revocation
from planes.ztunnel.settings import Settings
from planes.ztunnel.telemetry import Telemetry
from testbed.errors import PeerError

WORKLOAD_WAIT_S = 5.0


@dataclass(slots=True)
class Context:
    """What all workloads of one ztunnel share; the one mutable shell object."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    decisions: Decisions
    certificates: Certificates
    telemetry: Telemetry
    resolver: Resolver
    revocation: Revocation | None = None
    draining: bool = False
    draw: Callable[[], float] = field(default=random.random)

    def warn(self, text: str) -> None:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self.settings.name} {text}", file=sys.stderr, flush=True)


class LiveConnection:
    """An inbound connection with what policy judged it by, so that it can be judged again (facts/hbone 2.6)."""

    __slots__ = ("close", "destination_port", "identity", "source_ip")

    def __init__(self, source_ip: str, destination_port: int, identity: str | None, close: Callable[[], None]) -> None:
        self.source_ip = source_ip
        self.destination_port = destination_port
        self.identity = identity
        self.close = close


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who serves the three listeners."""

    outbound: Callable[[WorkloadProxy, Tunnel], Coroutine[None, None, None]]
    plaintext: Callable[[WorkloadProxy, Pipe], Coroutine[None, None, None]]
    hbone: Callable[[WorkloadProxy], HboneSession]


class WorkloadProxy:
    def __init__(
        self, context: Context, sides: Sides, namespace: str, name: str, *, netns: int | None = None
    ) -> None:
        self.context = context
        self._sides = sides
        self.namespace = namespace
        self.name = name
        self.netns = netns
        """Owned: closed by `stop`."""
        self.identity = ""
        """Whose certificate it holds; empty before the view knew the workload."""
        self.pool = Pool()
        self.sessions: set[HboneSession] = set()
        self.endpoints: set[Endpoint] = set()
        self.live: set[LiveConnection] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self._secured: net.SecuredListener | None = None
        """For HBONE."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<WorkloadProxy {self.namespace}/{self.name} connections {len(self.endpoints)}>"

    @property
    def local(self) -> Local | None:
        return self.context.decisions.local(self.namespace, self.name)

    async def start(self) -> None:
        """Opens the three listeners inside the workload's namespace, once the view knows the workload."""
        context, settings = self.context, self.context.settings
        self.identity = (await self._known()).identity
        contexts = context.certificates.fetch(self.identity)
        address = settings.address if self.netns is None else "0.0.0.0"
        ports = settings.ports
        plan = (
            (ports.outbound, lambda: Tunnel(lambda e: self.spawn(self._sides.outbound(self, e)))),
            (ports.plaintext, lambda: Pipe(lambda e: self.spawn(self._sides.plaintext(self, e)))),
        )
        try:
            for port, factory in plan:
                self._servers.append(await net.serve(context.loop, factory, self._listen(address, port)))
            self._secure(self._listen(address, ports.hbone), contexts.server)
        except BaseException:
            self.close_listeners()
            raise

    def _listen(self, address: str, port: int) -> socket.socket:
        settings = self.context.settings
        return net.listen(address, port, netns=self.netns, mark=settings.mark, transparent=settings.original_source)

    def _secure(self, sock: socket.socket, tls_context: ssl.SSLContext) -> None:
        self._secured = net.SecuredListener(self.context.loop, lambda: self._sides.hbone(self), sock, tls_context)

    async def renew(self) -> None:
        """The identity's contexts were made anew: the next handshake is by the new key, certificate and roots."""
        local = self.local
        if self._secured is not None and local is not None:
            self._secured.context = self.context.certificates.fetch(local.identity).server

    async def _known(self) -> Local:
        give_up_s = self.context.loop.time() + WORKLOAD_WAIT_S
        while (local := self.local) is None:
            if self.context.loop.time() > give_up_s:
                raise PeerError(f"workload {self.namespace}/{self.name} is not in the view")
            await asyncio.sleep(0.05)
        return local

    def spawn(self, work: object) -> None:
        task = self.context.loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def destination(self, address: str, port: int) -> tuple[str, int]:
        """Where a tunnel for `port`, that came to `address`, goes on to. Raises OSError."""
        return address, port

    def upstream(self, destination: tuple[str, int], source: str | None = None) -> object:
        settings = self.context.settings
        spoofed = source if settings.original_source else None
        return net.upstream(destination, netns=self.netns, mark=settings.mark, source=spoofed)

    def recheck(self) -> None:
        """The policies or the view changed: close what is now denied, drop pool entries that went stale."""
        for connection in list(self.live):
            verdict = self.context.decisions.verdict(
                self.namespace, self.name, connection.source_ip, connection.destination_port, connection.identity
            )
            if not verdict.allowed:
                self.live.discard(connection)
                connection.close()
        self.pool.expire(self.context.loop.time())

    def close_listeners(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._secured is not None:
            self._secured.close()
            self._secured = None

    def drain(self) -> None:
        """Listeners close at once; HBONE peers are told to go elsewhere; what runs may go on (facts/hbone 1.9)."""
        self.close_listeners()
        for session in list(self.sessions):
            if not session.connection.client:
                session.drain()
        self.pool.clear()

    @property
    def identities(self) -> set[str]:
        """Whose certificates it needs: as it began, and as the view has it now."""
        local = self.local
        return {self.identity} if local is None else {self.identity, local.identity}

    @property
    def busy(self) -> bool:
        return bool(self.endpoints)

    def stop(self) -> None:
        self.close_listeners()
        for endpoint in list(self.endpoints):
            endpoint.drop()
        for session in list(self.sessions):
            session.abort()
        for task in list(self._tasks):
            task.cancel()
        if self.netns is not None:
            os.close(self.netns)
            self.netns = None
