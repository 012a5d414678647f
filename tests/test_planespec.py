"""Planes with options, as a user writes them."""

from __future__ import annotations

import pytest

from testbed import planespec, topofile
from testbed.errors import UsageError

TWO_ZONES = topofile.load("two-zones")


def test_options_stand_behind_the_name() -> None:
    """Several are parted like the first; commas part planes already."""
    assert planespec.split("ambient") == ("ambient", {})
    assert planespec.split("ambient:waypoint_node=node-a:waypoints=missing") == (
        "ambient", {"waypoint_node": "node-a", "waypoints": "missing"},
    )  # fmt: skip


@pytest.mark.parametrize("spec", ["ambient:node-a", "ambient:=x", "ambient:waypoint_node=", "ambient:a=b:a=c"])
def test_what_is_no_option_is_refused(spec: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError, match="option"):
        planespec.split(spec)


def test_a_placed_plane_is_called_as_it_was_written() -> None:
    """Two placements of one plane are two columns of a table."""
    assert planespec.place("ambient", TWO_ZONES).plane == "ambient"
    assert planespec.place("ambient:waypoint_node=node-a", TWO_ZONES).plane == "ambient:waypoint_node=node-a"


def test_the_waypoints_node_can_be_chosen() -> None:
    """Whatever node the topology names."""
    placed = planespec.place("ambient:waypoint_node=node-a", TWO_ZONES)

    assert [p.node for p in placed.proxies if p.role == "waypoint"] == ["node-a"]
    assert [p.node for p in planespec.place("ambient", TWO_ZONES).proxies if p.role == "waypoint"] == ["node-b"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ambient:waypoint_nod=node-a", "waypoint_node, waypoints"),
        ("ambient:waypoint_node=node-c", "node-a, node-b"),
        ("ambient:waypoints=gone", "ready, left-out, missing"),
        ("sidecar:waypoint_node=node-a", "takes: none"),
        ("ambiant:waypoint_node=node-a", "did you mean 'ambient'"),
    ],
)
def test_errors_name_what_is_known(spec: str, told: str) -> None:
    """Of plane, option and value alike."""
    with pytest.raises(UsageError, match=told):
        planespec.place(spec, TWO_ZONES)


def test_a_plane_may_name_its_runtime_and_is_placed_as_without() -> None:
    """It is another column of a run under its whole name, options before the `@`."""
    topology = topofile.load(topofile.find("pair"))
    spec = "ambient:waypoint_node=node-a@docker"

    assert planespec.split(spec) == ("ambient", {"waypoint_node": "node-a"})
    assert (planespec.runtime_of(spec), planespec.without_runtime(spec)) == ("docker", "ambient:waypoint_node=node-a")
    assert planespec.runtime_of("ambient") == ""
    placed = planespec.place("ambient-l4@docker", topology)
    assert placed.plane == "ambient-l4@docker"
    assert placed.proxies == planespec.place("ambient-l4", topology).proxies
