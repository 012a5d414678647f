"""Clients that do not wait: bytes sent before the 200, many tunnels that end badly on one connection. Spoken by h2."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.test_ztunnel_direct import echo_until_eof
from tests.ztunnels import Pair, pair

STREAM_WINDOW = 4 << 20


class Eager:
    """An HTTP/2 connection to the inbound proxy on which the test writes what it likes."""

    def __init__(self, proxies: Pair) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_cert_chain(proxies.folder / "client.pem", proxies.folder / "client.key")
        context.load_verify_locations(proxies.folder / "roots.pem")
        context.set_alpn_protocols(["h2"])
        self.sock = context.wrap_socket(socket.create_connection((proxies.server, 15008), timeout=10))
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.flush()
        self.until(h2.events.WindowUpdated)  # the preface: SETTINGS, then the connection's window

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def ask(self, stream: int, authority: str) -> None:
        self.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority)])

    def send(self, stream: int, data: bytes) -> None:
        for at in range(0, len(data), self.h2.max_outbound_frame_size):
            self.h2.send_data(stream, data[at : at + self.h2.max_outbound_frame_size])

    def until(self, kind: type) -> list:
        seen: list = []
        while not any(isinstance(event, kind) for event in seen):
            data = self.sock.recv(65536)
            assert data, f"connection ended before {kind.__name__}"
            seen += self.h2.receive_data(data)
            self.flush()
        return seen

    @property
    def room(self) -> int:
        """What the connection's window still lets through, whatever the stream."""
        return self.h2.outbound_flow_control_window


def test_bytes_right_behind_the_request_reach_the_application(tmp_path: Path) -> None:
    """HEADERS, DATA and END_STREAM in one TLS record: nothing of it is lost while the upstream connects."""
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        threading.Thread(target=echo_until_eof, args=(listener,), daemon=True).start()
        client = Eager(proxies)
        client.ask(1, f"{proxies.server}:8080")
        client.send(1, b"eager")
        client.h2.end_stream(1)
        client.flush()
        events = client.until(h2.events.StreamEnded)
        assert b"".join(e.data for e in events if isinstance(e, h2.events.DataReceived)) == b"regae"
        client.sock.close()


def test_refused_tunnels_keep_nothing_of_the_shared_window(tmp_path: Path) -> None:
    """A hundred refusals, 2 MB sent ahead of each: what the tunnels held of the 16 MiB must all come back."""
    with pair(tmp_path) as proxies:
        client = Eager(proxies)
        for number in range(100):
            stream = 2 * number + 1
            client.ask(stream, f"{proxies.server}:9")
            assert client.room >= 2_000_000, f"window ran dry at refusal {number}"
            client.send(stream, bytes(2_000_000))
            client.flush()
            client.until(h2.events.StreamEnded)
        client.sock.close()


def test_aborted_applications_keep_nothing_of_the_shared_window(tmp_path: Path) -> None:
    """An application that reads nothing and then resets leaves what it did not take to the other tunnels."""
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the bytes stay in the proxy
        listener.settimeout(10)
        client = Eager(proxies)
        for number in range(30):
            stream = 2 * number + 1
            client.ask(stream, f"{proxies.server}:8080")
            client.flush()
            client.until(h2.events.ResponseReceived)
            upstream, _ = listener.accept()
            assert client.room >= STREAM_WINDOW - 1, f"window ran dry at tunnel {number}"
            client.send(stream, bytes(STREAM_WINDOW - 1))
            client.flush()
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            upstream.close()
            client.until(h2.events.StreamReset)
        client.sock.close()


def test_what_is_reset_in_the_same_read_never_begins(tmp_path: Path) -> None:
    """A flood of such costs no connection to the application; the tunnel behind them does."""
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        client = Eager(proxies)
        for number in range(1, 41, 2):
            client.ask(number, f"{proxies.server}:8080")
            client.h2.reset_stream(number)
        client.ask(41, f"{proxies.server}:8080")
        client.flush()
        client.until(h2.events.ResponseReceived)
        listener.settimeout(30)
        accepted = [listener.accept()[0]]
        listener.settimeout(0.3)
        try:
            while True:
                accepted.append(listener.accept()[0])
        except TimeoutError:
            pass
        for sock in accepted:
            sock.close()
        assert len(accepted) == 1
