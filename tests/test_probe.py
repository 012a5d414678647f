"""The probe against servers that behave in each way it must tell apart."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from testbed.errors import UsageError
from testbed.verify.attempt import Attempt, parse_attempts
from testbed.verify.probe import make
from tests.loopback import ENV, app

NOW = datetime.datetime.now(datetime.UTC)
CLIENT, SERVER = "spiffe://cluster.local/ns/default/sa/client", "spiffe://cluster.local/ns/default/sa/web"


@dataclass
class Authority:
    """A CA of this test's own, so that the probe is not judged by the lab's."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.name)])
        self.certificate = self._sign(self.subject, self.key, ca=True, san=None)
        self.path = self.folder / f"{self.name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, san: str | None
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(minutes=5))
            .not_valid_after(NOW + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if san:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(san)])
            builder = builder.add_extension(names, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def leaf(self, identity: str) -> tuple[str, str]:
        """(certificate file, key file)"""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([]), key, ca=False, san=identity)
        stem = self.folder / f"{self.name}-{identity.rsplit('/', 1)[1]}"
        stem.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        stem.with_suffix(".key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(stem.with_suffix(".crt")), str(stem.with_suffix(".key"))


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A loopback server that hands each connection to `handle`, one after another; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                peer.settimeout(5)
                with peer, contextlib.suppress(OSError):
                    handle(peer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@dataclass
class HboneServer:
    """Terminates HBONE as a ztunnel would, in 30 lines of h2: 200 and a fixed answer, or a refusal by authority."""

    ours: Authority
    connects: list[dict[str, str]] = field(default_factory=list)
    inner: list[bytes] = field(default_factory=list)

    def __call__(self, peer: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.ours.leaf(SERVER))
        context.load_verify_locations(self.ours.path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(peer, server_side=True) as tls:
            connection = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
            )
            connection.initiate_connection()
            tls.sendall(connection.data_to_send())
            while data := tls.recv(65536):
                for event in connection.receive_data(data):
                    self.answer(connection, event)
                tls.sendall(connection.data_to_send())

    def answer(self, connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            self.connects.append(headers)
            if headers[":authority"].startswith("10.0.9."):
                connection.send_headers(event.stream_id, [(":status", "400")], end_stream=True)
            elif headers[":authority"].startswith("10.0.8."):
                connection.reset_stream(event.stream_id, 11)
            else:
                connection.send_headers(event.stream_id, [(":status", "200")])
        elif isinstance(event, h2.events.DataReceived):
            self.inner.append(event.data)
            answer = event.data
            if answer.startswith(b"GET "):
                named = b"x-workload: web-1\r\nx-peer-address: 10.0.1.2\r\n"
                answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + named + b"\r\nhello"
            # In two pieces: the probe must wait for the whole.
            connection.send_data(event.stream_id, answer[:20])
            connection.send_data(event.stream_id, answer[20:])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture
def hbone(authority: Authority) -> HboneServer:
    return HboneServer(authority)


def tunnel(authority: Authority, port: int) -> Attempt:
    cert, key = authority.leaf(CLIENT)
    return Attempt(
        name="t",
        kind="hbone",
        address="127.0.0.1",
        port=port,
        authority="10.0.2.2:8080",
        cert=cert,
        key=key,
        ca=str(authority.path),
        canary="canary-1",
        connect_headers={"Baggage": "k=v"},
    )


def test_hbone_through_and_through(authority: Authority, hbone: HboneServer) -> None:
    """Handshake, CONNECT and inner answer are told; the server saw authority, baggage and canary, and no :path."""
    with serving(hbone) as port:
        (outcome,) = make(tunnel(authority, port))

    assert (outcome.connected, outcome.handshake, outcome.error) == (True, "done", "")
    assert outcome.tls.startswith("TLSv1.3 ")
    assert outcome.peer_identity == SERVER
    assert (outcome.connect_status, outcome.status, outcome.bytes_received) == (200, 200, 5)
    assert (outcome.answered_by, outcome.seen_as) == ("web-1", "10.0.1.2")
    assert hbone.connects == [{":method": "CONNECT", ":authority": "10.0.2.2:8080", "baggage": "k=v"}]
    assert b"x-canary: canary-1\r\n" in hbone.inner[0]


def test_several_tunnels_share_one_connection(authority: Authority, hbone: HboneServer) -> None:
    """Five streams over two connections; raw bytes come back as sent."""
    with serving(hbone) as port:
        tries = make(replace(tunnel(authority, port), times=5, connections=2, inner="tcp", payload="abc"))

    assert [(t.connect_status, t.echoed, t.peer_identity, t.error) for t in tries] == [(200, True, SERVER, "")] * 5
    assert hbone.inner == [b"abccanary-1"] * 5


def test_a_refused_connect_is_told_with_its_status(authority: Authority, hbone: HboneServer) -> None:
    """A wrong authority's answer is a status, not an error of ours, and no canary leaves."""
    with serving(hbone) as port:
        (outcome,) = make(replace(tunnel(authority, port), authority="10.0.9.1:80"))

    assert (outcome.handshake, outcome.connect_status, outcome.status, outcome.error) == ("done", 400, None, "")
    assert hbone.inner == []


def test_a_reset_stream_is_told_with_its_code(authority: Authority, hbone: HboneServer) -> None:
    """Code 11 is ENHANCE_YOUR_CALM."""
    with serving(hbone) as port:
        (outcome,) = make(replace(tunnel(authority, port), authority="10.0.8.1:80"))

    assert outcome.error == "stream reset (ENHANCE_YOUR_CALM)"


@pytest.mark.parametrize("kind", ["hbone", "tls"])
@pytest.mark.parametrize("given", ["nothing", "a stranger's"])
def test_a_certificate_the_peer_does_not_take_is_refused_by_it(
    authority: Authority, hbone: HboneServer, tmp_path: Path, kind: str, given: str
) -> None:
    """TLS 1.3 lets the client think it is through; the probe reads on and tells who broke it off."""
    stranger = Authority(tmp_path, "stranger").leaf(CLIENT) if given == "a stranger's" else (None, None)
    with serving(hbone) as port:
        attempt = replace(tunnel(authority, port), kind=kind, cert=stranger[0], key=stranger[1])
        (outcome,) = make(attempt)

    assert (outcome.handshake, outcome.connect_status) == ("refused", None)
    assert outcome.error.startswith(("tls: ", "closed", "reset"))
    assert outcome.peer_identity == SERVER
    assert hbone.connects == []


def test_a_server_of_another_ca_is_refused_by_us(authority: Authority, tmp_path: Path) -> None:
    """The probe can also play the one who checks."""
    with serving(HboneServer(Authority(tmp_path, "other"))) as port:
        (outcome,) = make(tunnel(authority, port))

    assert outcome.handshake == "failed"
    assert outcome.error.startswith("tls: we refuse the peer's certificate")


def test_without_a_ca_the_identity_is_told_unverified(authority: Authority, hbone: HboneServer) -> None:
    """An attacker does not check whom it talks to, but sees the name; silence after the handshake lets it stand."""
    with serving(hbone) as port:
        (outcome,) = make(replace(tunnel(authority, port), kind="tls", ca=None))

    assert (outcome.handshake, outcome.peer_identity, outcome.error) == ("done", SERVER, "")


def test_tls_to_a_plaintext_port_fails(authority: Authority) -> None:
    """No TLS came back: told as such, with no identity."""
    with serving(lambda peer: (peer.recv(1000), peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))) as port:  # type: ignore[func-returns-value]
        (outcome,) = make(tunnel(authority, port))

    assert (outcome.connected, outcome.handshake, outcome.peer_identity) == (True, "failed", None)
    assert outcome.error.startswith("tls: ")


def test_http_carries_the_canary_and_tells_who_answered(tmp_path: Path) -> None:
    """Four requests over two connections to the real app, canary in header and body; its log agrees."""
    log = tmp_path / "seen.jsonl"
    with app("testbed.apps.web", "--name", "web-7", "--log", str(log)) as web:
        attempt = Attempt(
            name="h",
            kind="http",
            address="127.0.0.1",
            port=web.port,
            times=4,
            connections=2,
            canary="c-9",
            method="POST",
        )
        tries = make(replace(attempt, path="/p?size=6&status=403"))
        web.end()

    assert [(t.status, t.bytes_received, t.answered_by, t.seen_as, t.error) for t in tries] == [
        (403, 6, "web-7", "127.0.0.1", "")
    ] * 4
    seen = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["canary"], line["request_body_bytes"]) for line in seen] == [("c-9", 3)] * 4
    assert len({line["peer_port"] for line in seen}) == 2


def test_http2_tells_what_the_answer_says_of_who_gave_it() -> None:
    """Streams of two connections, to the real app, told as of HTTP/1.1."""
    with app("testbed.apps.web", "--name", "web-7") as web:
        attempt = Attempt(
            name="h", kind="http2", address="127.0.0.1", port=web.port, times=4, connections=2, canary="c-9",
            path="/p?size=6&status=403",
        )  # fmt: skip
        tries = make(attempt)

    assert [(t.status, t.bytes_received, t.answered_by, t.seen_as, t.error) for t in tries] == [
        (403, 6, "web-7", "127.0.0.1", "")
    ] * 4


@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b"c-9")])
def test_http2_carries_the_canary_in_a_coded_field(method: str, body: bytes) -> None:
    """Huffman's table has coded it: its bytes stand in the body only."""
    sent, fields = b"", {}

    def answer(peer: socket.socket) -> None:
        nonlocal sent
        made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        made.initiate_connection()
        while data := peer.recv(65536):
            sent += data
            for event in made.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields.update(event.headers)
                if isinstance(event, h2.events.StreamEnded):
                    made.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
            peer.sendall(made.data_to_send())

    with serving(answer) as port:
        (outcome,) = make(
            Attempt(name="h", kind="http2", address="127.0.0.1", port=port, canary="c-9", method=method)
        )

    assert (outcome.status, outcome.error) == (204, "")
    assert (fields[":method"], fields["x-canary"], sent.count(b"c-9")) == (method, "c-9", bool(body))


def test_a_server_that_speaks_no_http2_is_told() -> None:
    with serving(lambda peer: peer.recv(1000) and peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        (outcome,) = make(Attempt(name="h", kind="http2", address="127.0.0.1", port=port))

    assert outcome.connected and outcome.status is None
    assert outcome.error


def test_tcp_to_the_echo_with_a_banner() -> None:
    """Server-first: the banner is read, then what was sent comes back."""
    with app("testbed.apps.echo", "--banner", "hi") as echo:
        attempt = Attempt(name="e", kind="tcp", address="127.0.0.1", port=echo.port, times=2, banner=True, canary="c")
        tries = make(attempt)

    assert [(t.echoed, t.bytes_received, t.error) for t in tries] == [(True, 4, ""), (True, 1, "")]


def reset(peer: socket.socket) -> None:
    peer.recv(1)  # the rest stays unread, so that closing sends RST


@pytest.mark.parametrize(
    ("handle", "error"),
    [
        (lambda peer: None, ("closed", "reset")),
        (reset, ("reset",)),
        (lambda peer: peer.recv(1000) and threading.Event().wait(1), ("timeout",)),
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_an_end_without_an_answer_has_a_name(
    handle: Callable[[socket.socket], None], error: tuple[str, ...], kind: str
) -> None:
    """Closed, reset and silent are three results; each try of three opens a connection of its own after a failure."""
    with serving(handle) as port:
        attempt = Attempt(
            name="x", kind=kind, address="127.0.0.1", port=port, times=2, timeout_s=0.3, payload="x" * 100
        )
        tries = make(attempt)

    assert len(tries) == 2
    assert tries[0].connected and tries[0].error in error and tries[0].status is None


def test_a_closed_port_is_refused(tmp_path: Path) -> None:
    """The whole program: attempts from a file, results to a file, code 0, because a refusal is a result."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        attempts, out = tmp_path / "attempts.json", tmp_path / "out.json"
        attempts.write_text(json.dumps([{"name": "a", "kind": "tcp", "address": "127.0.0.1", "port": port}]))
        command = [sys.executable, "-m", "testbed.verify.probe", "--attempts", str(attempts), "--out", str(out)]
        subprocess.run(command, check=True, env=ENV, timeout=60)

    (result,) = json.loads(out.read_text())
    assert (result["name"], result["kind"]) == ("a", "tcp")
    assert (result["tries"][0]["connected"], result["tries"][0]["error"]) == (False, "refused")


def test_the_program_reads_stdin_and_refuses_nonsense_with_code_2() -> None:
    """A wrong field is the caller's mistake, told on stderr."""
    command = [sys.executable, "-m", "testbed.verify.probe"]
    text = json.dumps([{"name": "a", "kind": "udp", "address": "127.0.0.1", "port": 1}])
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=ENV, timeout=60)

    assert done.returncode == 2
    assert "attempt 'a': kind 'udp' is not known; known: tcp, http, http2, tls, mtls, hbone" in done.stderr


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "hbone"},
        {"kind": "tcp", "times": 0},
        {"kind": "tcp", "times": 2, "connections": 3},
        {"kind": "tls", "cert": "x"},
        {"kind": "tcp", "port_number": 1},
    ],
)
def test_attempts_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    """Checked at the door, all before the first packet."""
    with pytest.raises(UsageError):
        parse_attempts(json.dumps([{"name": "a", "address": "127.0.0.1", "port": 1, **fields}]))
