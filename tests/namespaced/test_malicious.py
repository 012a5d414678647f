"""Direct calls to the proxy's own ports, from captured and uncaptured workloads: each must end, and end as said.

Differs from ztunnel: metrics (15020) and readiness (15021) listen on the node's loopback only, so that a workload
cannot read them at the node's address; ztunnel answers there.
"""

from __future__ import annotations

import json

import pytest

from tests.labs import needs_root
from tests.namespaced.worlds import World, wait_for

pytestmark = [pytest.mark.root, needs_root]

PROXY, ADMIN = (15001, 15006, 15008), (15000, 15020, 15021)
REFUSED, NO_DATA = "no connection", "connected, no data"

EXPECTED = {
    # Everything a captured workload opens to another address is accepted by its own ztunnel first.
    ("client", "node"): dict.fromkeys(PROXY + ADMIN, NO_DATA),
    # Its own address and loopback are not captured: what the proxy does not serve in the workload is not there.
    ("client", "self"): dict.fromkeys(PROXY, NO_DATA) | dict.fromkeys(ADMIN, REFUSED),
    ("client", "localhost"): dict.fromkeys(PROXY, NO_DATA) | dict.fromkeys(ADMIN, REFUSED),
    ("client", "peer"): dict.fromkeys(PROXY + ADMIN, NO_DATA),
    ("outsider", "node"): dict.fromkeys(PROXY + ADMIN, REFUSED),
    ("outsider", "self"): dict.fromkeys(PROXY + ADMIN, REFUSED),
    ("outsider", "localhost"): dict.fromkeys(PROXY + ADMIN, REFUSED),
    # A captured peer accepts for 15006 whatever comes, and closes.
    ("outsider", "peer"): dict.fromkeys(PROXY + ADMIN, NO_DATA),
}
CASES = [(*who, port, kind) for who, rows in EXPECTED.items() for port, kind in rows.items()]


@pytest.mark.parametrize(("caller", "target", "port", "kind"), CASES)
def test_malicious_call(mesh: World, caller: str, target: str, port: int, kind: str) -> None:
    """No answer, no loop: an HTTP request to a port of the proxy gets nothing back and the connection ends."""
    address = {
        "node": mesh.ip("node-a"), "self": mesh.ip(caller), "localhost": "127.0.0.1", "peer": mesh.ip("near")
    }[target]  # fmt: skip
    try:
        answer = mesh.echo(caller, address, port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    except ConnectionRefusedError:
        seen = REFUSED
    else:
        seen = NO_DATA if answer == b"" else f"data: {answer[:60]!r}"
    assert seen == kind


@pytest.mark.parametrize(
    ("caller", "target", "port"),
    [("client", "self", 15001), ("client", "self", 15006), ("outsider", "peer", 15001), ("outsider", "peer", 15006)],
)
def test_loop_is_refused_at_the_first_turn(mesh: World, caller: str, target: str, port: int) -> None:
    """The caller cannot tell a refusal from a loop that ran until descriptors were used up; the log can."""
    address = mesh.ip(caller) if target == "self" else mesh.ip("near")
    with mesh.logs("ztunnel.node-a", f"src.addr={mesh.ip(caller)}:", "loop: ") as lines:
        assert mesh.echo(caller, address, port) == b""
    assert len(lines) == 1 and f":{port}" in lines[0]


def test_authority_of_the_proxys_own_ports(mesh: World) -> None:
    """An HBONE authority may not lead back into the proxy."""
    far = mesh.ip("far")
    for port in PROXY:
        assert mesh.connect_status("outsider", far, f"{far}:{port}", mesh.identity("outsider")) == 503


def test_no_connection_is_left_open(mesh: World) -> None:
    """After all of these the proxies hold no connection: a loop, or an end that was not passed on, would show here."""

    def held() -> int:
        dumps = (json.loads(mesh.dump(node.name)) for node in mesh.topology.nodes)
        return sum(proxy["connections"] for dump in dumps for proxy in dump["proxies"].values())

    with mesh.connect("client", mesh.ip("far"), 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert held() >= 2
    wait_for(lambda: held() == 0, "all connections have ended")
