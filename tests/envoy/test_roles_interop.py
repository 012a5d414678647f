"""Our proxies and real Envoys in each other's company, role by role, with right and with wrong identities.

Every scene runs as placed by the catalogue's planes, so what is tried is what a lab runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planes import catalog
from planes.envoy import place as envoy_place
from testbed.model.policy import Mode, PeerAuthentication
from tests.envoy.routescene import Channel, Tunnel
from tests.envoy.scene import APP_PORT, Kind, Scene, only, placed, topology
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
Make = Callable[..., Scene]
BOTH_VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
MIXED: list[tuple[Kind, Kind]] = [("ours", "envoy"), ("envoy", "ours")]
ALIKE: list[tuple[Kind, Kind]] = [("ours", "ours")]
"""What must hold between the two kinds must hold within ours."""
STRICT = PeerAuthentication(name="strict", namespace="default", mode=Mode.STRICT)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:
        yield lambda **more: Scene(tmp_path, topology(**more), stack)


def seen_by(scene: Scene, **call: object) -> dict:
    status, saw = scene.call(**call)  # type: ignore[arg-type]
    assert status == 200, {name: scene.log(name)[-1500:] for name in ("client", "server")}
    return saw


def ambient(scene: Scene, ends: Kind, waypoint: Kind, proves: dict[str, str] | None = None) -> None:
    """Ztunnel roles of one kind around a waypoint of the other; `proves` are other certificates than their own."""
    by_kind = {kind: placed(kind, "ambient", scene.topology) for kind in (ends, waypoint)}
    for name, kind in (("server", ends), ("waypoint", waypoint), ("client", ends)):
        scene.run(by_kind[kind], name, proves=(proves or {}).get(name))


WAYPOINT = pytest.mark.parametrize(
    ("ends", "waypoint"), [*MIXED, *ALIKE], ids=["envoy waypoint", "our waypoint", "all ours"]
)


@WAYPOINT
@BOTH_VERSIONS
def test_a_request_through_the_others_waypoint(scene: Make, ends: Kind, waypoint: Kind, http2: bool) -> None:
    """The client's own identity is judged at the waypoint, the request arrives whole, by the version it was sent in."""
    made = scene(waypoint=True, policies=(only("client", at_waypoint=True),))
    ambient(made, ends, waypoint)
    for number in range(3):
        saw = seen_by(made, path=f"/some?n={number}", http2=http2, x_mine="kept")
        assert (saw["version"], saw["path"]) == ("HTTP/2" if http2 else "HTTP/1.1", f"/some?n={number}")
        assert saw["fields"]["x-mine"] == "kept"
        assert saw["fields"]["x-request-id"]


@WAYPOINT
def test_a_waypoint_denies_a_client_of_another_account(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """403 at the waypoint, by the client's identity and not by that of the hop before; nothing reaches the server."""
    made = scene(waypoint=True, policies=(only("other", at_waypoint=True),))
    ambient(made, ends, waypoint)
    assert made.call()[0] == 403
    assert made.requests == []


@WAYPOINT
def test_a_waypoint_of_another_account_gets_no_request(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """The client's ztunnel expects the waypoint's own identity at its address."""
    made = scene(waypoint=True)
    ambient(made, ends, waypoint, {"waypoint": "other"})
    assert made.call()[0] == 0
    assert made.requests == []


@WAYPOINT
def test_a_waypoint_refuses_a_server_of_another_account(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """The waypoint expects the endpoint's identity at the end of its tunnel; the client is told 503."""
    made = scene(waypoint=True)
    ambient(made, ends, waypoint, {"server": "other"})
    assert made.call()[0] == 503
    assert made.requests == []


@WAYPOINT
def test_a_waypoint_refuses_a_client_of_another_trust_domain(scene: Make, ends: Kind, waypoint: Kind) -> None:
    made = scene(waypoint=True)
    ambient(made, ends, waypoint, {"client": "alien"})
    assert made.call()[0] == 0
    assert made.requests == []


# -- sidecars


def sidecars(scene: Scene, client: Kind, server: Kind, proves: dict[str, str] | None = None) -> None:
    for name, kind in (("server", server), ("client", client)):
        scene.run(placed(kind, "sidecar", scene.topology), name, proves=(proves or {}).get(name))


SIDECARS = pytest.mark.parametrize(
    ("client", "server"), [*MIXED, *ALIKE], ids=["ours to envoy", "envoy to ours", "ours to ours"]
)


@SIDECARS
@BOTH_VERSIONS
def test_a_request_between_sidecars(scene: Make, client: Kind, server: Kind, http2: bool) -> None:
    """Istio's mutual TLS under STRICT, policy by the client's identity, and who called told to the application."""
    made = scene(waypoint=False, sidecars=True, policies=(STRICT, only("client", at_waypoint=False)))
    sidecars(made, client, server)
    for number in range(3):
        saw = seen_by(made, path=f"/some?n={number}", http2=http2, x_mine="kept")
        assert (saw["version"], saw["path"]) == ("HTTP/2" if http2 else "HTTP/1.1", f"/some?n={number}")
        assert saw["fields"]["x-mine"] == "kept"
        assert "URI=spiffe://cluster.local/ns/default/sa/client" in saw["fields"]["x-forwarded-client-cert"]
        assert saw["fields"]["x-envoy-attempt-count"] == "1"


@SIDECARS
@BOTH_VERSIONS
def test_a_sidecar_denies_a_client_of_another_account(scene: Make, client: Kind, server: Kind, http2: bool) -> None:
    made = scene(waypoint=False, sidecars=True, policies=(only("client", at_waypoint=False),))
    sidecars(made, client, server, {"client": "other"})
    assert made.call(http2=http2)[0] == 403
    assert made.requests == []


@SIDECARS
@BOTH_VERSIONS
def test_a_sidecar_refuses_a_server_of_another_account(scene: Make, client: Kind, server: Kind, http2: bool) -> None:
    """The client's sidecar expects the identity of the workload at that address."""
    made = scene(waypoint=False, sidecars=True)
    sidecars(made, client, server, {"server": "other"})
    assert made.call(http2=http2)[0] == 503
    assert made.requests == []


@SIDECARS
def test_a_sidecar_refuses_a_client_of_another_trust_domain(scene: Make, client: Kind, server: Kind) -> None:
    made = scene(waypoint=False, sidecars=True)
    sidecars(made, client, server, {"client": "alien"})
    assert made.call()[0] == 503
    assert made.requests == []


def tunnel_to_the_sidecar(scene: Scene, kind: Kind, *, proves: str) -> int:
    """The status of a request in a tunnel to the server's sidecar, which takes them; 0 where there is no tunnel."""
    workloads = tuple(dataclasses.replace(w, plane="sidecar") for w in scene.topology.workloads)
    topology = dataclasses.replace(scene.topology, workloads=workloads)
    placed = catalog.hybrid_hbone.place(topology, {})
    scene.run(placed if kind == "ours" else envoy_place.instead(placed), "server")
    address = scene.address("server")
    try:
        with contextlib.closing(socket.create_connection((address, 15008), timeout=20)) as sock:
            channel = Channel(Tunnel(sock, scene.folder, f"{address}:{APP_PORT}", proves=proves))
            channel.sock.sendall(b"GET /some HTTP/1.1\r\nhost: server\r\n\r\n")
            return channel.answer("GET").status
    except (OSError, EOFError):
        return 0


@pytest.mark.parametrize(("proves", "status"), [("client", 200), ("other", 403), ("alien", 0)])
@pytest.mark.parametrize("kind", ["ours", "envoy"])
def test_a_sidecar_that_takes_tunnels(scene: Make, kind: Kind, proves: str, status: int) -> None:
    """15008 beside 15006: the tunnel's peer is judged, inside it is HTTP as on the wire."""
    made = scene(waypoint=False, sidecars=True, policies=(only("client", at_waypoint=False),))
    assert tunnel_to_the_sidecar(made, kind, proves=proves) == status
    assert [r["path"] for r in made.requests] == (["/some"] if status == 200 else [])


@SIDECARS
def test_tcp_between_sidecars(scene: Make, client: Kind, server: Kind) -> None:
    """A port that is declared TCP: the bytes of a request pass as they are, with nothing written into them."""
    made = scene(protocol="tcp", waypoint=False, sidecars=True, policies=(STRICT,))
    sidecars(made, client, server)
    assert seen_by(made, x_mine="kept")["fields"] == {"host": "server.default.svc.cluster.local", "x-mine": "kept"}


@pytest.mark.parametrize(
    ("client", "server"),
    [
        pytest.param("ours", "envoy", id="ours to envoy"),
        pytest.param("envoy", "ours", id="envoy to ours"),
    ],
)  # fmt: skip
def test_a_port_of_unknown_protocol_between_sidecars(scene: Make, client: Kind, server: Kind) -> None:
    """What it speaks is found out at both ends; the ALPN tells the server's end before it sees a byte of it."""
    made = scene(protocol="", waypoint=False, sidecars=True, policies=(STRICT,))
    sidecars(made, client, server)
    assert "x-forwarded-client-cert" in seen_by(made)["fields"]
