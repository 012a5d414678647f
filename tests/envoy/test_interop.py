"""Our ztunnel with a real Envoy at the other end of HBONE, each in both roles, on loopback.

What passes: data both ways, half-close, bulk. What must not: wrong identities and wrong authorities, and then no byte
reaches the application. Where Envoy itself differs (as a server it says END_STREAM, then RST_STREAM(NO_ERROR), and
gives up the rest when the target ends first) only our own end is judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planes.envoy import hbone
from testbed.bench.loopback import (
    CLIENT_URI,
    SERVER_URI,
    TRUST_DOMAIN,
    envoy_binary,
    local_view,
    write_certificates,
    ztunnel_config,
)
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
ROOT = Path(__file__).parents[2]
OTHER_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/other"
ALIEN_URI = "spiffe://elsewhere/ns/default/sa/client"
LIMIT_S = 20.0
APP_PORT = 8080
_numbers = itertools.count(1)


def fresh_pair() -> tuple[str, str]:
    """Two loopback addresses that no other case of any run uses."""
    net = f"127.{130 + os.getpid() % 100}.{os.getpid() // 100 % 100 + 1}"
    number = 2 * next(_numbers)
    return f"{net}.{number}", f"{net}.{number + 1}"


def wait_for(condition: Callable[[], bool], what: str, within_s: float = LIMIT_S) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, f"not in time: {what}"
        time.sleep(0.02)


def listening(address: str, port: int) -> bool:
    """By the kernel's table: a connection made to find out would be a tunnel, and count."""
    wanted = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == wanted and row[3] == "0A" for row in rows)


@dataclasses.dataclass(slots=True)
class Bench:
    """Certificates, an application that counts, and programs that end with the case."""

    folder: Path
    client: str
    server: str
    stack: contextlib.ExitStack
    reached: list[bytes] = dataclasses.field(default_factory=list)
    """First bytes of every connection that reached the application."""
    rest: list[bytes] = dataclasses.field(default_factory=list)
    """What came after the application had ended its side."""

    def run(self, name: str, argv: list[str], port: tuple[str, int]) -> None:
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        self.stack.callback(self._end, process)
        wait_for(lambda: listening(*port) or process.poll() is not None, f"{name} listens on {port}")
        assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-2000:]

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def envoy(self, name: str, config: dict, port: tuple[str, int]) -> None:
        config["admin"] = {"address": {"socket_address": {"address": self._address(name), "port_value": 15000}}}
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(config))
        argv = [str(envoy_binary()), "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        self.run(name, argv, port)

    def stats(self, name: str, counter: str) -> int:
        """Sum of an Envoy's counters whose names end so."""
        with socket.create_connection((self._address(name), 15000), timeout=5) as sock:
            sock.sendall(b"GET /stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        rows = (line.partition(": ") for line in text.splitlines())
        return sum(int(value) for key, _, value in rows if key.endswith(counter))

    def _address(self, name: str) -> str:
        return self.client if "client" in name else self.server

    def envoy_client(self, *, name: str = "client", expected: str = SERVER_URI, authority: str | None = None) -> None:
        config = hbone.client_config(
            listen=(self.client, 15001), authority=authority or f"{self.server}:{APP_PORT}",
            dial=(self.server, 15008), folder=self.folder, name=name, expected=expected,
        )  # fmt: skip
        self.envoy("envoy-client", config, (self.client, 15001))

    def envoy_server(self, *, name: str = "server") -> None:
        config = hbone.server_config(
            listen=(self.server, 15008), authorities=[f"{self.server}:{APP_PORT}"], folder=self.folder, name=name,
            trust_domain=TRUST_DOMAIN,
        )  # fmt: skip
        self.envoy("envoy-server", config, (self.server, 15008))

    def ztunnel(self, role: str, *, identity: tuple[str, str] | None = None, port: int = APP_PORT) -> None:
        """`identity` is (file name, URI) when it is not the role's own."""
        address = self.client if role == "client" else self.server
        view = local_view(self.client, self.server)
        config = ztunnel_config(role, address, view, (self.server, port) if role == "client" else None)
        config["options"]["access_log"] = "stderr"
        if identity is not None:
            file, uri = identity
            trust_domain = uri.split("/")[2]
            next(w for w in view["workloads"] if w["name"] == role)["trustDomain"] = trust_domain
            config["identities"] = {uri: {"certificate": f"{file}.pem", "key": f"{file}.key", "roots": "roots.pem"}}
        file_name = self.folder / f"ztunnel-{role}.json"
        file_name.write_text(json.dumps(config))
        argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(file_name)]
        self.run(f"ztunnel-{role}", argv, (address, 15001 if role == "client" else 15008))

    def call(self, message: bytes) -> bytes:
        """What the application answers through the tunnel; empty when a proxy cut the connection."""
        with socket.create_connection((self.client, 15001), timeout=LIMIT_S) as sock:
            sender = threading.Thread(target=self._send, args=(sock, message))
            sender.start()
            parts = []
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65536):
                    parts.append(part)
            sender.join()
            return b"".join(parts)

    @staticmethod
    def _send(sock: socket.socket, message: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(message)
            sock.shutdown(socket.SHUT_WR)

    def answer(self, listener: socket.socket) -> None:
        """`F…` is answered and the side shut at once; `E…` is echoed as it comes.

        Anything else is answered reversed, after the client's end.
        """
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer_one, args=(sock,), daemon=True).start()

    def _answer_one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(LIMIT_S)
            first = sock.recv(65536)
            self.reached.append(first[:16])
            if first[:1] == b"F":
                sock.sendall(b"bye" * 1000)
                sock.shutdown(socket.SHUT_WR)
                self.rest.append(b"".join(iter(lambda: sock.recv(65536), b"")))
            elif first[:1] == b"E":
                while first:
                    sock.sendall(first)
                    first = sock.recv(65536)
            else:
                rest = b"".join(iter(lambda: sock.recv(65536), b""))
                sock.sendall((first + rest)[::-1])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    client, server = fresh_pair()
    uris = {"client": CLIENT_URI, "server": SERVER_URI, "other": OTHER_URI, "alien": ALIEN_URI}
    write_certificates(tmp_path, uris)
    with contextlib.ExitStack() as stack:
        made = Bench(folder=tmp_path, client=client, server=server, stack=stack)
        for port in (APP_PORT, APP_PORT + 1):
            listener = socket.create_server((server, port))
            stack.callback(listener.close)
            # close() alone does not wake a thread in accept(); shutdown does
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=made.answer, args=(listener,), daemon=True).start()
        yield made


BULK = bytes(range(256)) * 4096


def exchange(bench: Bench) -> None:
    """Small, half-closed by the client, 1 MiB both ways at once, and many tunnels over one connection."""
    assert bench.call(b"E hello") == b"E hello"
    assert bench.call(b"hello") == b"olleh"
    assert bench.call(BULK) == BULK[::-1]
    assert bench.call(b"E" + BULK) == b"E" + BULK
    answers: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: bench.call(b"E%d" % n)})) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert answers == {n: b"E%d" % n for n in range(16)}


def test_envoy_client_to_our_inbound(bench: Bench) -> None:
    """Right identities: everything passes; Envoy used one connection, and our log names its identity."""
    bench.ztunnel("server")
    bench.envoy_client()
    exchange(bench)
    assert bench.stats("envoy-client", "cluster.hbone.upstream_cx_total") == 1
    wait_for(lambda: bench.log("ztunnel-server").count("connection complete") >= 20, "all tunnels are logged")
    assert f'src.identity="{CLIENT_URI}"' in bench.log("ztunnel-server")
    assert f"dst.hbone_addr={bench.server}:{APP_PORT}" in bench.log("ztunnel-server")


def test_our_outbound_to_envoy_server(bench: Bench) -> None:
    """Right identities: everything passes; Envoy saw one connection, and our log names its identity."""
    bench.envoy_server()
    bench.ztunnel("client")
    exchange(bench)
    assert bench.stats("envoy-server", "inbound.downstream_cx_total") == 1
    wait_for(lambda: bench.log("ztunnel-client").count("connection complete") >= 20, "all tunnels are logged")
    assert f'dst.identity="{SERVER_URI}"' in bench.log("ztunnel-client")


def test_an_application_that_ends_first_behind_envoys_client(bench: Bench) -> None:
    """Our inbound's END_STREAM leaves the other direction open: what the client sends afterwards arrives whole."""
    bench.ztunnel("server")
    bench.envoy_client()
    with socket.create_connection((bench.client, 15001), timeout=LIMIT_S) as sock:
        sock.sendall(b"F")
        assert b"".join(iter(lambda: sock.recv(65536), b"")) == b"bye" * 1000
        sock.sendall(BULK)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: bool(bench.rest), "the application has the rest")
    assert bench.rest == [BULK]


def test_an_application_that_ends_first_behind_envoys_server(bench: Bench) -> None:
    """Envoy gives up the rest with RST_STREAM(NO_ERROR), trap 7: to our client a clean end, the answer whole."""
    bench.envoy_server()
    bench.ztunnel("client")
    with socket.create_connection((bench.client, 15001), timeout=LIMIT_S) as sock:
        sock.sendall(b"F")
        assert b"".join(iter(lambda: sock.recv(65536), b"")) == b"bye" * 1000
    wait_for(lambda: "connection complete" in bench.log("ztunnel-client"), "the tunnel is logged")
    assert "error=" not in bench.log("ztunnel-client")


def nothing_passes(bench: Bench) -> None:
    for _ in range(2):
        assert bench.call(b"E secret") == b""
    assert bench.reached == []


def test_envoy_refuses_our_inbounds_identity(bench: Bench) -> None:
    """Envoy expects another account than the one our inbound proves."""
    bench.ztunnel("server")
    bench.envoy_client(expected=OTHER_URI)
    nothing_passes(bench)
    assert bench.stats("envoy-client", "ssl.fail_verify_san") >= 1


def test_our_outbound_refuses_envoys_identity(bench: Bench) -> None:
    """Envoy proves another account of the mesh than the one at that address."""
    bench.envoy_server(name="other")
    bench.ztunnel("client")
    nothing_passes(bench)
    assert f"server identity {OTHER_URI} is not expected" in bench.log("ztunnel-client")


def test_our_inbound_refuses_an_envoy_of_another_trust_domain(bench: Bench) -> None:
    """Signed by the mesh's CA, named in another trust domain."""
    bench.ztunnel("server")
    bench.envoy_client(name="alien")
    nothing_passes(bench)
    assert f"client identity {ALIEN_URI} is not of trust domain {TRUST_DOMAIN}" in bench.log("ztunnel-server")


def test_envoy_refuses_our_outbound_of_another_trust_domain(bench: Bench) -> None:
    """TLS 1.3 tells us late; our outbound must still not take it for a tunnel."""
    bench.envoy_server()
    bench.ztunnel("client", identity=("alien", ALIEN_URI))
    nothing_passes(bench)
    assert bench.stats("envoy-server", "ssl.fail_verify_san") >= 1
    assert "error=" in bench.log("ztunnel-client")


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        ("127.0.0.9:8080", "ip mismatch: {server} != 127.0.0.9"),
        ("{server}", "is not host:port"),
        ("nobody.default.svc:80", "no service is known by the name"),
        ("{server}:15008", "port 15008 is the proxy's own"),
    ],
)
def test_our_inbound_refuses_envoys_authority(bench: Bench, authority: str, reason: str) -> None:
    """Another address, no port, an unknown name, a port of the proxy: no upstream connection, and the log says why."""
    bench.ztunnel("server")
    bench.envoy_client(authority=authority.format(server=bench.server))
    nothing_passes(bench)
    assert bench.log("ztunnel-server").count(reason.format(server=bench.server)) == 2
    assert bench.stats("envoy-client", "cluster.hbone.upstream_cx_total") == 1


def test_envoy_refuses_our_outbounds_authority(bench: Bench) -> None:
    """Our client asks for a port that Envoy does not serve: its 404 is told in our log, its connection stays usable."""
    bench.envoy_server()
    bench.ztunnel("client", port=APP_PORT + 1)
    nothing_passes(bench)
    assert bench.log("ztunnel-client").count('error="http status: 404"') == 2
    assert bench.stats("envoy-server", "inbound.downstream_cx_total") == 1
