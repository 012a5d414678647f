"""How a tunnel is asked for: an HBONE session to a peer that proves who it is, then a CONNECT (facts/hbone 1.3)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from planes.mesh import frames, net, tls
from planes.mesh.hbone import Stream
from planes.mesh.session import HboneSession

_BLOCKS_KEPT = 1024
_blocks: dict[tuple[str, str], bytes] = {}


async def open_session(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    destination: tuple[str, int],
    context: ssl.SSLContext,
    *,
    expected: frozenset[str],
    sessions: set[HboneSession],
    revoked: Callable[[bytes], str | None] | None = None,
) -> HboneSession:
    """`sock` (taken over) becomes a session, which stands in `sessions` for as long as it is open.

    `revoked` is asked of the peer's certificate, and again before the session counts. Raises OSError (ConnectionError,
    ssl.SSLError), TimeoutError.
    """

    def made() -> HboneSession:
        return HboneSession(
            loop, client=True, refusal_of=lambda uris: tls.client_refusal(uris, expected), on_closed=sessions.discard,
            revoked=revoked,
        )  # fmt: skip

    session = await net.connect(loop, made, sock, destination, context)
    assert isinstance(session, HboneSession)
    if session.refusal is not None:
        raise ConnectionError(f"tls: {session.refusal}")
    # As ztunnel, which knows the peer's stream limit before it pools; a refused client certificate shows here, too.
    try:
        async with asyncio.timeout(net.CONNECT_TIMEOUT_S):
            await session.settings_seen
    except TimeoutError as cause:
        session.abort()
        raise ConnectionError(f"{destination[0]}:{destination[1]} sent no SETTINGS") from cause
    # A list that came since the handshake cut those in `sessions`, and this was not in there yet.
    if revoked is not None and (refusal := revoked(session.peer_certificate)) is not None:
        session.abort()
        raise ConnectionError(f"tls: {refusal}")
    sessions.add(session)
    return session


def ask(session: HboneSession, block: bytes) -> tuple[Stream, asyncio.Future[int]]:
    """A CONNECT, and its status, 0 where none will come. The stream wants its sink before the next turn."""
    stream = session.connection.open(block)
    answer: asyncio.Future[int] = session.loop.create_future()
    session.answers[stream.id] = lambda status, _: answer.done() or answer.set_result(status)
    session.schedule()
    return stream, answer


def block(authority: str, baggage: str) -> bytes:
    """The header block of a CONNECT, as far as it is the same each time: remembered."""
    held = _blocks.get((authority, baggage))
    if held is None:
        if len(_blocks) > _BLOCKS_KEPT:
            _blocks.clear()
        fields = [(b":method", b"CONNECT"), (b":authority", authority.encode())]
        if baggage:
            fields.append((b"baggage", baggage.encode()))
        held = _blocks[authority, baggage] = frames.encode_fields(fields)
    return held
