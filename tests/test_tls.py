"""Mesh TLS, judged on the bytes of the handshake and by the certificates a peer sees."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planes.mesh import net, suites, tls
from testbed.bench.loopback import CLIENT_URI, SERVER_URI, write_certificates
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.pki import CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE, CertificateAuthority, write_identity
from tests.loopback import ENV
from tests.ztunnels import pair


def contexts(folder: Path, name: str, uri: str) -> tls.IdentityContexts:
    files = tls.KeyFiles(
        certificate=folder / f"{name}.pem", key=folder / f"{name}.key", roots=folder / "roots.pem"
    )
    return tls.IdentityContexts(uri, files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificates(tmp_path, {"client": CLIENT_URI, "server": SERVER_URI})
    return tmp_path


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[bytes, bytes, ssl.SSLObject, ssl.SSLObject]:
    """(first flight of the client, everything the server sent, both ends) in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near, far = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    sent = {near: b"", far: b""}
    for _ in range(3):
        for end, outgoing in ((near, to_server), (far, to_client)):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            data = outgoing.read()
            sent[end] += data
            outgoing.write(data)
    return sent[near], sent[far], near, far


def extensions(hello: bytes) -> dict[int, bytes]:
    """Of a ClientHello in one record: RFC 8446 4.1.2, read by hand."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    found = {}
    while at < end:
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        found[kind] = hello[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def test_the_hello_offers_only_what_the_mesh_speaks(folder: Path) -> None:
    """TLS 1.3 alone, ALPN h2 alone, no server name, nothing to resume."""
    client, server = contexts(folder, "client", CLIENT_URI), contexts(folder, "server", SERVER_URI)
    hello, _, near, far = handshake(client.client, server.server)
    offered = extensions(hello)
    assert offered[43] == b"\x02\x03\x04"
    assert offered[16] == b"\x00\x03\x02h2"
    assert 0 not in offered
    assert 41 not in offered
    assert near.version() == far.version() == "TLSv1.3"
    assert tls.spiffe_uris(far.getpeercert()) == (CLIENT_URI,)


def offered_suites(hello: bytes) -> list[str]:
    """Of a ClientHello in one record."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    size = int.from_bytes(hello[at : at + 2])
    return [hello[i : i + 2].hex() for i in range(at + 2, at + 2 + size, 2)]


def test_a_proxy_offers_ztunnels_two_suites(tmp_path: Path) -> None:
    """AES-256 before AES-128, both GCM, no ChaCha20: read from what a ztunnel program sends to 15008."""
    with pair(tmp_path) as proxies:
        proxies.inbound.kill()
        proxies.inbound.wait()
        with socket.create_server((proxies.server, 15008)) as listener, proxies.connect():
            listener.settimeout(10)
            dialled, _ = listener.accept()
            with dialled:
                # 00ff is no suite: "no renegotiation", a word to servers older than TLS 1.3
                assert offered_suites(dialled.recv(4096)) == ["1302", "1301", "00ff"]


def test_a_proxy_takes_no_other_suite(tmp_path: Path) -> None:
    """A client that can do ChaCha20 only gets no handshake; one with AES-128 only does."""
    with pair(tmp_path) as proxies:
        for suite, works in (("TLS_CHACHA20_POLY1305_SHA256", False), ("TLS_AES_128_GCM_SHA256", True)):
            configuration = suites.CONFIGURATION.read_text().partition("Ciphersuites")[0] + f"Ciphersuites = {suite}\n"
            file = tmp_path / f"{suite}.cnf"
            file.write_text(configuration)
            code = (
                "import socket, ssl, sys; c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); c.check_hostname = False\n"
                "c.verify_mode = ssl.CERT_NONE; c.load_cert_chain('client.pem', 'client.key')\n"
                "c.set_alpn_protocols(['h2'])\n"
                f"s = c.wrap_socket(socket.create_connection(('{proxies.server}', 15008), 10)); print(s.cipher()[0])"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, env={**ENV, "OPENSSL_CONF": str(file)}, timeout=20,
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.stdout.strip() == (suite if works else ""), done.stderr


def test_a_server_sends_no_ticket(folder: Path) -> None:
    """A ticket would follow the client's Finished: nothing does."""
    client, server = contexts(folder, "client", CLIENT_URI), contexts(folder, "server", SERVER_URI)
    _, _, near, far = handshake(client.client, server.server)
    assert near.session is None or not near.session.has_ticket
    assert not far.session_reused


def test_a_client_without_a_certificate_is_refused(folder: Path) -> None:
    """TLS 1.3 tells the server at the client's last flight."""
    server = contexts(folder, "server", SERVER_URI)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(folder / "roots.pem")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(bare, server.server)


def test_a_renewed_certificate_is_shown_by_the_next_handshake(tmp_path: Path) -> None:
    """Files replaced while running: the same contexts, a new serial."""
    authority = CertificateAuthority(now=time.time(), trust_domain="cluster.local")

    def issue(name: str) -> tls.KeyFiles:
        leaf = authority.issue(Identity("cluster.local", "default", name), lifetime_s=3600.0, now=time.time())
        write_identity(tmp_path / name, leaf, authority.bundle, uid=os.geteuid())
        files = [tmp_path / name / file for file in (CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE)]
        return tls.KeyFiles(certificate=files[0], key=files[1], roots=files[2])

    client = tls.IdentityContexts(CLIENT_URI, issue("client"))
    server = tls.IdentityContexts(SERVER_URI, issue("server"))
    _, _, near, _ = handshake(client.client, server.server)
    before = near.getpeercert()["serialNumber"]
    assert not server.reload()
    issue("server")
    assert server.reload()
    _, _, near, _ = handshake(client.client, server.server)
    assert near.getpeercert()["serialNumber"] != before
    assert tls.spiffe_uris(near.getpeercert()) == (SERVER_URI,)


def test_files_that_do_not_fit_leave_the_old_certificate(folder: Path) -> None:
    """Half a renewal is refused with the reason, and handshakes go on."""
    client, server = contexts(folder, "client", CLIENT_URI), contexts(folder, "server", SERVER_URI)
    folder.joinpath("server.key").write_text("not a key")
    with pytest.raises(UsageError, match="belong together"):
        server.reload()
    _, _, near, _ = handshake(client.client, server.server)
    assert tls.spiffe_uris(near.getpeercert()) == (SERVER_URI,)


def test_a_server_that_never_answers_meets_the_limit(folder: Path) -> None:
    """TCP connects, TLS does not: the limit covers both."""
    client = contexts(folder, "client", CLIENT_URI)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()

        async def try_it() -> None:
            loop = asyncio.get_running_loop()
            await net.connect(loop, asyncio.Protocol, net.upstream(address), address, client.client, timeout_s=0.3)

        with pytest.raises(TimeoutError):
            asyncio.run(try_it())


def test_only_the_expected_identity_is_accepted() -> None:
    """Exact equality for clients, trust domain for servers (facts/hbone 1.2)."""
    assert tls.client_refusal((SERVER_URI,), frozenset({SERVER_URI})) is None
    assert tls.client_refusal((SERVER_URI,), frozenset({SERVER_URI + "x"}))
    assert tls.client_refusal((SERVER_URI,), frozenset())
    assert tls.server_refusal((CLIENT_URI,), "cluster.local") is None
    assert tls.server_refusal((CLIENT_URI,), "cluster")
