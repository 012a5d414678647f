from __future__ import annotations

import dataclasses
import json

import pytest

from planes import catalog
from planes.mesh.route import HopKind, next_hop
from planes.mesh.view import MeshView
from planes.ztunnel.place import ambient_workloads, mesh_view
from testbed.errors import UsageError
from testbed.model.l4policy import Connection, decide
from testbed.model.placement import CaptureKind, Encryption, Placement
from testbed.model.topology import Topology
from testbed.topofile import load, shipped

TWO_ZONES = load("two-zones")
UNLABELLED = [name for name in sorted(shipped()) if not any(w.plane for w in load(name).workloads)]
"""Those whose workloads all go where the plane puts them."""


def labelled(topology: Topology, name: str, plane: str) -> Topology:
    workloads = tuple(dataclasses.replace(w, plane=plane) if w.name == name else w for w in topology.workloads)
    return dataclasses.replace(topology, workloads=workloads)


def test_none_places_nothing_and_claims_cleartext() -> None:
    """The control: without a plane the wire must show the application's bytes, or the check is broken."""
    placement = catalog.none.place(TWO_ZONES, {})

    assert (placement.proxies, placement.captures) == ((), ())
    assert {c.encryption for c in placement.claims} == {Encryption.CLEAR}
    assert {(c.source, c.destination) for c in placement.claims} == {
        (client, server) for client in ("client", "intruder") for server in ("server", "tcp", "ledger", "vault")
    }


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_ztunnel_holds_the_identities_of_its_own_node_and_no_others(name: str) -> None:
    """The boundary of a node proxy: what it could give away is what runs beside it."""
    topology = load(name)
    placement = catalog.ambient_l4.place(topology, {})

    assert [p.node for p in placement.proxies] == [n.name for n in topology.nodes if topology.on_node(n.name)]
    for proxy in placement.proxies:
        beside = topology.on_node(proxy.node)
        assert set(proxy.identities) == {w.identity(topology.trust_domain) for w in beside}
        assert proxy.enters == proxy.serves == tuple(w.name for w in beside)
        assert proxy.sandbox == proxy.node
    assert {c.workload: c.kind for c in placement.captures} == {w.name: CaptureKind.IN_POD for w in topology.workloads}


@pytest.mark.parametrize("name", UNLABELLED)
def test_every_claim_is_the_hop_that_the_view_gives(name: str) -> None:
    """The claim's authority and identities are those the ztunnel, asked for the service's address, will use."""
    topology = load(name)
    placement = catalog.ambient_l4.place(topology, {})
    mesh = MeshView.parse(json.loads(json.dumps(placement.proxies[0].view)))
    promised = {(c.source, c.authority): c for c in placement.claims}
    reached = set()
    for source in {c.source for c in placement.claims}:
        client = topology.workload(source)
        for service in topology.services:
            for draw in range(20):
                hop = next_hop(
                    mesh, mesh.local(client.namespace, client.name), (service.address, service.ports[0].port), draw / 20
                )
                claim = promised.get((source, hop.authority))
                if claim is None:
                    continue
                reached.add((source, hop.authority))
                assert hop.kind is HopKind.HBONE
                assert hop.expected == (str(claim.server_identity),)
                assert hop.source_identity == claim.client_identity

    preferring = {e for s in topology.services if s.traffic_distribution != "any" for e in s.endpoints}
    assert {promised[key].destination for key in set(promised) - reached} <= preferring


def test_ztunnels_know_a_workload_with_a_host_name_by_no_address() -> None:
    """They are told what the name stands for beside the view; its identity and its services stay."""
    name = "files.example.com"
    workloads = tuple(dataclasses.replace(w, hostname=name) if w.name == "server" else w for w in TWO_ZONES.workloads)
    placement = catalog.ambient.place(dataclasses.replace(TWO_ZONES, workloads=workloads), {})
    address = TWO_ZONES.workload("server").address

    for proxy in placement.proxies:
        (entry,) = [w for w in proxy.view["workloads"] if w["name"] == "server"]
        if proxy.role == "ztunnel":
            assert (entry["workloadIps"], entry["hostname"]) == ([], name)
            assert proxy.options["hosts"] == {name: [address]}
        else:
            assert entry["workloadIps"] == [address] and "hostname" not in entry


def test_a_labelled_workload_is_left_out_of_the_capture() -> None:
    """Its traffic is plain both ways, and no ztunnel holds its identity."""
    topology = labelled(TWO_ZONES, "server", "none")
    placement = catalog.ambient_l4.place(topology, {})
    claims = {(c.source, c.destination): c for c in placement.claims}

    assert "server" not in {c.workload for c in placement.captures}
    assert not [i for p in placement.proxies for i in p.identities if i.service_account == "server"]
    assert claims["client", "server"].encryption is Encryption.CLEAR
    assert claims["client", "tcp"].hbone
    protocols = {w["name"]: w["protocol"] for w in placement.proxies[0].view["workloads"]}
    assert (protocols["server"], protocols["tcp"]) == ("TCP", "HBONE")


def test_a_node_without_captured_workloads_gets_no_ztunnel() -> None:
    """Nothing to act for, nothing to hold."""
    topology = TWO_ZONES
    for name in ("server", "tcp", "ledger", "vault"):
        topology = labelled(topology, name, "sidecar")

    assert [p.node for p in catalog.ambient_l4.place(topology, {}).proxies] == ["node-a"]


def test_the_policies_of_the_topology_bind_where_they_should() -> None:
    """`vault` takes the client by mTLS; plaintext and the intruder are denied; `server` is open to all."""
    mesh = MeshView.parse(catalog.ambient_l4.place(TWO_ZONES, {}).proxies[1].view)

    def allowed(namespace: str, name: str, caller: str | None) -> bool:
        destination = mesh.local(namespace, name)
        identity = mesh.local("default", caller).identity if caller else None
        connection = Connection(
            source_ip="10.0.1.2", destination_ip=destination.addresses[0], destination_port=8080, identity=identity
        )
        return decide(mesh.policies_for(destination), connection).allowed

    assert allowed("secure", "vault", "client")
    assert not allowed("secure", "vault", "intruder")
    assert not allowed("secure", "vault", None)
    assert allowed("default", "server", None)


def test_a_waypoint_is_left_out_unless_a_plane_brings_one() -> None:
    """`server` names a waypoint in the file; at L4 it is reached directly, with the L7 planes through it."""
    captured = ambient_workloads(TWO_ZONES)
    plain = MeshView.parse(mesh_view(TWO_ZONES, captured=captured))
    through = MeshView.parse(mesh_view(TWO_ZONES, captured=captured, waypoints={"server": "/10.0.2.250"}))

    assert [s.waypoint for s in plain.services] == [None] * 4
    assert [str(s.waypoint) for s in through.services if s.waypoint] == ["/10.0.2.250:15008"]


@pytest.mark.parametrize(
    ("distribution", "mode"), [("prefer-same-zone", "Failover"), ("prefer-same-node", "Failover"), ("local", "Strict")]
)
def test_traffic_distribution_becomes_routing_preferences(distribution: str, mode: str) -> None:
    """As istiod fills them in (facts/hbone 2.3)."""
    services = tuple(dataclasses.replace(s, traffic_distribution=distribution) for s in TWO_ZONES.services)
    view = mesh_view(dataclasses.replace(TWO_ZONES, services=services), captured=())

    assert {s["loadBalancer"]["mode"] for s in view["services"]} == {mode}
    MeshView.parse(view)


def test_placements_add_up() -> None:
    """A hybrid is a sum, so adding the empty plane changes nothing but the name."""
    placement = catalog.ambient_l4.place(TWO_ZONES, {})

    assert Placement(plane="ambient-l4") + placement == placement


def test_an_unknown_option_is_refused() -> None:
    """A misspelt option must not be passed over in silence."""
    with pytest.raises(UsageError, match="waypoint_node"):
        catalog.ambient_l4.place(TWO_ZONES, {"waypoint_node": "node-a"})
