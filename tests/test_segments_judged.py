"""Which segments of which plane on which topology packets are judged at; and that loss makes a proof weaker, not
wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from testbed import deploy, lab, planespec, proof, topofile
from testbed.deploy import extra_sandboxes
from testbed.links.probe import choose
from testbed.model.experiment import Result
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Topology
from testbed.runtime.netns import NetnsRuntime
from testbed.runtime.routing import paths
from testbed.runtime.wiring import port_name
from testbed.verify.segments import WIRE, lay_out
from tests.labs import needs_root

PLANES = ("none", "sidecar", "ambient-l4", "ambient", "hybrid", "hybrid-hbone", "node-l7")
"""Envoys stand in the same places, and the same is claimed of them."""
TOPOLOGIES = ("pair", "chain3", "two-zones", "shop", "hybrid", "deny-default")


def placed(plane: str, topology: Topology) -> Placement:
    return planespec.place(plane, topology)


@pytest.mark.parametrize("topology_name", TOPOLOGIES)
@pytest.mark.parametrize("plane", PLANES)
def test_every_leg_of_every_call_is_claimed_and_watched(plane: str, topology_name: str) -> None:
    """Of every call that somebody may make (idle workloads call all, applications whom they name), from the caller to
    the endpoint without a gap, whichever proxies with places of their own stand between; and each leg on the veth of
    both its ends and on every link on its way, as `proof` lays them out."""
    topology = topofile.load(topofile.find(topology_name))
    placement = placed(plane, topology)

    called = {(claim.call[0], claim.call[-1]) for claim in placement.claims}
    assert called == {
        (w.name, endpoint)
        for w in topology.workloads
        for s in topology.services
        for endpoint in s.endpoints
        if w.name != endpoint and (w.app.kind == "idle" or s.name in w.app.calls)
    }
    legs = {(claim.call, claim.source, claim.destination) for claim in placement.claims}
    for call in {claim.call for claim in placement.claims}:
        for source, destination in itertools.pairwise(call):
            assert (call, source, destination) in legs, f"{call}: nobody says what {source} to {destination} must show"
    nodes = {n.name for n in topology.nodes}
    stops = {stop for claim in placement.claims for stop in claim.call}
    layout = lay_out(
        topology, {name: port_name(name) for name in stops - nodes}, routes=paths(topology),
        extra={p.sandbox: (p.node, p.own_address) for p in placement.proxies if p.own_address},
        catching=sorted(nodes & stops),
    )  # fmt: skip
    for claim in placement.claims:
        crossed = layout.crossed(claim.source, claim.destination, WIRE)
        way = layout.route(layout.homes[claim.source], layout.homes[claim.destination])
        veths = [s.workload for s in crossed if s.link is None]
        assert veths == [end for end in (claim.source, claim.destination) if end not in nodes]
        assert [frozenset(s.link) for s in crossed if s.link] == [frozenset(ab) for ab in itertools.pairwise(way)]
        assert crossed


@pytest.mark.root
@needs_root
def test_lost_packets_make_a_proof_weaker_and_never_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in a hundred lost each way, so that much comes twice and out of order: what is judged holds, or says that it
    has no evidence."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    lossy = Impairment(delay_ms=1.0, loss=0.02)
    topology = topofile.load("pair").with_link("node-a", "node-b", a_to_b=lossy, b_to_a=lossy)
    placement = placed("ambient-l4", topology)
    with (
        lab.up(
            topology, runtime=NetnsRuntime(), links=choose(), name="lossy", logs=tmp_path / "logs",
            extra=extra_sandboxes(placement),
        ) as running,
        deploy.deploy(running, placement, keylog=True) as deployment,
    ):  # fmt: skip
        findings = proof.prove(deployment, client="client", target="server", captures=tmp_path / "captures")

    wrong = [f"{f.id}: {f.value}: {f.evidence}" for f in findings if f.result is Result.BROKEN]
    assert wrong == []
    assert {f.id.rpartition("/")[2] for f in findings} >= {"hidden", "tls", "identity", "hbone"}
