"""A TLS connection whose reading is paused from its start gives what came with the handshake's end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from planes.mesh import net, tls
from testbed.bench.loopback import write_certificates
from tests.l7relay import until

URI = "spiffe://cluster.local/ns/default/sa/a"


class Paused(asyncio.Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        transport.pause_reading()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data


class Eager(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")  # type: ignore[attr-defined]


def test_what_came_while_paused_comes_after_resuming(tmp_path: Path) -> None:
    """Again and again, for whether bytes share a segment with the handshake is chance."""
    write_certificates(tmp_path, {"a": URI})
    files = tls.KeyFiles(certificate=tmp_path / "a.pem", key=tmp_path / "a.key", roots=tmp_path / "roots.pem")
    contexts = tls.IdentityContexts(URI, files)
    loop = net.new_loop()

    async def scenario() -> None:
        made: list[Paused] = []

        def serve() -> Paused:
            made.append(Paused())
            return made[-1]

        listener = net.listen("127.0.0.1", 0)
        address = listener.getsockname()
        server = await net.serve(loop, serve, listener, contexts.server)
        for _ in range(20):
            await net.connect(loop, Eager, net.upstream(address), address, contexts.client)
            await until(lambda: made[-1].transport is not None)
            await asyncio.sleep(0.01)
            net.resume_reading(loop, made[-1].transport)  # type: ignore[arg-type]
            await until(lambda: made[-1].got == b"hello")
        server.close()

    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()
