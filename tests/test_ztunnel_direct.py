"""The ztunnel program in dedicated mode on loopback: real processes, real TLS, no namespaces and no root."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from testbed.bench.loopback import CLIENT_URI, SERVER_URI, local_view, write_certificates, ztunnel_config

NET = f"127.{78 + os.getpid() % 40}.{os.getpid() // 40 % 250 + 1}"
CLIENT, SERVER = f"{NET}.1", f"{NET}.2"
ROOT = Path(__file__).parent.parent


def echo_until_eof(listener: socket.socket) -> None:
    """Answers only after the client's FIN: what came, reversed. Half-close is thereby part of every exchange."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock:
            got = b"".join(iter(partial(sock.recv, 65536), b""))
            sock.sendall(got[::-1])


def wait_for(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "condition not met in time"
        time.sleep(0.05)


def listening(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """An outbound and an inbound ztunnel, and an application behind the latter on port 8080."""
    folder = tmp_path_factory.mktemp("pair")
    write_certificates(folder, {"client": CLIENT_URI, "server": SERVER_URI, "alien": "spiffe://other/ns/a/sa/b"})
    view = folder / "view.json"
    view.write_text(json.dumps(local_view(CLIENT, SERVER)))
    processes, logs = [], {}
    for name, address in (("server", SERVER), ("client", CLIENT)):
        config = ztunnel_config(name, address, "view.json", (SERVER, 8080) if name == "client" else None)
        home = folder / f"z-{name}"
        home.mkdir()
        for file in (f"{name}.pem", f"{name}.key", "roots.pem", "view.json"):
            home.joinpath(file).symlink_to(folder / file)
        logs[name] = home / "access.log"
        config["options"] |= {"access_log": str(logs[name]), "stats_port": 15020, "admin_address": address}
        home.joinpath("config.json").write_text(json.dumps(config))
        argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(home / "config.json")]
        processes.append(subprocess.Popen(argv, cwd=ROOT))
    listener = socket.create_server((SERVER, 8080))
    threading.Thread(target=echo_until_eof, args=(listener,), daemon=True).start()
    wait_for(lambda: listening((SERVER, 15008)) and listening((CLIENT, 15001)))
    yield {"folder": folder, "view": view, "logs": logs}
    listener.close()
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.wait(10) == 0


def call(message: bytes) -> bytes:
    """Through both ztunnels, as an application would; empty when the proxy closed."""
    with socket.create_connection((CLIENT, 15001), timeout=10) as sock:
        try:
            sock.sendall(message)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))
        except OSError:  # reset, at whichever of the three it showed
            return b""


def secured(folder: Path, name: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    context.load_verify_locations(folder / "roots.pem")
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection((SERVER, 15008), timeout=10))


def connect_status(folder: Path, fields: list[tuple[str, str]]) -> int:
    """Status that an independent HTTP/2 client gets for its CONNECT."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_outbound_headers=False))
    with secured(folder, "client") as sock:
        made.initiate_connection()
        made.send_headers(1, fields)
        sock.sendall(made.data_to_send())
        while True:
            data = sock.recv(65536)
            assert data, "connection closed without an answer"
            for event in made.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return int(dict(event.headers)[b":status"])


def test_bytes_and_half_close_cross_both_proxies(pair: dict):
    """The answer to a client that has shut its write side still reaches it, whole, also when it is 5 MB."""
    for message in (b"ping", bytes(range(256)) * 20_000):
        assert call(message) == message[::-1]


def test_both_sides_log_the_tunnel(pair: dict):
    """The inbound line names the authority and the identity that the client proved."""
    call(b"logged")
    wait_for(lambda: "connection complete" in pair["logs"]["server"].read_text())
    line = pair["logs"]["server"].read_text().splitlines()[-1]
    assert f"{SERVER}:8080" in line
    assert CLIENT_URI in line
    assert "inbound" in line


def scraped(address: str, name: str, **labels: str) -> int:
    """Sum of a metric over the series that carry these labels, read as a scraper would."""
    with urllib.request.urlopen(f"http://{address}:15020/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    chosen = [line for line in lines if line.startswith(name + "{") and all(label in line for label in wanted)]
    return sum(int(line.rpartition(" ")[2]) for line in chosen)


def test_bytes_are_counted_while_the_connection_lives(pair: dict):
    """Both reporters count the same direction under the same name, before the connection has closed."""
    name, mtls = "istio_tcp_received_bytes_total", {"connection_security_policy": "mutual_tls"}
    reporters = {CLIENT: {"reporter": "source"} | mtls, SERVER: {"reporter": "destination"} | mtls}
    before = {address: scraped(address, name, **labels) for address, labels in reporters.items()}
    with socket.create_connection((CLIENT, 15001), timeout=10) as still_open:
        still_open.sendall(b"x" * 1000)
        for address, labels in reporters.items():
            wait_for(lambda a=address, wanted=labels: scraped(a, name, **wanted) == before[a] + 1000)


def test_a_refused_connection_is_counted_with_its_reason(pair: dict):
    """Upstream refused: 503 at the server, counted as failed under CONNECT, logged with the error."""
    name = "istio_tcp_connections_failed_total"
    before = scraped(SERVER, name, response_flags="CONNECT")
    assert connect_status(pair["folder"], [(":method", "CONNECT"), (":authority", f"{SERVER}:9")]) == 503
    assert scraped(SERVER, name, response_flags="CONNECT") == before + 1
    assert 'error="connect to' in pair["logs"]["server"].read_text().splitlines()[-1]


def test_the_server_names_the_client_by_what_it_knows(pair: dict):
    """An address the view has not got leaves the client's baggage; the identity is the proved one."""
    call(b"named")
    wait_for(lambda: 'src.workload="client"' in pair["logs"]["server"].read_text())
    line = next(t for t in pair["logs"]["server"].read_text().splitlines() if "src.workload" in t)
    assert 'src.namespace="default"' in line
    assert f'src.identity="{CLIENT_URI}"' in line
    assert f'dst.identity="{SERVER_URI}"' in line


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(":method", "CONNECT"), (":authority", f"{SERVER}:8080")], 200),
        ([(":method", "CONNECT"), (":authority", f"{CLIENT}:8080")], 400),
        ([(":method", "CONNECT"), (":authority", SERVER)], 400),
        ([(":method", "GET"), (":scheme", "https"), (":authority", f"{SERVER}:8080"), (":path", "/")], 400),
        ([(":method", "CONNECT"), (":authority", f"{SERVER}:15008")], 503),
        ([(":method", "CONNECT"), (":authority", "nobody.default:80")], 503),
        ([(":method", "CONNECT"), (":authority", f"{SERVER}:9")], 503),
    ],
)
def test_statuses_are_ztunnels(pair: dict, fields: list, status: int):
    """facts/hbone 1.5, asked by h2 and not by our own client."""
    assert connect_status(pair["folder"], fields) == status


def test_another_trust_domain_is_cut_after_the_handshake(pair: dict):
    """TLS 1.3: the client believes itself connected, and the first read ends."""
    with secured(pair["folder"], "alien") as sock:
        try:
            assert sock.recv(100) == b""
        except (ConnectionResetError, ssl.SSLError):
            pass


def test_a_new_policy_denies_with_401_and_cuts_what_is_open(pair: dict):
    """A DENY closes an open tunnel, and the next CONNECT gets 401; a broken view changes nothing."""
    text = pair["view"].read_text()
    view = json.loads(text)
    match = {"principals": [{"Exact": CLIENT_URI.removeprefix("spiffe://")}]}
    view["policies"] = [
        {
            "name": "no", "namespace": "default", "scope": "Global", "action": "Deny", "dryRun": False,
            "rules": [[[match]]],
        }
    ]
    good = [(":method", "CONNECT"), (":authority", f"{SERVER}:8080")]
    with socket.create_connection((CLIENT, 15001), timeout=10) as still_open:
        still_open.sendall(b"x")
        time.sleep(0.5)
        pair["view"].write_text(json.dumps(view))
        still_open.settimeout(5)
        try:
            assert still_open.recv(10) == b""
        except ConnectionResetError:
            pass
    try:
        assert connect_status(pair["folder"], good) == 401
        assert call(b"denied") == b""
        pair["view"].write_text("{")
        time.sleep(0.6)
        assert connect_status(pair["folder"], good) == 401
    finally:
        pair["view"].write_text(text)
    wait_for(lambda: call(b"again") == b"niaga")
