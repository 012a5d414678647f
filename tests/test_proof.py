"""Proof from packets on every shipped topology, with one endpoint or several, and who answered what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from planes import catalog
from testbed import boundaries, deploy, lab, proof, topofile, trial
from testbed.deploy import Deployment
from testbed.errors import PeerError, UsageError
from testbed.links.probe import choose
from testbed.model.experiment import Finding, Result
from testbed.model.topology import Topology
from testbed.runtime.netns import NetnsRuntime
from tests.labs import needs_root


def shipped(name: str) -> Topology:
    return topofile.load(topofile.find(name))


def answers(errand: proof.Errand, endpoints: list[str]) -> dict[str, list[dict]]:
    """Request n was answered by endpoint n modulo their number."""
    return {
        attempt["name"]: [{"status": 200, "answered_by": endpoints[number % len(endpoints)]}]
        for number, attempt in enumerate(errand.attempts())
    }


class TestErrand:
    def test_each_request_belongs_to_the_endpoint_that_answered_it(self) -> None:
        """Which one load balancing takes is known only afterwards."""
        errand = proof.errand(shipped("shop"), "frontend", "t")
        first, second = errand.service.endpoints

        shares = errand.shares(answers(errand, [first, second]))

        assert len(shares[first]) == len(shares[second]) == proof.REQUESTS // 2
        assert not shares[first] & shares[second]

    def test_an_answer_from_elsewhere_is_no_proof(self) -> None:
        """Somebody who is no endpoint answered for the service."""
        errand = proof.errand(shipped("shop"), "frontend", "t")

        with pytest.raises(PeerError, match="answered by store"):
            errand.shares(answers(errand, ["store"]))

    def test_a_lone_endpoint_needs_not_say_that_it_was_it(self) -> None:
        """A TCP echo cannot."""
        errand = proof.errand(shipped("pair"), "tcp", "t")
        tries = {attempt["name"]: [{"echoed": True, "answered_by": None}] for attempt in errand.attempts()}

        assert errand.kind == "tcp"
        assert {len(numbers) for numbers in errand.shares(tries).values()} == {proof.REQUESTS}

    def test_an_unknown_port_is_named_with_those_there_are(self) -> None:
        """As an experiment's target may say one."""
        with pytest.raises(UsageError, match="no port 81; it has 8080"):
            proof.errand(shipped("pair"), "server:81", "t")


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    topology_name, plane = request.param
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = shipped(topology_name)
    placement = getattr(catalog, plane).place(topology, {})
    with (
        lab.up(topology, runtime=NetnsRuntime(), links=choose(), name=topology_name, logs=tmp_path / "logs") as running,
        deploy.deploy(running, placement, keylog=True) as deployment,
    ):
        yield deployment


def broken(findings: list[Finding]) -> list[str]:
    return [f"{f.id}: {f.value}: {f.evidence}" for f in findings if f.result is not Result.HOLDS]


TARGETS = {
    "pair": ("server", "tcp"),
    "chain3": ("a", "c"),
    "fanout": ("front", "leaf3"),
    "two-zones": ("server", "vault"),
    "shop": ("frontend", "catalog", "checkout"),
}


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("deployed", [(name, "ambient_l4") for name in TARGETS], indirect=True, ids=list(TARGETS))
def test_every_claim_is_proven_on_every_shipped_topology(deployed: Deployment, tmp_path: Path) -> None:
    """Services of several endpoints, of chains, of TCP, on one node or three links away."""
    topology = deployed.lab.topology
    for target in TARGETS[topology.name]:
        endpoints = topology.service(target).endpoints
        if topology.workload(endpoints[0]).app.kind == "http-echo":
            assert trial.seen_by_apps(deployed.lab, endpoints) is not None, f"{target} does not tell its count"
        findings = proof.prove(deployed, client="client", target=target, captures=tmp_path / target)

        assert broken(findings) == []
        assert {f.id.rpartition("/")[2] for f in findings} >= {"hidden", "delivered", "tls", "identity", "hbone", "way"}
        judged = {f.id.partition("client>")[2].partition("/")[0] for f in findings}
        assert judged <= set(topology.service(target).endpoints)
        if topology.service(target).traffic_distribution == "any":
            assert judged == set(topology.service(target).endpoints)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("deployed", [("shop", "none")], indirect=True, ids=["shop"])
def test_cleartext_is_found_at_each_endpoint_of_a_service(deployed: Deployment, tmp_path: Path) -> None:
    """Without a mesh the check must see every request, or it would see none in a mesh either."""
    findings = proof.prove(deployed, client="client", target="frontend", captures=tmp_path)

    assert broken(findings) == []
    assert {f.id.rpartition("/")[2] for f in findings} == {"readable", "way"}


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("deployed", [("two-zones", "none")], indirect=True, ids=["two-zones"])
def test_without_a_mesh_every_boundary_is_tried_or_said_not_to_apply(deployed: Deployment, tmp_path: Path) -> None:
    """HBONE has no listener there: that is found by trying, and by the pod answering on its own port."""
    packets = proof.prove(deployed, client="client", target="server", captures=tmp_path)

    tried = {f.id: f for f in boundaries.try_all(deployed, client="client", packets=packets)}

    assert broken(list(tried.values())) == []
    for name in ("wrong-identity", "forged-identity", "foreign-authority", "l4-denied-direct"):
        finding = tried[f"boundary.{name}"]
        assert finding.value == "not applicable: no HBONE listener"
        assert "hbone-right refused" in finding.evidence and "own port answered" in finding.evidence
