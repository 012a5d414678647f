"""HBONE in, for L7 proxies: CONNECT answered, its bytes handed on as a transport (facts/hbone 3.2, 3.3)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from planes.l7.program import Ended, L7Program
from planes.l7.serve import Downstream
from planes.l7.stream_transport import StreamTransport
from planes.mesh import frames, net, tls
from planes.mesh.hbone import RequestReceived
from planes.mesh.route import parse_authority
from planes.mesh.session import HboneSession

Target = Callable[[str, int, bool], tuple[int, tuple[str, int]]]
"""(host, port, whether it is an address) of an authority -> the status, and where the tunnel is taken to lead."""


class Tunnels(Ended):
    def __init__(self, program: L7Program, target: Target, serve: Callable[[Downstream], asyncio.Protocol]) -> None:
        self._program, self._target, self._serve = program, target, serve
        self.sessions: set[HboneSession] = set()
        self._secured: net.SecuredListener | None = None
        program.on_renewal.append(self._renew)

    async def listen(self, sock: socket.socket) -> None:
        """Accepts with the identity's present context (`sock` is taken over)."""
        self._secured = net.SecuredListener(self._program.loop, self._session, sock, self._program.contexts.server)

    async def _renew(self) -> None:
        if self._secured is not None:
            self._secured.context = self._program.contexts.server

    def _session(self) -> HboneSession:
        own_domain = tls.trust_domain(self._program.uri)
        return HboneSession(
            self._program.loop, client=False, refusal_of=lambda uris: tls.server_refusal(uris, own_domain),
            on_request=self._requested, on_ready=self.sessions.add, on_closed=self.sessions.discard,
        )  # fmt: skip

    def _requested(self, held: HboneSession, event: RequestReceived) -> None:
        stream, fields = event.stream, dict(event.fields)
        status, destination = 400, ("", 0)
        if fields.get(b":method") == b"CONNECT":
            try:
                host, port, is_address = parse_authority(fields.get(b":authority", b"").decode("latin-1"))
                status, destination = self._target(host, port, is_address)
            except ValueError:
                status = 400
        if status != 200:
            held.connection.respond(stream, status, end=True)
            if not stream.received_end:
                held.connection.reset(stream, frames.NO_ERROR)
            held.schedule()
            held.stream_done()
            return
        identity = next((uri for uri in held.peer_uris if tls.trust_domain(uri)), "")
        downstream = Downstream(source=held.peer_address, destination=destination, identity=identity, mtls=True)
        held.connection.respond(stream, 200)
        transport = StreamTransport(held, stream, {"peername": held.peer_address})
        transport.attach(self._serve(downstream))
        held.schedule()

    def drain(self) -> None:
        held, self._secured = self._secured, None
        if held is not None:
            held.close()
        for session in list(self.sessions):
            session.drain()

    def stop(self) -> None:
        for session in list(self.sessions):
            session.abort()

    @property
    def busy(self) -> bool:
        return any(session.active_streams for session in self.sessions)
