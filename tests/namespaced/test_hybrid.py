"""Every kind of workload calls every other: what is on the wire, who is seen, and who enforces what, against MATRIX."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from planes.hybrid.matrix import MATRIX, Cell
from testbed import topofile
from testbed.runtime.enter import in_netns
from testbed.runtime.wiring import port_name
from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import Answer, SidecarWorld, allow, peer, resource, routes

pytestmark = [pytest.mark.root, needs_root]

_ETH_ALL = 3


PLAIN, LISTENING = "hybrid", "hybrid-hbone"
WORLDS = {"plain": PLAIN, "listens-hbone": LISTENING}
both_worlds = pytest.mark.parametrize("hybrid", list(WORLDS.values()), ids=list(WORLDS), indirect=True)


@pytest.fixture(scope="module")
def labs(runtime: None) -> Iterator[Callable[[str], SidecarWorld]]:
    """One lab a plane, whatever the order of the cells: pytest would make `hybrid` anew for each."""
    text = topofile.find("hybrid").read_text()
    made: dict[str, SidecarWorld] = {}
    with contextlib.ExitStack() as stack:

        def lab(plane: str) -> SidecarWorld:
            if plane not in made:
                world = stack.enter_context(worlds.world(text, plane=plane, made=SidecarWorld))
                assert isinstance(world, SidecarWorld)
                made[plane] = world
            return made[plane]

        yield lab


@pytest.fixture
def hybrid(request: pytest.FixtureRequest, labs: Callable[[str], SidecarWorld]) -> SidecarWorld:
    return labs(request.param)


every_cell = pytest.mark.parametrize(
    ("hybrid", "cell"),
    [
        pytest.param(plane, cell, id=f"{name}-{cell.client}-{cell.server}")
        for name, plane in WORLDS.items()
        for cell in MATRIX
        if cell.server != ("sidecar" if plane == LISTENING else "sidecar*")
    ],
    indirect=["hybrid"],
)


def server(cell: Cell) -> str:
    return f"to-{cell.server.rstrip('*')}"


def call(world: SidecarWorld, cell: Cell, path: str = "/", *, via: bool = False) -> Answer:
    return world.http(f"from-{cell.client}", f"{'via' if via else 'web'}-{cell.server.rstrip('*')}", path)


# -- the wire


def on_the_wire(world: SidecarWorld, workload: str, make_call: object, canary: bytes) -> set[str]:
    """What passes the workload's veth in its node while the call is made: by ports and first bytes, nothing of ours."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ALL))
        sock.bind((port_name(workload), 0))
        return sock

    with in_netns(world.lab.netns("node-b"), listen) as sniffer:
        sniffer.setblocking(False)
        make_call()  # type: ignore[operator]
        time.sleep(0.1)
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                found |= kinds_of(sniffer.recv(65536), canary)
    return found


def kinds_of(frame: bytes, canary: bytes) -> set[str]:
    """`clear` if the canary can be read, `hbone` for TLS at 15008, `mtls` for TLS at the application's port."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return set()
    start = 14 + (frame[14] & 15) * 4
    payload = frame[start + (frame[start + 12] >> 4) * 4 :]
    ports = {int.from_bytes(frame[start : start + 2]), int.from_bytes(frame[start + 2 : start + 4])}
    if canary in payload:
        return {"clear"}
    if payload[:1] in (b"\x16", b"\x17") and payload[1:2] == b"\x03":
        return {"hbone"} if 15008 in ports else {"mtls"} if 8080 in ports else {"other"}
    return set()


@every_cell
def test_what_is_on_the_wire(hybrid: SidecarWorld, cell: Cell) -> None:
    """Read from the packets at the server's veth."""
    canary = secrets.token_hex(8).encode()
    answers = []
    seen = on_the_wire(hybrid, server(cell), lambda: answers.append(call(hybrid, cell, f"/{canary.decode()}")), canary)
    assert (answers[0].status, answers[0].served_by) == (200, server(cell))
    assert seen == {cell.wire}


# -- identity


def principals(world: SidecarWorld, workload: str) -> dict[str, float]:
    """By principal, how much the server's side has counted; `-` if it has no side."""
    kind = workload.removeprefix("to-")
    if kind == "none":
        return {"-": 0.0}
    sandbox, metric = (
        (workload, "istio_requests_total") if kind == "sidecar" else ("node-b", "istio_tcp_sent_bytes_total")
    )
    names = {
        "client": [str(world.identity(f"from-{k}")) for k in ("sidecar", "ambient", "none")],
        "waypoint": ["spiffe://cluster.local/ns/default/sa/waypoint"],
        "none": ["unknown"],
    }
    return {
        name: sum(
            world.counted(
                sandbox, metric, reporter="destination", destination_workload=workload, source_principal=principal
            )
            for principal in listed
        )
        for name, listed in names.items()
    }


def seen_by_server(world: SidecarWorld, cell: Cell, *, via: bool) -> str:
    before = principals(world, server(cell))
    assert call(world, cell, via=via).status == 200
    if "-" in before:
        return "-"
    give_up_s = time.monotonic() + 3
    while True:
        moved = {name for name, count in principals(world, server(cell)).items() if count > before[name]}
        if moved or time.monotonic() > give_up_s:
            return ", ".join(sorted(moved))
        time.sleep(0.05)


@every_cell
def test_whom_the_server_sees(hybrid: SidecarWorld, cell: Cell) -> None:
    """By what the server's proxy has counted."""
    assert seen_by_server(hybrid, cell, via=False) == cell.identity


@every_cell
def test_strict(hybrid: SidecarWorld, cell: Cell) -> None:
    """Mesh-wide: whoever comes without an identity is refused by whoever looks."""
    with hybrid.resources(peer("STRICT", namespace="istio-system")):
        assert ("passes" if call(hybrid, cell).status == 200 else "refused") == cell.strict


# -- who enforces


@every_cell
def test_who_applies_routes(hybrid: SidecarWorld, cell: Cell) -> None:
    """A fault for every request shows who has read the route."""
    fault = {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}
    service = f"web-{cell.server.rstrip('*')}"
    with hybrid.resources(routes(service, {"fault": fault, "route": [{"destination": {"host": service}}]})):
        assert ("client" if call(hybrid, cell).status == 418 else "nobody") == cell.routes


def enforcer(answer: Answer) -> str:
    """A sidecar answers 403, a ztunnel cuts: the caller's own sidecar makes 503 of that."""
    if answer.status == 200:
        return "nobody"
    return "sidecar" if answer.status == 403 else "ztunnel"


@every_cell
def test_who_enforces_a_policy_of_connections(hybrid: SidecarWorld, cell: Cell) -> None:
    """DENY by port, with a selector."""
    with hybrid.resources(allow(app="server", action="DENY", ports=["8080"])):
        assert enforcer(call(hybrid, cell)) == cell.l4
    assert call(hybrid, cell).status == 200


@every_cell
def test_who_enforces_a_policy_of_requests(hybrid: SidecarWorld, cell: Cell) -> None:
    """DENY by path, with a selector: a ztunnel cannot, and lets pass."""
    with hybrid.resources(allow(app="server", action="DENY", paths=["/secret"])):
        assert enforcer(call(hybrid, cell, "/secret")) == cell.l7
        assert call(hybrid, cell, "/open").status == 200


@every_cell
def test_who_passes_the_waypoint(hybrid: SidecarWorld, cell: Cell) -> None:
    """DENY by path, attached to the service: it meets only who goes through its waypoint."""
    service = f"via-{cell.server.rstrip('*')}"
    spec = {
        "targetRefs": [{"kind": "Service", "group": "", "name": service}], "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/secret"]}}]}],
    }  # fmt: skip
    with hybrid.resources(resource("AuthorizationPolicy", spec)):
        assert ("enforces" if call(hybrid, cell, "/secret", via=True).status == 403 else "bypassed") == cell.waypoint
        assert call(hybrid, cell, "/open", via=True).served_by == server(cell)


@every_cell
def test_whom_the_server_sees_behind_the_waypoint(hybrid: SidecarWorld, cell: Cell) -> None:
    """The waypoint, if it has an identity to show there; whoever goes around it is seen as ever."""
    assert seen_by_server(hybrid, cell, via=True) == cell.behind


# -- the other mechanics of 4.4


@both_worlds
def test_a_sidecar_asks_an_ambient_workloads_ztunnel_for_its_pod(hybrid: SidecarWorld) -> None:
    """CONNECT to the pod's 15008 for podIP:targetPort, under the client's identity, to exactly the pod's."""
    client, address = hybrid.identity("from-sidecar"), hybrid.ip("to-ambient")
    with hybrid.logs("ztunnel.node-b", "inbound", f"dst.hbone_addr={address}:8080", f'src.identity="{client}"'):
        assert call(hybrid, MATRIX[2], "/?size=none").status == 400  # the application hangs up, so the tunnel ends


@both_worlds
def test_a_pod_called_by_its_address_has_no_tunnel_from_a_sidecar(hybrid: SidecarWorld) -> None:
    """Only services' endpoints are known to a sidecar: plain bytes, which STRICT refuses."""
    address = hybrid.ip("to-ambient")
    assert hybrid.http("from-sidecar", "", address=address, port=8080).status == 200
    with hybrid.resources(peer("STRICT", namespace="istio-system")):
        assert hybrid.http("from-sidecar", "", address=address, port=8080).status in (0, 503)
        assert hybrid.http("from-ambient", "", address=address, port=8080).status == 200


@pytest.mark.parametrize("hybrid", [LISTENING], indirect=True)
def test_a_sidecar_that_takes_tunnels_judges_them_as_its_own(hybrid: SidecarWorld) -> None:
    """Policies by the client's principal hold for what comes through 15008; another pod's address is refused."""
    client, address = hybrid.identity("from-ambient"), hybrid.ip("to-sidecar")
    only = allow("cluster.local/ns/default/sa/from-ambient", app="server")
    with hybrid.resources(only):
        assert call(hybrid, MATRIX[5]).status == 200
        assert call(hybrid, MATRIX[1]).status == 403
    assert hybrid.connect_status("from-none", address, f"{address}:8080", client) == 200
    assert hybrid.connect_status("from-none", address, f"{hybrid.ip('to-none')}:8080", client) == 400
    assert hybrid.connect_status("from-none", address, f"{address}:15006", client) == 503


@both_worlds
def test_the_view_publishes_what_sidecars_listen_on(hybrid: SidecarWorld) -> None:
    """HBONE and nativeTunnel with the option; else TCP."""
    ztunnel = next(p for p in hybrid.deployment.placement.proxies if p.role == "ztunnel")
    entry = worlds.of(json.loads(json.dumps(ztunnel.view))["workloads"], "to-sidecar")
    listening = hybrid.deployment.placement.plane == LISTENING
    assert (entry["protocol"], entry.get("nativeTunnel", False)) == (("HBONE", True) if listening else ("TCP", False))
