from __future__ import annotations

import pytest

from planes.mesh.view import MeshView, ViewError
from tests.meshviews import behind, service, view, workload


def policy(name: str, scope: str, namespace: str = "default") -> dict:
    return {"name": name, "namespace": namespace, "scope": scope, "action": "Deny", "dryRun": False, "rules": []}


def test_all_problems_are_told_at_once_with_their_place_and_mend() -> None:
    """A view with three mistakes in three objects raises one error that holds all of them."""
    text = {
        "workloads": [workload("a", "10.0.0.1", protcol="HBONE"), workload("b", "10.0.0.299")],
        "services": [service("s", "10.96.0.1", ipFamilies="IPv5")],
        "polices": [],
    }

    with pytest.raises(ViewError) as caught:
        MeshView.parse(text)

    assert caught.value.problems == (
        "view: polices is not known; did you mean 'policies'?",
        "workloads[0] (cluster1//v1/Pod/default/a): protcol is not known; did you mean 'protocol'?",
        "workloads[1] (cluster1//v1/Pod/default/b): workloadIps has '10.0.0.299', which is no IP address",
        "services[0] (s.default.svc.cluster.local): ipFamilies is 'IPv5'; known: Dual, IPv4, IPv6",
    )


@pytest.mark.parametrize("key", ["serviceAccount", "trustDomain"])
def test_an_identity_without_one_of_its_parts_is_refused(key: str) -> None:
    """ztunnel's LOCAL default for both is empty, which would match no certificate and say so nowhere."""
    missing = workload("a", "10.0.0.1")
    del missing[key]

    with pytest.raises(ViewError, match=f"{key} is missing"):
        view([missing])
    with pytest.raises(ViewError, match=f"{key} is empty"):
        view([workload("a", "10.0.0.1", **{key: ""})])


def test_one_uid_for_two_workloads_is_refused() -> None:
    """Endpoints refer to workloads by uid, so two of one uid would be one endpoint."""
    with pytest.raises(ViewError, match="used 2 times"):
        view([workload("a", "10.0.0.1"), workload("a", "10.0.0.2")])


def test_a_vip_needs_its_network() -> None:
    """ztunnel writes the (often empty) network before the slash; a bare address is a mistake with one mend."""
    with pytest.raises(ViewError, match=r'"/10\.96\.0\.1"'):
        view([], [service("s") | {"vips": ["10.96.0.1"]}])


def test_the_local_workload_is_found_by_name_only() -> None:
    """Who calls is known from the sandbox's registration, never from an address."""
    mesh = view([workload("a", "10.0.0.1")])

    assert mesh.local("default", "a") is mesh.workload_at("", "10.0.0.1")
    assert mesh.local("other", "a") is None


def test_addresses_of_host_network_workloads_name_nobody() -> None:
    """A node's address belongs to whoever runs there."""
    mesh = view([workload("a", "10.0.0.1", networkMode="HostNetwork")])

    assert mesh.workload_at("", "10.0.0.1") is None


def test_a_claimed_address_goes_to_the_pod_with_hbone() -> None:
    """Of several that claim an address, Pod with HBONE > Pod > HBONE > other, in whatever order they are written."""
    pod, hbone_pod = workload("pod", "10.0.0.1"), workload("hbone", "10.0.0.1", protocol="HBONE")
    entry = workload("entry", "10.0.0.1", protocol="HBONE") | {"uid": "c/istio/WorkloadEntry/default/entry"}

    for order in ([pod, hbone_pod, entry], [entry, hbone_pod, pod]):
        assert view(order).workload_at("", "10.0.0.1").name == "hbone"
    assert view([entry, pod]).workload_at("", "10.0.0.1").name == "pod"


def test_of_services_on_one_vip_the_clients_namespace_wins() -> None:
    """Then the canonical one, then the first; one that is private to its namespace is not seen from others."""
    first = service("first", "10.96.0.1") | {"namespace": "x"}
    canonical = service("canonical", "10.96.0.1", canonical=True) | {"namespace": "y"}
    private = service("private", "10.96.0.1", visibility="Namespace") | {"namespace": "z"}
    mesh = view([], [first, canonical, private])

    found = {client: mesh.service_at("", "10.96.0.1", client).name for client in ("x", "y", "z", "elsewhere")}
    assert found == {"x": "first", "y": "canonical", "z": "private", "elsewhere": "canonical"}


def test_the_longest_cidr_wins_and_an_exact_vip_before_it() -> None:
    """CIDR VIPs are looked at last, longest prefix first."""
    wide = service("wide", cidrVips=[{"network": "", "cidr": "10.20.0.0/16"}])
    narrow = service("narrow", cidrVips=[{"network": "", "cidr": "10.20.1.0/24"}])
    exact = service("exact", "10.20.1.1")
    mesh = view([], [wide, narrow, exact])

    assert mesh.service_at("", "10.20.1.1", "default").name == "exact"
    assert mesh.service_at("", "10.20.1.2", "default").name == "narrow"
    assert mesh.service_at("", "10.20.2.2", "default").name == "wide"
    assert mesh.service_at("other", "10.20.2.2", "default") is None


def test_unhealthy_endpoints_count_only_under_allow_all() -> None:
    """publishNotReadyAddresses becomes AllowAll; else an unhealthy workload is no endpoint."""
    sick = workload("sick", "10.0.0.1", status="Unhealthy", **behind("s"))
    all_of_them = {"mode": "Standard", "routingPreferences": [], "healthPolicy": "AllowAll"}
    strict, lenient = view([sick], [service("s")]), view([sick], [service("s", loadBalancer=all_of_them)])

    assert strict.endpoints(strict.services[0]) == ()
    assert [e.workload.name for e in lenient.endpoints(lenient.services[0])] == ["sick"]


def test_policies_of_a_workload_are_global_its_namespaces_and_those_it_names() -> None:
    """A name that is not known is skipped with a warning, as at ztunnel, where policies may arrive later."""
    mesh = view(
        [workload("a", "10.0.0.1", authorizationPolicies=["default/named", "default/lost"])],
        policies=[
            policy("everywhere", "Global", "istio-system"),
            policy("here", "Namespace"),
            policy("there", "Namespace", "other"),
            policy("named", "WorkloadSelector"),
            policy("unnamed", "WorkloadSelector"),
        ],
    )

    assert [p.name for p in mesh.policies_for(mesh.local("default", "a"))] == ["everywhere", "here", "named"]
    assert mesh.warnings == ("workload cluster1//v1/Pod/default/a: skipping unknown policy default/lost",)


def test_only_spiffe_names_of_a_service_count() -> None:
    """subjectAltNames may hold DNS names; ztunnel compares SPIFFE identities only."""
    mesh = view([], [service("s", subjectAltNames=["s.example.com", "spiffe://td/ns/n/sa/x"])])

    assert [str(i) for i in mesh.services[0].sans] == ["spiffe://td/ns/n/sa/x"]


def test_a_service_of_namespace_visibility_is_seen_from_its_own_only() -> None:
    """Neither by its VIP nor by its name from elsewhere."""
    mesh = view([], [service("s", "10.96.0.1", visibility="Namespace")])

    for found in (
        lambda namespace: mesh.service_at("", "10.96.0.1", namespace),
        lambda namespace: mesh.service_named("s.default.svc.cluster.local", namespace),
    ):
        assert found("default") is mesh.services[0]
        assert found("elsewhere") is None
