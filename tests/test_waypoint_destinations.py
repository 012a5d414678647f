"""What an authority means at a waypoint, by its views alone."""

from __future__ import annotations

import pytest

from planes.l7.view import L7Config, L7Port, L7Service, L7View, Role
from planes.waypoint.destinations import find
from tests.meshviews import behind, gateway, service, view, workload

WAY = "way.default.svc.cluster.local"
MESH = view(
    [
        workload("way", "10.0.1.9", **behind("way", {"15008": 15008})),
        workload("other", "10.0.1.8", **behind("other", {"15008": 15008})),
        workload("mine", "10.0.1.2", waypoint=gateway(f"default/{WAY}")),
        workload("by-address", "10.0.1.3", waypoint=gateway("/10.0.1.9")),
        workload("others", "10.0.1.4", waypoint=gateway("default/other.default.svc.cluster.local")),
        workload("free", "10.0.1.5"),
        workload("lost", "10.0.1.6", waypoint=gateway("default/gone.default.svc.cluster.local")),
    ],
    [service("way", ports={"15008": 15008}), service("other", ports={"15008": 15008})],
)


def l7_service(name: str, address: str, protocol: str) -> L7Service:
    return L7Service(
        name=name, namespace="default", hostname=f"{name}.default.svc.cluster.local", address=address,
        ports=(L7Port(port=80, target_port=8080, protocol=protocol),),
    )  # fmt: skip


SERVED = l7_service("web", "10.96.0.1", "http")
SNIFFED = l7_service("raw", "10.96.0.2", "")
FOREIGN = l7_service("foreign", "10.96.0.3", "http")
L7 = L7View(
    L7Config(
        role=Role.WAYPOINT, name="way", namespace="default", trust_domain="cluster.local",
        services=(SERVED, SNIFFED, FOREIGN), serves=(SERVED.key, SNIFFED.key),
    )
)  # fmt: skip


def ask(host: str, port: int, mesh=MESH):
    local = mesh.local("default", "way")
    return find(L7, mesh, local, host, port, is_address=host[0].isdigit())


@pytest.mark.parametrize("host", ["10.96.0.1", "web.default.svc.cluster.local"])
def test_a_service_by_address_and_by_name(host: str) -> None:
    """With the protocol that its port declares."""
    found = ask(host, 80)
    assert found is not None
    assert (found.service, found.workload, found.protocol) == (SERVED, None, "http")


def test_a_port_without_a_protocol_is_to_be_sniffed() -> None:
    """An empty name, as for every workload's own address."""
    assert ask("10.96.0.2", 80).protocol == ""
    assert ask("10.0.1.2", 8080).protocol == ""


@pytest.mark.parametrize(
    ("host", "port"),
    [("10.96.0.1", 81), ("10.96.0.3", 80), ("foreign.default.svc.cluster.local", 80), ("web", 80), ("10.96.9.9", 80)],
)
def test_what_it_does_not_stand_before(host: str, port: int) -> None:
    """Another port, another's service, half a name, nobody's address."""
    assert ask(host, port) is None


@pytest.mark.parametrize("address", ["10.0.1.2", "10.0.1.3"])
def test_workloads_that_name_it(address: str) -> None:
    """By the waypoint's service or by its address; any port but the proxies' own."""
    found = ask(address, 1234)
    assert found is not None
    assert (found.workload.addresses, found.service, found.service_key) == ((address,), None, None)
    assert ask(address, 15008) is None


@pytest.mark.parametrize("address", ["10.0.1.4", "10.0.1.5", "10.0.1.6", "10.0.1.8", "10.0.1.9"])
def test_workloads_that_do_not(address: str) -> None:
    """Another waypoint's, one without, one whose waypoint is not known, another waypoint, and itself."""
    assert ask(address, 8080) is None


def test_an_unhealthy_replica_still_knows_its_workloads() -> None:
    """Health decides who is called, not what a waypoint is."""
    mesh = view(
        [
            workload("way", "10.0.1.9", status="Unhealthy", **behind("way", {"15008": 15008})),
            workload("mine", "10.0.1.2", waypoint=gateway(f"default/{WAY}")),
        ],
        [service("way", ports={"15008": 15008})],
    )
    assert ask("10.0.1.2", 8080, mesh) is not None
