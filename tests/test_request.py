"""What our client writes into a CONNECT and our server into its answer (facts/hbone 1.3, 1.5), read by h2."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.test_eager import Eager
from tests.ztunnels import Pair, pair


def requested(proxies: Pair) -> tuple[list[tuple[str, str]], str]:
    """Fields of the one CONNECT that an application's connection causes; and the application's own address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(proxies.folder / "server.pem", proxies.folder / "server.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_server((proxies.server, 15008)) as listener, proxies.connect() as application:
        listener.settimeout(10)
        raw, _ = listener.accept()
        with context.wrap_socket(raw, server_side=True) as sock:
            made = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)
            )
            made.initiate_connection()
            sock.sendall(made.data_to_send())
            while data := sock.recv(65536):
                for event in made.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        return list(event.headers), "{}:{}".format(*application.getsockname())
                sock.sendall(made.data_to_send())
    raise AssertionError("the connection ended without a request")


def test_a_connect_has_ztunnels_fields_and_no_others(tmp_path: Path) -> None:
    """Method, authority, baggage, forwarded, traceparent; no scheme and no path; a new trace for each connection."""
    with pair(tmp_path) as proxies:
        proxies.inbound.kill()
        proxies.inbound.wait()
        (first, source), (second, _) = requested(proxies), requested(proxies)
    values = dict(first)
    assert [name for name, _ in first] == [":method", ":authority", "baggage", "forwarded", "traceparent"]
    assert values[":method"] == "CONNECT"
    assert values[":authority"] == f"{proxies.server}:8080"
    assert values["forwarded"] == f'for="{source}"'
    assert values["baggage"] == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
        "service.name=client,service.version=v1"
    )
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", values["traceparent"])
    assert values["traceparent"] != dict(second)["traceparent"]


def test_the_answer_describes_the_destination(tmp_path: Path) -> None:
    """200 with the destination workload's baggage, and no END_STREAM."""
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)):
        client = Eager(proxies)
        client.ask(1, f"{proxies.server}:8080")
        client.flush()
        (answer,) = [e for e in client.until(h2.events.ResponseReceived) if isinstance(e, h2.events.ResponseReceived)]
        client.sock.close()
    assert answer.stream_ended is None
    assert [tuple(field) for field in answer.headers] == [
        (b":status", b"200"),
        (
            b"baggage",
            b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=server,"
            b"service.name=server,service.version=v1",
        ),
    ]
