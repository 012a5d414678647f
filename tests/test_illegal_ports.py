"""Loop protection with ports of one's own choice: what is refused are the ports that the proxy has, not Istio's."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from planes.ztunnel.settings import Ports
from tests import ztunnels

HBONE, PLAINTEXT, OUTBOUND = 25008, 25006, 25001


def status(folder: Path, server: str, authority: str) -> int:
    """Of a CONNECT at the port where this ztunnel takes HBONE, asked by h2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    context.load_verify_locations(folder / "roots.pem")
    context.set_alpn_protocols(["h2"])
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, validate_outbound_headers=False))
    with context.wrap_socket(socket.create_connection((server, HBONE), timeout=10)) as sock:
        made.initiate_connection()
        made.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
        sock.sendall(made.data_to_send())
        while True:
            data = sock.recv(65536)
            assert data, "connection closed without an answer"
            for event in made.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return int(dict(event.headers)[b":status"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Applications listen where Istio's proxies would."""
    folder = tmp_path_factory.mktemp("ports")
    ports = {"hbone": HBONE, "plaintext": PLAINTEXT, "outbound": OUTBOUND}
    with ztunnels.pair(folder, ports=ports) as made:
        listeners = [socket.create_server((made.server, port)) for port in (15008, 15006, 15001)]
        for listener in listeners:
            threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield folder, made.server
        for listener in listeners:
            listener.close()


def _accept(listener: socket.socket) -> None:
    held = []
    while True:
        try:
            held.append(listener.accept())
        except OSError:
            return


@pytest.mark.parametrize("port", [HBONE, PLAINTEXT, OUTBOUND])
def test_an_authority_of_a_port_that_the_proxy_chose_is_refused(server: tuple[Path, str], port: int) -> None:
    """It listens there itself: let through, the tunnel would go in a circle and be answered 200."""
    with socket.create_connection((server[1], port), timeout=5):
        pass
    assert status(*server, f"{server[1]}:{port}") == 503


@pytest.mark.parametrize("port", [15008, 15006, 15001])
def test_istios_ports_are_ports_like_any_other_then(server: tuple[Path, str], port: int) -> None:
    """An application may listen there."""
    assert status(*server, f"{server[1]}:{port}") == 200


def test_the_illegal_ports_are_those_that_are_set() -> None:
    """One that is changed takes the old number out."""
    assert Ports().illegal == {15001, 15006, 15008}
    assert Ports(hbone=HBONE).illegal == {15001, 15006, HBONE}
