"""The labs that the cases share: brought up once, taken down at the end; destructive cases make their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.planespec import place
from tests.labs import needs_engine
from tests.namespaced import worlds
from tests.namespaced.sidecars import SIDECARS, SidecarWorld
from tests.namespaced.waypoints import DOOMED, MIXED, WAYPOINTS, WaypointWorld, sniffing, told
from tests.namespaced.worlds import World

SIDECAR_OPTIONS = {"access_log": "stderr", "policy_drain_s": 0.5}


@pytest.fixture(scope="package", autouse=True, params=["netns", pytest.param("docker", marks=pytest.mark.docker)])
def runtime(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every case on namespaces, then every case on containers: one suite for both."""
    if request.param == "docker":
        needs_engine()
    with worlds.on(request.param):
        yield


@pytest.fixture(scope="package")
def mesh(runtime: None) -> Iterator[World]:
    """Two nodes, a ztunnel each."""
    with worlds.world(place=worlds.with_more) as made:
        yield made


@pytest.fixture(scope="package")
def single(runtime: None) -> Iterator[World]:
    """Dedicated mode: each captured workload has a ztunnel of its own, in its own sandbox."""
    with worlds.world(place=worlds.dedicated) as made:
        yield made


@pytest.fixture
def doomed(runtime: None) -> Iterator[World]:
    """One node and a ztunnel that the case may end."""
    with worlds.world(worlds.ONE_NODE, options={"drain_deadline_s": 1.5}) as made:
        yield made


@pytest.fixture(scope="package")
def sidecars(runtime: None) -> Iterator[SidecarWorld]:
    """Two nodes, workloads with sidecars and without."""
    with worlds.world(SIDECARS, plane="sidecar", options=SIDECAR_OPTIONS, made=SidecarWorld) as made:
        assert isinstance(made, SidecarWorld)
        made.made_ready()
        yield made


@pytest.fixture(scope="package")
def ambient(runtime: None) -> Iterator[WaypointWorld]:
    """Two nodes, a ztunnel each, waypoints of every kind."""
    with worlds.world(
        WAYPOINTS, plane="ambient", made=WaypointWorld,
        place=lambda topology, _: told(place("ambient", sniffing(topology)), access_log="stderr", policy_drain_s=0.5),
    ) as made:  # fmt: skip
        assert isinstance(made, WaypointWorld)
        made.made_ready()
        yield made


@pytest.fixture
def doomed_waypoint(runtime: None) -> Iterator[WaypointWorld]:
    """One service behind a waypoint of two replicas that the case may end."""
    with worlds.world(DOOMED, plane="ambient", made=WaypointWorld, options={"drain_deadline_s": 3.0}) as made:
        assert isinstance(made, WaypointWorld)
        yield made


@pytest.fixture(params=["hybrid", "hybrid:listens_hbone=yes"])
def mixed(request: pytest.FixtureRequest, runtime: None) -> Iterator[WaypointWorld]:
    """A waypoint whose service's endpoint has a sidecar; one that takes tunnels where it is asked to."""
    with worlds.world(MIXED, plane=request.param, made=WaypointWorld) as made:
        assert isinstance(made, WaypointWorld)
        yield made
