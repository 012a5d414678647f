"""Topologies as cells of a sweep name them."""

from __future__ import annotations

import pytest

from testbed import planespec, topofile, variants
from testbed.errors import UsageError
from testbed.model.policy import Action, AuthorizationPolicy


def test_a_bare_name_is_the_shipped_topology() -> None:
    """As experiments have always named theirs."""
    assert variants.resolve("two-zones") == topofile.load("two-zones")


def test_policies_are_added_to_those_that_are_there() -> None:
    """As many as asked, each about others than the client, all forbidding."""
    plain, more = topofile.load("two-zones"), variants.resolve("two-zones:l4_policies=3")
    added = more.policies[len(plain.policies) :]

    assert more.policies[: len(plain.policies)] == plain.policies
    assert len(added) == 3
    assert all(isinstance(p, AuthorizationPolicy) and p.action is Action.DENY for p in added)
    assert len({p.rules for p in added}) == 3
    assert not any("sa/client" in name for p in added for name in p.rules[0].sources[0].principals)


def test_l4_policies_are_what_a_ztunnel_looks_at_and_l7_ones_a_waypoint() -> None:
    """Each reaches the proxies that the experiment is about, and the other's do not."""

    def sizes(spec: str) -> dict[str, int]:
        placed = planespec.place("ambient", variants.resolve(spec))
        return {
            proxy.role: len(proxy.view["policies"]) + len(str(proxy.options.get("l7", ""))) for proxy in placed.proxies
        }

    none, l4, l7 = sizes("two-zones"), sizes("two-zones:l4_policies=50"), sizes("two-zones:l7_policies=50")
    assert l4["ztunnel"] == none["ztunnel"] + 50
    assert l7["ztunnel"] == none["ztunnel"] and l7["waypoint"] > none["waypoint"] + 1000


def test_a_family_takes_its_own_numbers() -> None:
    """A crowd: each workload a service, or replicas of so many."""
    alone, replicas = variants.resolve("crowd:per_node=4"), variants.resolve("crowd:per_node=4:services=2")

    assert len(alone.workloads) == len(replicas.workloads) == 8
    assert (len(alone.services), len(replicas.services)) == (8, 2)
    assert all(len(service.endpoints) == 4 for service in replicas.services)
    assert len({service.waypoint.name for service in alone.services if service.waypoint}) == 8
    assert len(planespec.place("ambient", replicas).proxies) == 2 + 2
    assert len(planespec.place("sidecar", replicas).proxies) == 8


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no topology 'nowhere'"),
        ("two-zones:l5_policies=3", "no option is called 'l5_policies'; known: l4_policies"),
        ("two-zones:l4_policies=many", "takes a whole number, not 'many'"),
        ("crowd:per_nude=3", "per_nude"),
        ("crowd:per_node=2:services=9", "9 services of 4 workloads"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(spec: str, message: str) -> None:
    """Before anything is built."""
    with pytest.raises(UsageError, match=message):
        variants.resolve(spec)
