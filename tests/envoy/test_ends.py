"""Connections that end at an awkward time, beside a live Envoy of the same view: where both differ, and by how much.

What is asserted of Envoy is what docs/sidecar.md (2.10, 2.12) says of it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.envoy.routescene import IMPLEMENTATIONS, ROLES, Answer, Asked, RouteScene
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
SERVICE = "other"
"""It has one endpoint, so that a request finds the connection that the one before it left."""
EITHER = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouteScene]:
    with RouteScene(tmp_path_factory.mktemp("ends"), [], []) as made:
        yield made


@EITHER
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "again"), [("GET", True), ("PUT", True), ("POST", False)])
def test_a_request_on_a_dying_connection(
    scene: RouteScene, implementation: str, role: str, method: str, again: bool
) -> None:
    """A used connection ends without a byte: what may be repeated ours sends again (RFC 9110 9.2.2), Envoy nothing."""
    assert scene.ask(implementation, role, SERVICE, Asked())[0].status == 200
    answer, seen = scene.ask(implementation, role, SERVICE, Asked(method=method, plan="reset,200"))
    repeated = again and implementation == "ours"
    assert (answer.status, len(seen)) == ((200, 2) if repeated else (503, 1))


@EITHER
@pytest.mark.parametrize("role", ROLES)
def test_a_request_that_a_new_connection_loses(scene: RouteScene, implementation: str, role: str) -> None:
    """It was no stale connection that lost it, so nobody sends it again."""
    scene.ask(implementation, role, SERVICE, Asked(plan="reset"))  # whatever was kept is gone now
    answer, seen = scene.ask(implementation, role, SERVICE, Asked(plan="reset,200"))
    assert (answer.status, len(seen)) == (503, 1)


@EITHER
@pytest.mark.parametrize("plan", ["200", "slow300"])
def test_a_client_that_shuts_its_side_after_its_request(scene: RouteScene, implementation: str, plan: str) -> None:
    """Ours answers it; Envoy takes it for gone, if the answer was not there before the end was read."""
    channel = scene._channel(implementation, "sidecar", SERVICE)
    channel.sock.sendall(f"GET /end HTTP/1.1\r\nhost: {SERVICE}\r\nx-plan: {plan}\r\nx-id: end-{plan}\r\n\r\n".encode())
    assert isinstance(channel.sock, socket.socket)
    channel.sock.shutdown(socket.SHUT_WR)
    try:
        answer = channel.answer("GET")
    except (EOFError, ConnectionError):
        answer = Answer(status=0)
    channel.sock.close()
    if implementation == "ours":
        assert answer.status == 200
    elif plan == "slow300":
        assert answer.status == 0
