"""Proof from packets on every shipped topology, with one endpoint or several, and who answered what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planes import catalog
from testbed import boundaries, deploy, lab, planespec, proof, sweep, topofile, trial
from testbed.deploy import Deployment
from testbed.errors import PeerError, UsageError
from testbed.links.probe import choose
from testbed.model.experiment import Finding, Result
from testbed.model.placement import Encryption, Placement
from testbed.model.topology import Topology
from testbed.observe import pcapng
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

    def test_some_go_by_http2_where_the_application_speaks_it(self) -> None:
        """An image of the user's, or bytes that are no HTTP, may not."""
        kinds = [attempt["kind"] for attempt in proof.errand(shipped("shop"), "frontend", "t").attempts()]
        assert kinds == ["http", "http", "http", "http2"] * 8
        assert {a["kind"] for a in proof.errand(shipped("pair"), "tcp", "t").attempts()} == {"tcp"}

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


def test_policies_that_may_refuse_canaries_are_told_with_what_the_plane_makes_of_them() -> None:
    """`ledger` may be read only; a ztunnel that cannot see methods lets nobody in, so no canary can arrive."""
    topology = shipped("two-zones")
    (line,) = proof.policies_before(topology.service("ledger"), topology, "ambient")

    assert line.startswith("AuthorizationPolicy default/read-only (ALLOW) stands before ledger; under ambient: ")
    assert "HTTP attributes are not seen at L4 (methods)" in line
    assert "as it is written" in proof.policies_before(topology.service("ledger"), topology, "sidecar")[0]
    assert proof.policies_before(topology.service("tcp"), topology, "ambient") == []


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    topology_name, plane = request.param
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = shipped(topology_name)
    with up(topology, getattr(catalog, plane).place(topology, {}), tmp_path) as deployment:
        yield deployment


@contextmanager
def up(topology: Topology, placement: Placement, folder: Path) -> Iterator[Deployment]:
    with (
        lab.up(
            topology, runtime=NetnsRuntime(), links=choose(), name=topology.name, logs=folder / "logs",
            extra=sweep.extra_sandboxes(placement),
        ) as running,
        deploy.deploy(running, placement, keylog=True) as deployment,
    ):  # fmt: skip
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
    in_bytes = re.compile(rb"canary-[0-9a-f]{16}-([0-9]+)")
    packets = pcapng.read(tmp_path / "none.pcapng").packets
    numbers = {int(number) for packet in packets for number in in_bytes.findall(packet.data)}
    # the rest went by HTTP/2 and was found by decoding its fields
    assert numbers == {n for n in range(proof.REQUESTS) if n % 4 != 3}


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


L7_PLANES = {
    "sidecar": {"hidden", "delivered", "tls", "offer", "identity", "way"},
    "ambient": {"hidden", "delivered", "tls", "identity", "alpn", "hbone", "way"},
    "hybrid": {"hidden", "delivered", "tls", "identity", "alpn", "hbone", "way"},
}


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("deployed", [("two-zones", name) for name in L7_PLANES], indirect=True, ids=list(L7_PLANES))
def test_every_segment_and_every_boundary_of_the_l7_planes(deployed: Deployment, tmp_path: Path) -> None:
    """Packets on every leg; calls refused, or passing where that is documented; each with its control."""
    plane = deployed.placement.plane
    packets = proof.prove(deployed, client="client", target="server", captures=tmp_path)
    tried = {f.id.removeprefix("boundary."): f for f in boundaries.try_all(deployed, client="client", packets=packets)}

    assert broken([*packets, *tried.values()]) == []
    assert {f.id.rpartition("/")[2] for f in packets} == L7_PLANES[plane]
    offers = {f.value for f in packets if f.id.endswith("/offer")}
    assert offers == ({"istio-h2, istio, h2; istio-http/1.1, istio, http/1.1"} if plane == "sidecar" else set())
    legs = {f.id.split("/")[1] for f in packets}
    assert ("waypoint>server" in legs) == (plane == "ambient")
    secret = {name: tried[name].value for name in ("l7-denied", "l7-denied-pod-ip")}
    assert (
        secret
        == {
            "sidecar": {"l7-denied": "refused (403)", "l7-denied-pod-ip": "refused (403)"},
            "ambient": {"l7-denied": "refused (403)", "l7-denied-pod-ip": "passed (200)"},
            "hybrid": {"l7-denied": "passed (200)", "l7-denied-pod-ip": "passed (200)"},
        }[plane]
    )


@pytest.mark.root
@needs_root
def test_a_sidecar_that_dials_in_clear_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It believes that nobody has a sidecar, so it sends plain bytes, and PERMISSIVE servers take them: all works."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = shipped("two-zones")
    honest = catalog.sidecar.place(topology, {})
    proxies = tuple(
        dataclasses.replace(p, options={**p.options, "sidecars": []}) if p.serves == ("client",) else p
        for p in honest.proxies
    )
    with up(topology, dataclasses.replace(honest, proxies=proxies), tmp_path) as deployment:
        findings = proof.prove(deployment, client="client", target="server", captures=tmp_path)

    results = {f.id.rpartition("/")[2]: f.result for f in findings}
    assert results["hidden"] is results["tls"] is Result.BROKEN
    assert all(f.result is not Result.HOLDS for f in findings if not f.id.endswith("/way"))


@pytest.mark.root
@needs_root
def test_ztunnels_that_go_around_the_waypoint_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is answered, encrypted and as somebody; not by the way that was claimed."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    topology = shipped("two-zones")
    honest = catalog.ambient.place(topology, {})
    bare = [{k: v for k, v in s.items() if k != "waypoint"} for s in honest.proxies[0].view["services"]]
    proxies = tuple(
        dataclasses.replace(p, view={**p.view, "services": bare}) if p.role == "ztunnel" else p for p in honest.proxies
    )
    with up(topology, dataclasses.replace(honest, proxies=proxies), tmp_path) as deployment:
        findings = proof.prove(deployment, client="client", target="server", captures=tmp_path)

    assert not [f.id for f in findings if f.result is Result.HOLDS]


MATRIX = """
name: matrix
zones: [east]
nodes:
  node-a: {zone: east}
  node-b: {zone: east}
workloads:
  from-none: {node: node-a, plane: none}
  from-sidecar: {node: node-a, plane: sidecar}
  from-ambient: {node: node-a, plane: ambient}
  to-none: {node: node-b, plane: none, app: {kind: http-echo, ports: [8080]}}
  to-sidecar: {node: node-b, plane: sidecar, app: {kind: http-echo, ports: [8080]}}
  to-ambient: {node: node-b, plane: ambient, app: {kind: http-echo, ports: [8080]}}
  behind: {node: node-a, plane: ambient, app: {kind: http-echo, ports: [8080]}}
services:
  to-none: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [to-none]}
  to-sidecar: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [to-sidecar]}
  to-ambient: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [to-ambient]}
  behind:
    ports: [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [behind]
    waypoint: {name: waypoint, node: node-b, replicas: 2}
links:
  - {between: [node-a, node-b], delayMs: 1}
"""
"""`behind` shares a node with its clients and not with its waypoints: both legs of a call cross the one link."""


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("plane", ["hybrid", "hybrid:listens_hbone=yes"])
def test_every_kind_to_every_kind(plane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each pair claims is what packets show, in both directions, around waypoints and through their replicas."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    (tmp_path / "matrix.yml").write_text(MATRIX)
    topology = topofile.load(tmp_path / "matrix.yml")
    placement = planespec.place(plane, topology)
    seen, wrong = {}, []
    with up(topology, placement, tmp_path) as deployment:
        for client in ("from-none", "from-sidecar", "from-ambient"):
            for service in topology.services:
                findings = proof.prove(deployment, client=client, target=service.name, captures=tmp_path / service.name)
                wrong += broken(findings)
                checks = {f.id.rpartition("/")[2] for f in findings}
                seen[client.removeprefix("from-"), service.name.removeprefix("to-")] = (
                    "clear" if "readable" in checks else "hbone" if "hbone" in checks else "mtls"
                )
                if service.name == "behind":
                    ways = {f.segment for f in findings if f.id.endswith("/way")}
                    assert len(ways) == (2 if client == "from-ambient" else 1), ways

    assert wrong == []
    assert seen == {
        **{("none", server): "clear" for server in ("none", "sidecar", "ambient", "behind")},
        ("sidecar", "none"): "clear", ("sidecar", "sidecar"): "mtls",
        ("sidecar", "ambient"): "hbone", ("sidecar", "behind"): "hbone",
        ("ambient", "none"): "clear", ("ambient", "sidecar"): "clear" if plane == "hybrid" else "hbone",
        ("ambient", "ambient"): "hbone", ("ambient", "behind"): "hbone",
    }  # fmt: skip
    assert {c.encryption for c in placement.claims} == set(Encryption)
