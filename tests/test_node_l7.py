"""One L7 proxy a node: where it goes, what it may be told, and what its packets and refusals say."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planes.l7.place import l7_view
from planes.mesh.view import MeshView
from planes.node_l7.inbound import told_source
from planes.node_l7.place import NAME, PLANE
from testbed import boundaries, calls, deploy, lab, nftables, proof, registry, topofile
from testbed.deploy import Deployment
from testbed.errors import Bug, UsageError
from testbed.links.probe import choose
from testbed.model.experiment import Finding, Result
from testbed.model.placement import CaptureKind, Claim, Encryption
from testbed.model.topology import Topology
from testbed.runtime.netns import NetnsRuntime
from tests.labs import needs_root

PAIR, CHAIN, TWO_ZONES = (topofile.load(topofile.find(name)) for name in ("pair", "chain3", "two-zones"))


def legs(claims: tuple[Claim, ...], *stops: str) -> list[Claim]:
    return [claim for claim in claims if claim.stops == stops]


class TestPlace:
    @pytest.mark.parametrize("topology", [PAIR, CHAIN, TWO_ZONES], ids=lambda t: t.name)
    def test_a_node_has_one_proxy_with_one_identity_for_all_its_workloads(self, topology: Topology) -> None:
        """The keys of workloads do not exist: what a proxy gives away is its node."""
        placement = PLANE.place(topology, {})

        assert {p.sandbox: p.serves for p in placement.proxies} == {
            n.name: tuple(w.name for w in topology.on_node(n.name)) for n in topology.nodes
        }
        assert [str(i) for p in placement.proxies for i in p.identities] == [
            f"spiffe://{topology.trust_domain}/ns/mesh-system/sa/node-l7-{n.name}" for n in topology.nodes
        ]
        assert {(c.workload, c.kind) for c in placement.captures} == {
            (w.name, CaptureKind.NODE) for w in topology.workloads
        }

    def test_it_is_found_by_its_name(self) -> None:
        """As any other plane."""
        assert registry.load("plane", NAME) is PLANE

    def test_an_option_is_refused_by_name(self) -> None:
        """It has none."""
        with pytest.raises(UsageError, match="'waypoints'"):
            PLANE.place(PAIR, {"waypoints": "ready"})

    def test_only_between_nodes_there_is_mutual_tls_and_in_the_nodes_names(self) -> None:
        """Plain on both veths is part of the promise: a judge must find it readable there."""
        placement = PLANE.place(PAIR, {})
        first, between, last = legs(placement.claims, "client", "node-a", "node-b", "server")
        names = {p.node: p.identities[0] for p in placement.proxies}

        assert (first.encryption, last.encryption) == (Encryption.CLEAR, Encryption.CLEAR)
        assert (first.source, first.destination, last.source, last.destination) == (
            "client", "node-a", "node-b", "server",
        )  # fmt: skip
        assert (between.encryption, between.hbone) == (Encryption.MTLS, True)
        assert (between.client_identity, between.server_identity) == (names["node-a"], names["node-b"])
        assert between.authority == f"{PAIR.workload('server').address}:8080"

    def test_on_one_node_no_wire_shows_a_proof_of_identity(self) -> None:
        """Both legs are veths."""
        found = legs(PLANE.place(CHAIN, {}).claims, "client", "node-a", "a")

        assert [(c.source, c.destination, c.encryption) for c in found] == [
            ("client", "node-a", Encryption.CLEAR), ("node-a", "a", Encryption.CLEAR),
        ]  # fmt: skip

    def test_who_has_another_planes_label_is_outside(self) -> None:
        """Neither caught nor believed, and called plainly by the caller's proxy."""
        outside = tuple(dataclasses.replace(w, plane="none") if w.name == "server" else w for w in PAIR.workloads)
        placement = PLANE.place(dataclasses.replace(PAIR, workloads=outside), {})

        assert [p.serves for p in placement.proxies] == [("client",), ("tcp",)]
        assert [c.encryption for c in legs(placement.claims, "client", "node-a", "server")] == [Encryption.CLEAR] * 2
        protocols = {w["name"]: w["protocol"] for w in placement.proxies[0].view["workloads"]}
        assert (protocols["server"], protocols["tcp"]) == ("TCP", "HBONE")


class TestCapture:
    def test_a_nodes_workloads_are_caught_by_one_table(self) -> None:
        """A second one would take the first one's place."""
        placement = PLANE.place(PAIR, {})
        batches = dict(deploy.capture_batches(PAIR, placement, {p.name: 1337 for p in placement.proxies}))
        there = [PAIR.workload(name).address for name in ("server", "tcp")]

        assert set(batches) == {"node-a", "node-b"}
        assert batches["node-b"] == nftables.node_capture(there, PAIR.node("node-b").address)

    def test_a_proxy_of_another_node_catches_nothing(self) -> None:
        """Its address would be none of the node's."""
        placement = PLANE.place(PAIR, {})
        wrong = dataclasses.replace(placement.captures[0], proxy="node-l7.node-b")
        uids = {p.name: 1337 for p in placement.proxies}

        with pytest.raises(Bug, match="not in node-a"):
            list(deploy.capture_batches(PAIR, dataclasses.replace(placement, captures=(wrong,)), uids))


class TestWord:
    """Whom a proxy may speak for is all that stands between a stolen node key and the whole mesh."""

    placement = PLANE.place(PAIR, {})
    mesh = MeshView.parse(json.loads(json.dumps(placement.proxies[0].view)))
    a, b = (str(p.identities[0]) for p in placement.proxies)

    def test_a_node_is_believed_about_its_own_workloads(self) -> None:
        """By what it proved to be."""
        found = told_source(self.mesh, self.a, "default/client")

        assert found is not None and found.identity == PAIR.workload("client").identity(PAIR.trust_domain)

    @pytest.mark.parametrize("field", ["default/server", "default/nobody", "", "client", "mesh-system/node-l7-node-b"])
    def test_and_about_no_other(self, field: str) -> None:
        """Nor where it says nothing."""
        assert told_source(self.mesh, self.a, field) is None

    def test_a_workloads_own_identity_is_nobodys_word(self) -> None:
        """Only nodes have keys here; one that the CA gave a workload opens nothing."""
        mine = str(PAIR.workload("client").identity(PAIR.trust_domain))

        assert told_source(self.mesh, mine, "default/client") is None
        assert told_source(self.mesh, self.b, "default/client") is None


def test_calls_are_expected_to_be_judged_where_they_are_brought() -> None:
    """Refused for what HTTP says; but who goes past the proxies meets nobody, and that is said."""
    placement = PLANE.place(TWO_ZONES, {})
    deployed = type("Deployed", (), {"placement": placement, "lab": type("Lab", (), {"topology": TWO_ZONES})()})()
    trial = calls._Trial(deployed, "client")  # type: ignore[arg-type]
    vault = calls.stand(placement.proxies, "vault")

    assert {b.name: b.stopped for b in (*trial.boundaries(vault), *trial.l7_boundaries())} == {
        "plaintext-to-strict": False, "l4-denied": True, "l4-denied-direct": True, "wrong-identity": True,
        "forged-identity": True, "l7-denied": True, "l7-denied-pod-ip": True,
    }  # fmt: skip


# -- in a lab


@contextmanager
def up(topology: Topology, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.setenv("MESHBED_STATE", str(folder / "state"))
    with (
        lab.up(topology, runtime=NetnsRuntime(), links=choose(), name=topology.name, logs=folder / "logs") as running,
        deploy.deploy(running, PLANE.place(topology, {}), keylog=True) as deployment,
    ):
        yield deployment


def wrong(findings: Iterable[Finding]) -> list[str]:
    return [f"{f.id}: {f.value}: {f.evidence}" for f in findings if f.result is not Result.HOLDS]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("topology", "target"),
    [(PAIR, "server"), (PAIR, "tcp"), (CHAIN, "a"), (CHAIN, "c")],
    ids=lambda value: getattr(value, "name", value),
)
def test_packets_bear_the_nodes_names_on_links_and_nobodys_on_veths(
    topology: Topology, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP and TCP, on one node, over one link and over two. A lab each: a tunnel begun before cannot be judged."""
    with up(topology, tmp_path, monkeypatch) as deployment:
        findings = proof.prove(deployment, client="client", target=target, captures=tmp_path)
    node = topology.workload(target).node
    checks = {(f.id.split("/")[1], f.id.rpartition("/")[2]) for f in findings}

    assert wrong(findings) == []
    assert {("client>node-a", "readable"), (f"{node}>{target}", "readable")} <= checks
    if node != "node-a":
        assert {(f"node-a>{node}", c) for c in ("hidden", "delivered", "tls", "identity", "hbone")} <= checks


@pytest.mark.root
@needs_root
def test_routes_and_policies_change_while_it_runs_and_it_ends_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one workload, by its name in the view; the others keep theirs."""
    server = TWO_ZONES.workload("server")
    open_to_all = {"default/server": l7_view(dataclasses.replace(TWO_ZONES, policies=()), workload=server)}
    vip = TWO_ZONES.service("server")
    ask = {"name": "x", "kind": "http", "address": vip.address, "port": vip.ports[0].port, "path": calls.SECRET}
    with up(TWO_ZONES, tmp_path, monkeypatch) as deployment:

        def status() -> int | None:
            return proof.run_probe(deployment, "client", [ask])["x"][0]["status"]

        assert status() == 403
        for proxy in deployment.placement.proxies:
            deployment.configure(proxy, {**proxy.view, "l7": open_to_all})
        give_up_s = time.monotonic() + 10
        while status() != 200:
            assert time.monotonic() < give_up_s, "the new policies never came into force"
        denied = proof.run_probe(deployment, "intruder", [{**ask, "address": TWO_ZONES.service("vault").address}])
        assert denied["x"][0]["status"] == 403
        for process in deployment.proxies.values():
            process.signal(signal.SIGTERM)
        assert [process.wait(10.0) for process in deployment.proxies.values()] == [0, 0]


@pytest.mark.root
@needs_root
def test_a_nodes_key_is_every_workload_of_that_node_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vault` lets only `client` in, and nobody can see that it is not `client` who calls."""
    vault, node = TWO_ZONES.workload("vault"), TWO_ZONES.workload("client").node
    with up(TWO_ZONES, tmp_path, monkeypatch) as deployment:
        stolen = next(p.identities[0] for p in deployment.placement.proxies if p.node == node)
        hop = {
            "kind": "hbone", "address": TWO_ZONES.node(vault.node).address, "port": 15008, "cert": "n.cert.pem",
            "key": "n.key.pem", "authority": f"{vault.address}:{vault.app.ports[0]}",
        }  # fmt: skip
        words = {"own": "default/client", "other": "default/server", "nobody": ""}
        attempts = [{**hop, "name": n, "connect_headers": {calls.SOURCE_FIELD: word}} for n, word in words.items()]
        files = calls._pem("n", deployment.authority, stolen)
        outcomes = proof.run_probe(deployment, node, attempts, files=files)

    assert {name: (tries[0]["connect_status"], tries[0]["answered_by"]) for name, tries in outcomes.items()} == {
        "own": (200, "vault"), "other": (401, None), "nobody": (401, None),
    }  # fmt: skip


@pytest.mark.root
@needs_root
def test_policy_is_asked_where_calls_are_brought_and_keys_are_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GET /secret is denied, also by the pod's own address; workloads' certificates open nothing; a node's key does."""
    with up(TWO_ZONES, tmp_path, monkeypatch) as deployment:
        packets = proof.prove(deployment, client="client", target="server", captures=tmp_path)
        tried = boundaries.try_all(deployment, client="client", packets=packets)
    found = {f.id.removeprefix("boundary."): f for f in tried}

    assert wrong(tried) == []
    assert found["identities-held"].value == "2 node-l7s: 1 each"
    assert found["plaintext-visible"].value == "2 of 3 segments"
    assert found["plaintext-to-strict"].value == "passed (200)"
    assert found["l4-denied"].value == found["l7-denied"].value == found["l7-denied-pod-ip"].value == "refused (403)"
    assert found["l4-denied-direct"].value == "refused (401)"
    assert found["l7-allow"].value == "GET passed (200), POST refused (403)"
