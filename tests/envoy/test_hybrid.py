"""The hybrid matrix with real Envoys in every role: a lab for each plane, its policies in place from the start.

Envoys are told once, at their start, so what our own are told case by case (`tests/namespaced/test_hybrid.py`) is told
here by paths of its own.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator

import pytest

from planes.hybrid.matrix import MATRIX, Cell
from testbed import planespec, policyfile, topofile
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from tests.labs import needs_envoy, needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import SidecarWorld, resource
from tests.namespaced.test_hybrid import call, enforcer, on_the_wire, server

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.root,
    needs_root,
    needs_envoy,
]
CLIENTS = ("from-sidecar", "from-ambient", "from-none")
SERVERS = {"matchLabels": {"app": "server"}}


def policies() -> list[str]:
    """`/secret` is for nobody, `/gate` not through a waypoint, `/as-x` only for whoever has proved to be x."""
    found = [deny("secret", ["/secret"], selector=SERVERS)]
    for kind in ("sidecar", "ambient", "none"):
        refs = [{"kind": "Service", "group": "", "name": f"via-{kind}"}]
        found.append(deny(f"gate-{kind}", ["/gate"], targetRefs=refs))
    for name in CLIENTS:
        source = {"source": {"notPrincipals": [f"cluster.local/ns/default/sa/{name}"]}}
        found.append(deny(f"as-{name}", [f"/as-{name}"], [source], selector=SERVERS))
    return found


def deny(name: str, paths: list[str], source: list | None = None, **attached: object) -> str:
    rule: dict = {"to": [{"operation": {"paths": paths}}]}
    if source is not None:
        rule["from"] = source
    return resource("AuthorizationPolicy", {"action": "DENY", "rules": [rule], **attached}, name=name)


@pytest.fixture(scope="module", params=["envoy-hybrid", "envoy-hybrid-hbone"])
def hybrid(request: pytest.FixtureRequest) -> Iterator[SidecarWorld]:
    parsed = policyfile.parse("\n---\n".join(policies()), "case.yml")

    def with_policies(topology: Topology, placed: Placement) -> Placement:
        return planespec.place(placed.plane, dataclasses.replace(topology, policies=parsed))

    text = topofile.find("hybrid").read_text()
    with worlds.world(text, plane=request.param, made=SidecarWorld, place=with_policies) as world:
        assert isinstance(world, SidecarWorld)
        yield world


def cells(world: SidecarWorld) -> list[Cell]:
    """Those of the plane at hand."""
    other = "sidecar" if world.deployment.placement.plane.endswith("-hbone") else "sidecar*"
    return [cell for cell in MATRIX if cell.server != other]


def named(cell: Cell) -> str:
    return f"{cell.client} to {cell.server}"


def test_what_is_on_the_wire(hybrid: SidecarWorld) -> None:
    """Read from the packets at each server's veth."""
    found = {}
    for cell in cells(hybrid):
        canary = secrets.token_hex(8).encode()
        answers: list = []
        path = f"/{canary.decode()}"
        seen = on_the_wire(
            hybrid, server(cell), lambda cell=cell, path=path, to=answers: to.append(call(hybrid, cell, path)), canary
        )
        found[named(cell)] = (answers[0].status, answers[0].served_by, seen)
    assert found == {named(cell): (200, server(cell), {cell.wire}) for cell in cells(hybrid)}


def test_who_enforces_a_policy_of_requests(hybrid: SidecarWorld) -> None:
    found = {named(cell): enforcer(call(hybrid, cell, "/secret")) for cell in cells(hybrid)}
    assert found == {named(cell): cell.l7 for cell in cells(hybrid)}


def test_who_passes_the_waypoint(hybrid: SidecarWorld) -> None:
    statuses = {named(cell): call(hybrid, cell, "/gate", via=True).status for cell in cells(hybrid)}
    assert statuses == {named(cell): 403 if cell.waypoint == "enforces" else 200 for cell in cells(hybrid)}


def test_whom_a_sidecar_sees(hybrid: SidecarWorld) -> None:
    """By policies of the client's principal: on the way with Istio's mutual TLS, and in tunnels where it takes them."""
    at_sidecars = [cell for cell in cells(hybrid) if cell.server.startswith("sidecar")]
    for via in (False, True):
        statuses = {named(c): call(hybrid, c, f"/as-from-{c.client}", via=via).status for c in at_sidecars}
        seen = {named(c): c.behind if via else c.identity for c in at_sidecars}
        assert statuses == {name: 200 if identity == "client" else 403 for name, identity in seen.items()}
