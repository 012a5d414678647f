"""Documented limits and surprises of Istio's ambient mode, each made to happen: docs/anomalies.md lists what was seen.

The number in a case's name is its row there. One lab serves all that end nothing; on namespaces only, for none of these
is of the runtime's making.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from testbed.attack.tried import _datagrams
from testbed.model.identity import Identity
from testbed.runtime.enter import in_netns
from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import allow, peer
from tests.namespaced.waypoints import WaypointWorld, at, authorization
from tests.namespaced.worlds import LIMIT_S, World, of, read_all, wait_for

pytestmark = [pytest.mark.root, needs_root]
UDP_PORT = 9999
TD = "cluster.local"
CLIENT = f"{TD}/ns/default/sa/client"
WAYPOINT = f"{TD}/ns/default/sa/way"
CALLS = 24

# A waypoint stands before `web` and `store`, none before `alone`. Of `pair` one endpoint's application is ended.
TOPOLOGY = """
name: anomalies
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  other: {node: node-a, serviceAccount: other}
  outsider: {node: node-a, serviceAccount: outsider, plane: none}
  bare: {node: node-b, serviceAccount: bare, plane: none}
  web: {node: node-b, serviceAccount: web, app: {kind: http-echo, ports: [8080]}}
  store: {node: node-b, serviceAccount: store, app: {kind: http-echo, ports: [8080]}}
  alone: {node: node-b, serviceAccount: alone, app: {kind: http-echo, ports: [8080]}}
  echo: {node: node-b, serviceAccount: echo, app: {kind: tcp-echo, ports: [9000]}}
  quick: {node: node-b, serviceAccount: quick, app: {kind: http-echo, ports: [8080]}}
  dead: {node: node-b, serviceAccount: dead, app: {kind: http-echo, ports: [8080]}}
  tester: {node: node-b, serviceAccount: tester}
services:
  web:
    ports: &http [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: &way {name: way, node: node-b}
  store: {ports: *http, workloads: [store], waypoint: *way}
  alone: {ports: *http, workloads: [alone]}
  pair: {ports: *http, workloads: [quick, dead]}
links:
  - {between: [node-a, node-b]}
"""


@pytest.fixture(scope="module")
def ambient() -> Iterator[WaypointWorld]:
    """Plane `ambient`; nothing here ends a proxy."""
    with worlds.world(TOPOLOGY, plane="ambient", made=WaypointWorld) as made:
        assert isinstance(made, WaypointWorld)
        made.lab.apps["dead"].signal(signal.SIGKILL)
        assert made.lab.apps["dead"].wait(LIMIT_S) is not None
        yield made


@pytest.fixture
def doomed() -> Iterator[World]:
    """One node and a ztunnel that the case may end."""
    with worlds.world(worlds.ONE_NODE, options={"drain_deadline_s": 0.5}) as made:
        yield made


def eventually(call: Callable[[], object], wanted: object) -> None:
    """L4 policies show in the dump before the next connection is judged by them; L7 proxies reload by themselves."""
    seen: list[object] = []

    def matches() -> bool:
        seen[:] = [call()]
        return seen[0] == wanted

    with contextlib.suppress(AssertionError):
        wait_for(matches, "")
    assert seen == [wanted]


def test_row_1_an_l7_allow_at_a_ztunnel_denies_everything(ambient: WaypointWorld) -> None:
    """ALLOW of GET only: the rule about HTTP is dropped, an ALLOW without rules is left, and GET is denied too."""
    assert ambient.http("client", "alone").status == 200
    with ambient.resources(allow(app="alone", methods=["GET"])):
        eventually(lambda: ambient.http("client", "alone").status, 0)


def test_row_2_an_l7_deny_at_a_ztunnel_denies_nothing(ambient: WaypointWorld) -> None:
    """DENY of a path: nothing that a ztunnel could match is left, and the path is served."""
    with ambient.resources(allow(app="alone", action="DENY", paths=["/secret"])):
        assert ambient.http("client", "alone", "/secret").status == 200


def test_row_3_a_mixed_deny_at_a_ztunnel_denies_too_much(ambient: WaypointWorld) -> None:
    """DENY of a path at a port: the path is dropped, so all of the port is denied. Who calls and the path, which stand
    in two clauses, are another matter: the second is left empty, and denies nothing."""
    with ambient.resources(allow(app="alone", action="DENY", paths=["/secret"], ports=["8080"])):
        eventually(lambda: ambient.http("client", "alone", "/public").status, 0)
    with ambient.resources(allow(CLIENT, app="alone", action="DENY", paths=["/secret"])):
        assert ambient.http("client", "alone", "/secret").status == 200


def secret_denied() -> str:
    return authorization(at("Service", "web"), action="DENY", rules=[{"to": [{"operation": {"paths": ["/secret"]}}]}])


def test_row_5_the_pods_address_goes_around_the_waypoint(ambient: WaypointWorld) -> None:
    """The same request: denied by the service's address, served by the pod's."""
    with ambient.resources(secret_denied()):
        eventually(lambda: ambient.http("client", "web", "/secret").status, 403)
        assert ambient.http("client", "", "/secret", address=ambient.ip("web"), port=8080).status == 200


def test_row_6_who_is_not_in_the_mesh_goes_around_the_waypoint(ambient: WaypointWorld) -> None:
    """Also by the service's address; the remedy is a policy that lets nobody but the waypoint in."""
    with ambient.resources(secret_denied()):
        eventually(lambda: ambient.http("client", "web", "/secret").status, 403)
        assert ambient.http("outsider", "web", "/secret").status == 200
    with ambient.resources(secret_denied(), allow(WAYPOINT, app="web")):
        eventually(lambda: ambient.http("outsider", "web", "/secret").status, 0)
        assert ambient.http("client", "web").status == 200


def test_row_7_a_ztunnel_does_not_ask_whether_its_peer_is_the_waypoint(ambient: WaypointWorld) -> None:
    """A tunnel of anybody's straight to a pod that has a waypoint is accepted."""
    web = ambient.ip("web")
    assert ambient.connect_status("outsider", web, f"{web}:8080", ambient.identity("client")) == 200


def test_row_8_a_waypoint_hides_its_client_from_l4_policy(ambient: WaypointWorld) -> None:
    """A policy that lets the client in stops him behind a waypoint, for there the pod sees the waypoint."""
    assert ambient.http("client", "web").fields["x-peer-address"] == ambient.pod("way")
    with ambient.resources(allow(CLIENT, app="web")):
        eventually(lambda: ambient.http("client", "web").served_by, "")
        assert ambient.http("client", "", address=ambient.ip("web"), port=8080).status == 200


def test_row_9_a_new_policy_ends_connections_that_it_denies(ambient: WaypointWorld) -> None:
    """While a new waypoint would move none of them."""
    with ambient.connect("client", ambient.ip("echo"), 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        with ambient.resources(allow(CLIENT, app="echo", action="DENY")):
            assert read_all(sock) == b""


def test_row_10_a_ztunnels_end_cuts_connections_that_cannot_be_told_to_move(doomed: World) -> None:
    """After its drain a plain TCP connection is closed under both ends."""
    with doomed.connect("client", doomed.ip("server"), 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        doomed.proxy("node-a").signal(signal.SIGTERM)
        assert read_all(sock) == b""
    assert doomed.proxy("node-a").wait(LIMIT_S) == 0


def test_row_11_a_ztunnels_death_cuts_its_workloads_from_everybody(doomed: World) -> None:
    """From those outside the mesh as well: what is captured has nowhere to go, and is not let through."""
    assert doomed.echo("client", doomed.ip("free"), 9000) == b"hello"
    doomed.proxy("node-a").signal(signal.SIGKILL)
    doomed.proxy("node-a").wait(LIMIT_S)
    for name in ("server", "free"):
        with pytest.raises(ConnectionRefusedError):
            doomed.connect("client", doomed.ip(name), 9000)
    assert doomed.echo("free", doomed.ip("free"), 9000) == b"hello"


def test_row_13_a_reset_arrives_as_an_ordinary_end(ambient: WaypointWorld) -> None:
    """The client aborts; its server sees a FIN and takes what it has for the whole."""
    ended: queue.Queue[str] = queue.Queue()

    def handle(sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
            ended.put("end")
        except ConnectionResetError:
            ended.put("reset")

    with ambient.serve("tester", 7000, handle):
        sock = ambient.connect("client", ambient.ip("tester"), 7000)
        sock.sendall(b"half of it")
        assert sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        assert ended.get(timeout=LIMIT_S) == "end"


def test_row_15_connect_succeeds_where_nobody_listens(ambient: WaypointWorld) -> None:
    """The proxy has accepted; only what comes after tells. Without a proxy connect() itself fails."""
    with ambient.connect("client", ambient.ip("web"), 9) as sock:
        assert read_all(sock) == b""
    with pytest.raises(ConnectionRefusedError):
        ambient.connect("outsider", ambient.ip("bare"), 9)


@pytest.mark.parametrize("namespace", ["default", "istio-system"])
def test_row_21_peer_authentication_that_ambient_does_not_heed(ambient: WaypointWorld, namespace: str) -> None:
    """DISABLE refuses no tunnel; STRICT of the root namespace with a selector refuses no plaintext."""
    alone = ambient.ip("alone")
    mode = "DISABLE" if namespace == "default" else "STRICT"
    with ambient.resources(peer(mode, app="alone", namespace=namespace)):
        assert ambient.connect_status("outsider", alone, f"{alone}:8080", ambient.identity("client")) == 200
        assert ambient.http("outsider", "", address=alone, port=8080).status == 200
    with ambient.resources(peer("STRICT", app="alone")):  # where it is heeded
        eventually(lambda: ambient.http("outsider", "", address=alone, port=8080).status, 0)


def test_row_22_is_not_so_here_a_waypoint_pins_whom_it_reaches(ambient: WaypointWorld) -> None:
    """The pod proves another identity than the mesh knows of it: a ztunnel refuses it, and so does our waypoint, where
    Envoy's would go on."""

    def other_account(view: dict) -> None:
        of(view["workloads"], "alone")["serviceAccount"] = "somebody"
        of(view["workloads"], "web")["serviceAccount"] = "somebody"

    with ambient.edited(other_account, "ztunnel.node-a", "waypoint.way"):
        eventually(lambda: ambient.http("client", "alone").status, 0)
        eventually(lambda: ambient.http("client", "web").status, 503)


def test_row_23_without_policy_every_identity_of_the_trust_domain_may_call(ambient: WaypointWorld) -> None:
    """One that no workload of the mesh has, too; that of another trust domain is refused by TLS."""
    alone = ambient.ip("alone")
    nobody = Identity(TD, "nowhere", "nobody")
    assert ambient.connect_status("outsider", alone, f"{alone}:8080", nobody) == 200
    assert ambient.connect_status("outsider", alone, f"{alone}:8080", Identity("elsewhere", "a", "b")) == 0


def test_row_25_a_waypoints_key_opens_all_that_trusts_it(ambient: WaypointWorld) -> None:
    """Every service behind it, without any proof of a client."""
    with ambient.resources(allow(WAYPOINT, app="web"), allow(WAYPOINT, app="store")):
        for name in ("web", "store"):
            address = ambient.ip(name)
            ask = (ambient.connect_status, "outsider", address, f"{address}:8080")
            eventually(lambda ask=ask: ask[0](*ask[1:], ambient.identity("client")), 401)
            assert ambient.connect_status(*ask[1:], ambient.waypoint_identity("way")) == 200


def test_row_32_a_dead_endpoint_fails_its_share_of_calls(ambient: WaypointWorld) -> None:
    """A ztunnel draws at random, ejects nobody and tries no other."""
    statuses = [ambient.http("client", "pair").status for _ in range(CALLS)]
    assert set(statuses) == {200, 0}


def test_row_34_datagrams_pass_the_mesh_by(ambient: WaypointWorld) -> None:
    """Under STRICT, and denied by policy: TCP is refused, UDP between the same two is not even seen."""
    alone = ambient.ip("alone")
    with (
        ambient.resources(peer("STRICT", app="alone"), allow(WAYPOINT, app="alone")),
        _datagrams(ambient.lab.netns("alone")),
    ):
        eventually(lambda: ambient.http("outsider", "", address=alone, port=8080).status, 0)
        with in_netns(ambient.lab.netns("outsider"), lambda: socket.socket(type=socket.SOCK_DGRAM)) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendto(b"datagram", (alone, UDP_PORT))
            assert sock.recv(64) == b"datagram"
