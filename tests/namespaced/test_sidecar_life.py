"""A sidecar's end, and a mesh that lets nothing out: labs of their own."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from testbed.model.placement import Placement
from testbed.model.topology import Topology
from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import Answer, SidecarWorld, listening
from tests.namespaced.worlds import wait_for

pytestmark = [pytest.mark.root, needs_root]

SMALL = """
name: smallside
nodes: {node-a: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  web: {node: node-a, serviceAccount: web, app: {kind: http-echo, ports: [8080]}}
services:
  web: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [web]}
"""


@pytest.fixture
def small(runtime: None) -> Iterator[SidecarWorld]:
    with worlds.world(SMALL, plane="sidecar", options={"drain_deadline_s": 2.5}, made=SidecarWorld) as made:
        assert isinstance(made, SidecarWorld)
        yield made


def test_sigterm_lets_requests_finish(small: SidecarWorld) -> None:
    """What is under way is answered, who still comes is served, then the process ends by itself."""
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(small.http("client", "web", "/?delay_ms=1200")))
    slow.start()
    wait_for(lambda: small.counted("web", "istio_requests_total") or _under_way(small), "the request is under way")
    proxy = small.deployment.proxies["sidecar.web"]
    proxy.signal(signal.SIGTERM)
    assert small.http("client", "web").status == 200
    slow.join()
    assert answers[0].status == 200
    assert proxy.wait(5) == 0
    assert not listening(small, "outsider", small.ip("web"), 8080)


def _under_way(world: SidecarWorld) -> bool:
    answer = world.http("web", "", address="127.0.0.1", port=8080, path="/-/count")
    return b'"open_connections": 2' in answer.body


def test_a_drain_has_a_deadline(small: SidecarWorld) -> None:
    """A request that takes longer than the drain is cut."""
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(small.http("client", "web", "/?delay_ms=7000")))
    slow.start()
    wait_for(lambda: _under_way(small), "the request is under way")
    proxy = small.deployment.proxies["sidecar.web"]
    proxy.signal(signal.SIGTERM)
    assert proxy.wait(5) == 0
    slow.join()
    assert answers[0].status == 503


def test_registry_only_lets_nothing_unknown_out() -> None:
    """A black hole: 502 for a strange host, a closed connection for other bytes; services are reached as ever."""

    def place(topology: Topology, placement: Placement) -> Placement:
        for proxy in placement.proxies:
            proxy.options["l7"]["outbound_any"] = False
        return placement

    def banner(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"out")

    with worlds.world(SMALL, plane="sidecar", place=place, made=SidecarWorld) as made:
        assert isinstance(made, SidecarWorld)
        with made.serve("outsider", 4444, banner), made.serve("outsider", 80, banner):
            assert made.echo("client", made.ip("outsider"), 4444) == b""
            assert made.echo("outsider", made.ip("outsider"), 4444) != b""
            assert made.http("client", "", address=made.ip("outsider"), headers={"host": "x.example"}).status == 502
        assert made.http("client", "web").status == 200
