"""Calls of a workload's own address through the waypoint that it names: ours and Envoy's, between roles of the other.

The cases are those that our own waypoint is tried with (`tests/namespaced/test_waypoint_reach.py`, `..._rules.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.model.policy import Action, AuthorizationPolicy, Operation, Rule, Source, TargetRef
from testbed.model.traffic import DirectResponse, HttpRule, VirtualService
from tests.envoy.routescene import Channel, Refused, Tunnel
from tests.envoy.scene import APP_PORT, LIMIT_S, TRUST_DOMAIN, Kind, Scene, placed, topology
from tests.envoy.test_roles_interop import ALIKE, MIXED, ambient
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
Make = Callable[..., Scene]
AT_GATEWAY = (TargetRef(kind="Gateway", name="waypoint"),)
AT_SERVICE = (TargetRef(kind="Service", name="server"),)
EVERYWHERE = pytest.mark.parametrize(
    ("ends", "waypoint"), [*MIXED, ("envoy", "envoy"), *ALIKE],
    ids=["envoy waypoint", "our waypoint", "all envoy", "all ours"],
)  # fmt: skip
MIXED_ROLES = pytest.mark.parametrize(("ends", "waypoint"), MIXED, ids=["envoy waypoint", "our waypoint"])
EITHER = pytest.mark.parametrize("kind", ["ours", "envoy"])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def made(*policies: object, handles: str = "workload") -> Scene:
            world = topology(waypoint=True, policies=policies, handles=handles)
            return Scene(tmp_path, world, stack, own_address=True)

        yield made


def get(path: str, name: str, refs: tuple[TargetRef, ...]) -> AuthorizationPolicy:
    """DENY for this path."""
    rules = (Rule(operations=(Operation(paths=(path,)),)),)
    return AuthorizationPolicy(name=name, namespace="default", action=Action.DENY, rules=rules, target_refs=refs)


def only(principal: str) -> AuthorizationPolicy:
    source = Source(principals=(f"{TRUST_DOMAIN}/ns/default/sa/{principal}",))
    return AuthorizationPolicy(
        name="only", namespace="default", rules=(Rule(sources=(source,)),), target_refs=AT_GATEWAY
    )


@EVERYWHERE
def test_a_call_of_a_workloads_own_address(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """HTTP is found out, judged by the client's own identity, and goes on to that workload, under the waypoint's."""
    made = scene(only("client"))
    ambient(made, ends, waypoint)
    for number, http2 in enumerate((False, True, True, False)):
        status, saw = made.call(f"/some?n={number}", http2=http2, x_mine="kept")
        assert status == 200, {name: made.log(name)[-1500:] for name in ("client", "waypoint", "server")}
        assert (saw["version"], saw["path"]) == ("HTTP/2" if http2 else "HTTP/1.1", f"/some?n={number}")
        assert saw["fields"]["x-mine"] == "kept"
        assert saw["fields"]["x-request-id"]
        assert saw["fields"]["x-envoy-attempt-count"] == "1"


@EVERYWHERE
def test_what_holds_for_a_workloads_own_address(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """Policies of the Gateway, and neither policies nor routes of a service, for none was called."""
    teapot = VirtualService(
        name="tea", namespace="default", hosts=("server",),
        http=(HttpRule(direct_response=DirectResponse(status=418, body="")),),
    )  # fmt: skip
    made = scene(get("/gate", "gate", AT_GATEWAY), get("/svc", "svc", AT_SERVICE), teapot, handles="all")
    ambient(made, ends, waypoint)
    assert [made.call(path)[0] for path in ("/gate", "/svc", "/")] == [403, 200, 200]
    assert [r["path"] for r in made.requests] == ["/svc", "/"]


@MIXED_ROLES
def test_a_server_of_another_account_is_not_called(scene: Make, ends: Kind, waypoint: Kind) -> None:
    """The waypoint expects the workload's own identity behind the address."""
    made = scene()
    ambient(made, ends, waypoint, {"server": "other"})
    assert made.call()[0] == 503
    assert made.requests == []


@MIXED_ROLES
def test_a_client_of_another_account_is_denied(scene: Make, ends: Kind, waypoint: Kind) -> None:
    made = scene(only("other"))
    ambient(made, ends, waypoint)
    assert made.call()[0] == 403
    assert made.requests == []


def talk(made: Scene, kind: Kind, authority: str, data: bytes, *, run: bool = True) -> int:
    """The status of what is said in a tunnel to the waypoint, or of the CONNECT where that is refused."""
    if run:
        made.run(placed(kind, "ambient", made.topology), "waypoint")
    with contextlib.closing(socket.create_connection((made.address("waypoint"), 15008), timeout=LIMIT_S)) as sock:
        try:
            channel = Channel(Tunnel(sock, made.folder, authority))
        except Refused as refused:
            return refused.args[0]
        channel.sock.sendall(data)
        return channel.answer("GET").status


GET = b"GET /some HTTP/1.1\r\nhost: server\r\n\r\n"


def outside(made: Scene) -> Scene:
    """The server has no ztunnel: only the waypoint stands before it."""
    workloads = tuple(
        dataclasses.replace(w, plane="none") if w.name == "server" else w for w in made.topology.workloads
    )
    made.topology = dataclasses.replace(made.topology, workloads=workloads)
    return made


@EITHER
def test_what_an_authority_means(scene: Make, kind: Kind) -> None:
    """Any port of its workload but the proxies' own, its service by address and by name, nobody else's."""
    made = outside(scene(handles="all"))
    server, service = made.address("server"), made.topology.services[0]
    expected = {
        f"{server}:{APP_PORT}": 200, f"{server}:9": 503, f"{server}:15008": 404, f"{server}:15001": 404,
        f"{service.address}:80": 200, f"{service.address}:81": 404, f"{made.address('client')}:{APP_PORT}": 404,
        "server.default.svc.cluster.local:80": 200, "SERVER.default.svc.cluster.local:80": 200,
        "server.default.svc.cluster.local:81": 404, "server:80": 404, f"{made.address('waypoint')}:15008": 404,
    }  # fmt: skip
    made.run(placed(kind, "ambient", made.topology), "waypoint")
    assert {authority: talk(made, kind, authority, GET, run=False) for authority in expected} == expected


@EITHER
@pytest.mark.parametrize(("handles", "own", "service"), [("service", 404, 200), ("workload", 200, 404)])
def test_a_waypoint_is_for_what_it_is_declared_for(
    scene: Make, kind: Kind, handles: str, own: int, service: int
) -> None:
    made = outside(scene(handles=handles))
    assert talk(made, kind, f"{made.address('server')}:{APP_PORT}", GET) == own
    assert talk(made, kind, f"{made.topology.services[0].address}:80", GET, run=False) == service


@EITHER
def test_bytes_that_are_no_http_pass(scene: Make, kind: Kind) -> None:
    """Nothing is written into them, and they reach the port that was called."""
    made = outside(scene())
    said = b"HELLO /some OTHER/1\r\nx-mine: kept\r\n\r\n"
    assert talk(made, kind, f"{made.address('server')}:{APP_PORT}", said) == 200
    assert [(r["method"], r["version"], r["fields"]) for r in made.requests] == [
        ("HELLO", "OTHER/1", {"x-mine": "kept"})
    ]
