"""TLS that is half open: each direction ends by itself, refusals come before bytes, what is paused waits."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from planes.l7 import halfclose
from planes.l7.halfclose import HalfClosingTls
from planes.mesh import net
from planes.mesh.tls import IdentityContexts, KeyFiles
from testbed.model.identity import Identity
from testbed.pki import CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE, CertificateAuthority, write_identity


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> IdentityContexts:
    place: Path = tmp_path_factory.mktemp("identity")
    authority = CertificateAuthority(now=time.time(), trust_domain="cluster.local")
    identity = Identity("cluster.local", "default", "a")
    write_identity(place, authority.issue(identity, now=time.time()), authority.bundle, uid=0)
    files = KeyFiles(certificate=place / CERTIFICATE_FILE, key=place / KEY_FILE, roots=place / ROOTS_FILE)
    return IdentityContexts(str(identity), files)


class Side(asyncio.Protocol):
    """One end, with what came."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.ended.set()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


def between(
    contexts: IdentityContexts,
    talk: Callable[[Side, Side], Awaitable[None]],
    *,
    refusal: str | None = None,
) -> None:
    """`talk(client, server)` over loopback, both ends ours."""

    async def go() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[Side] = loop.create_future()

        def serve(_transport: asyncio.Transport) -> Side:
            made.set_result(Side())
            return made.result()

        listening = await loop.create_server(
            lambda: HalfClosingTls(loop, contexts.server_for(("istio",)), serve, server_side=True), "127.0.0.1", 0
        )
        address = listening.sockets[0].getsockname()
        try:
            client = await halfclose.connect(
                loop, Side, net.upstream(address), address, contexts.client_for(("istio",)),
                refusal_of=lambda _transport: refusal, server_name="outbound_.90_._.echo", timeout_s=5,
            )  # fmt: skip
            assert isinstance(client, Side)
            async with asyncio.timeout(10):
                server = await made
                await talk(client, server)
        finally:
            listening.close()

    asyncio.run(go())


def test_an_end_leaves_the_other_direction_open(contexts: IdentityContexts) -> None:
    """The client has said all; the server's late answer still comes, then its end; then both are gone."""

    async def talk(client: Side, server: Side) -> None:
        client.transport.write(b"question")
        client.transport.write_eof()
        await server.ended.wait()
        assert server.got == b"question"
        assert not client.ended.is_set()
        server.transport.write(b"late answer")
        server.transport.write_eof()
        await client.ended.wait()
        assert client.got == b"late answer"
        for side in (client, server):
            side.transport.close()
            await side.lost.wait()

    between(contexts, talk)


def test_what_a_paused_side_has_not_read_survives_its_own_end(contexts: IdentityContexts) -> None:
    """Bytes that wait undecrypted are not taken for a violation when close_notify is written over them."""
    message = bytes(range(256)) * 4096

    async def talk(client: Side, server: Side) -> None:
        client.transport.pause_reading()
        server.transport.write(message)
        await asyncio.sleep(0.1)
        client.transport.write(b"x")
        client.transport.write_eof()
        await server.ended.wait()
        server.transport.write_eof()
        await asyncio.sleep(0.05)
        assert not client.got
        client.transport.resume_reading()
        await client.ended.wait()
        assert client.got == message

    between(contexts, talk)


def test_a_refused_peer_gets_no_byte(contexts: IdentityContexts) -> None:
    """The refusal is the caller's error; the server sees a connection that ends."""

    async def talk(_client: Side, _server: Side) -> None:
        raise AssertionError("connected")

    with pytest.raises(ConnectionError, match="tls: not whom I want"):
        between(contexts, talk, refusal="not whom I want")


def test_a_client_without_a_certificate_is_turned_away(contexts: IdentityContexts) -> None:
    """By the handshake: nothing of ours is told to it."""

    async def go() -> bytes:
        loop = asyncio.get_running_loop()
        served = []
        listening = await loop.create_server(
            lambda: HalfClosingTls(loop, contexts.server_for(("istio",)), served.append, server_side=True),
            "127.0.0.1", 0,
        )  # fmt: skip
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.verify_mode = ssl.CERT_NONE
        try:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=bare)
            writer.write(b"hello")
            try:
                return await asyncio.wait_for(reader.read(), 5)
            except (ssl.SSLError, ConnectionError):
                return b""
            finally:
                writer.close()
                assert served == []
        finally:
            listening.close()

    assert asyncio.run(go()) == b""


def test_a_peer_that_never_shakes_hands_is_given_up(
    contexts: IdentityContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a ClientHello does not stay for ever."""
    monkeypatch.setattr(halfclose, "HANDSHAKE_LIMIT_S", 0.1)

    async def go() -> bytes:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: HalfClosingTls(loop, contexts.server_for(("istio",)), lambda _t: Side(), server_side=True),
            "127.0.0.1", 0,
        )  # fmt: skip
        try:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            got = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return got
        finally:
            listening.close()

    assert asyncio.run(go()) == b""
