"""A ztunnel that is told to end (facts/hbone 1.9), watched by an independent HTTP/2 client."""

from __future__ import annotations

import signal
import socket
import ssl
import time
import urllib.request
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.ztunnels import Pair, listening, pair


class Tunnel:
    """A CONNECT to the inbound proxy, spoken by h2."""

    def __init__(self, proxies: Pair) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_cert_chain(proxies.folder / "client.pem", proxies.folder / "client.key")
        context.load_verify_locations(proxies.folder / "roots.pem")
        context.set_alpn_protocols(["h2"])
        self.sock = context.wrap_socket(socket.create_connection((proxies.server, 15008), timeout=10))
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        )
        self.connection.initiate_connection()
        self.connection.send_headers(1, [(":method", "CONNECT"), (":authority", f"{proxies.server}:8080")])
        self.flush()
        self.until(h2.events.ResponseReceived)

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())

    def until(self, kind: type) -> list:
        """Events up to the first of `kind`; all there are when the connection ends."""
        seen: list = []
        while not any(isinstance(event, kind) for event in seen):
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return seen
            seen += self.connection.receive_data(data)
            self.flush()
        return seen

    def send(self, data: bytes) -> None:
        self.connection.send_data(1, data)
        self.flush()

    def reset(self) -> None:
        self.connection.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
        self.flush()

    def close(self) -> None:
        self.sock.close()


def closed_connections(proxies: Pair) -> int:
    with urllib.request.urlopen(f"http://{proxies.server}:15020/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(t.rpartition(" ")[2]) for t in lines if t.startswith("istio_tcp_connections_closed_total{"))


def goaways(data: bytes) -> list[int]:
    """The last-stream ids of the GOAWAY frames in these bytes, read frame by frame."""
    found, at = [], 0
    while at + 9 <= len(data):
        size = int.from_bytes(data[at : at + 3])
        if data[at + 3] == 7:
            found.append(int.from_bytes(data[at + 9 : at + 13]))
        at += 9 + size
    return found


def test_a_drain_warns_then_refuses_then_cuts(tmp_path: Path) -> None:
    """GOAWAY(2^31-1), then GOAWAY(last) once the client has shown it saw that; the tunnel goes on to the deadline."""
    with pair(tmp_path, drain_deadline_s=2.0) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        tunnel = Tunnel(proxies)
        upstream, _ = listener.accept()
        proxies.inbound.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        seen, raw = [], b""
        while len(goaways(raw)) < 2:
            data = tunnel.sock.recv(65536)
            raw += data
            # h2 refuses to go on after a GOAWAY; the PING is answered by hand, as RFC 9113 6.8 wants it.
            for at in range(0, len(data), 1):
                if data[at : at + 9] == b"\0\0\x08\x06\0\0\0\0\0":
                    tunnel.sock.sendall(b"\0\0\x08\x06\x01\0\0\0\0" + data[at + 9 : at + 17])
                    seen.append(data[at + 9 : at + 17])
            assert data
        assert goaways(raw) == [2**31 - 1, 1]
        assert len(seen) == 1
        assert not listening((proxies.server, 15008))
        tunnel.sock.sendall(b"\0\0\x04\0\0\0\0\0\x01late")
        assert upstream.recv(10) == b"late"
        assert proxies.inbound.wait(10) == 0
        assert time.monotonic() - began_s >= 1.9
        upstream.settimeout(5)
        try:
            assert upstream.recv(10) == b""
        except ConnectionResetError:
            pass
        tunnel.close()


def test_an_idle_proxy_ends_at_once(tmp_path: Path) -> None:
    """Nothing open: the deadline is not waited for."""
    with pair(tmp_path, drain_deadline_s=60.0) as proxies:
        proxies.inbound.send_signal(signal.SIGTERM)
        assert proxies.inbound.wait(10) == 0
