"""The mesh's root is replaced while a ztunnel runs: who is let in at each step, and what stays open through all."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from pathlib import Path

from planes.mesh import tls
from planes.ztunnel.program import Ztunnel
from testbed.bench.loopback import CLIENT_URI, SERVER_URI
from testbed.model.identity import Identity
from testbed.pki import CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE, CertificateAuthority, write_identity
from tests.jumping import JumpingLoop
from tests.test_time import SERVER, run_ztunnel


class Rotation:
    """An old and a new root, and folders with leaves of either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old, self.new = (CertificateAuthority(now=time.time()) for _ in range(2))

    def write(
        self, name: str, account: str, signer: CertificateAuthority, *roots: CertificateAuthority
    ) -> tls.KeyFiles:
        place = self.folder / name
        leaf = signer.issue(Identity("cluster.local", "default", account), now=time.time())
        write_identity(place, leaf, b"".join(root.bundle for root in roots), uid=os.geteuid())
        certificate, key, trusted = (place / file for file in (CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE))
        return tls.KeyFiles(certificate=certificate, key=key, roots=trusted)

    async def enter(
        self, signer: CertificateAuthority, *trusted: CertificateAuthority
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection of a client with a leaf of `signer`; None if either side refused the other."""
        files = self.write("client", "client", signer, *trusted)
        try:
            reader, writer = await asyncio.open_connection(
                SERVER, 15008, ssl=tls.IdentityContexts(CLIENT_URI, files).client, server_hostname=""
            )
            # A refused client certificate shows on the first read; SETTINGS show that it was taken.
            return (reader, writer) if len(await reader.read(9)) == 9 else None
        except (ssl.SSLError, ConnectionError):
            return None


def test_roots_overlap_and_the_old_one_is_forgotten(tmp_path: Path) -> None:
    """Old only; both, with leaves of both; the server's leaf changes; new only. An early connection outlives it all."""
    made = Rotation(tmp_path)
    old, new = made.old, made.new
    loop = JumpingLoop()

    async def body(ztunnel: Ztunnel) -> None:
        async def becomes(signer: CertificateAuthority, *roots: CertificateAuthority) -> None:
            made.write("server", "server", signer, *roots)
            ztunnel.reload()
            await asyncio.sleep(0.5)

        early = await made.enter(old, old)
        assert early
        assert not await made.enter(new, old)
        await becomes(old, old, new)
        assert await made.enter(old, old)
        assert await made.enter(new, old, new)
        assert not await made.enter(new, new), "the server still shows a leaf of the old root"
        await becomes(new, old, new)
        assert await made.enter(new, new)
        assert await made.enter(old, old, new)
        await becomes(new, new)
        assert await made.enter(new, new)
        assert not await made.enter(old, old, new), "the old root is still trusted"
        reader, writer = early
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\10\6\0\0\0\0\0pingpong")
        seen = b""
        while b"pingpong" not in seen:
            part = await reader.read(1000)
            assert part, "the early connection did not outlive the rotation"
            seen += part

    files = made.write("server", "server", old, old)
    run_ztunnel(loop, tmp_path, "server", body, identities={SERVER_URI: files})
    loop.close()
