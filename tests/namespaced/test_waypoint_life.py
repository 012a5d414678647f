"""Waypoints that come, go, fail and drain while they are used; what a mesh does that knows of none."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.sidecars import Answer
from tests.namespaced.waypoints import DOOMED, WaypointWorld
from tests.namespaced.worlds import of, wait_for

pytestmark = [pytest.mark.root, needs_root]
BOTH = ("way", "way-2")


@contextlib.contextmanager
def lab_of(plane: str) -> Iterator[WaypointWorld]:
    with worlds.world(DOOMED, plane=plane, made=WaypointWorld) as made:
        assert isinstance(made, WaypointWorld)
        yield made


def unhealthy(*pods: str):
    def change(view: dict) -> None:
        for pod in pods:
            of(view["workloads"], pod)["status"] = "Unhealthy"

    return change


def without_waypoint(view: dict) -> None:
    del of(view["services"], "web")["waypoint"]


class Load:
    """Calls one after another, each over a connection of its own, until it is told to end."""

    def __init__(self, world: WaypointWorld) -> None:
        self.statuses: list[int] = []
        self._world, self._ending = world, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def more(self, count: int) -> list[int]:
        """The next `count` outcomes."""
        start = len(self.statuses)
        wait_for(lambda: len(self.statuses) >= start + count, f"{count} more calls", 20)
        return self.statuses[start:]

    def _run(self) -> None:
        while not self._ending.is_set():
            self.statuses.append(self._world.http("client", "web").status)


# -- missing, left out -------------------------------------------------------------------------------------------------


def test_a_waypoint_that_is_left_out_is_gone_round() -> None:
    """Plane option `waypoints=left-out`: istiod has not seen it ready, so calls go direct, and nothing is enforced."""
    with lab_of("ambient:waypoints=left-out") as mesh:
        assert mesh.http("client", "web").fields["x-peer-address"] == mesh.ip("client")


def test_a_waypoint_that_is_missing_ends_the_call() -> None:
    """Plane option `waypoints=missing`: the ztunnel knows its name and not where it is."""
    with lab_of("ambient:waypoints=missing") as mesh, mesh.logs("ztunnel.node-a", "outbound", "is not known"):
        assert mesh.http("client", "web").status == 0


def test_no_healthy_replica_ends_the_call(doomed_waypoint: WaypointWorld) -> None:
    """Known, and none to take it: not gone round either."""
    mesh = doomed_waypoint
    with mesh.edited(unhealthy(*BOTH)), mesh.logs("ztunnel.node-a", "outbound", "no healthy upstream"):
        assert mesh.http("client", "web").status == 0
    assert mesh.http("client", "web").status == 200


# -- added and removed -------------------------------------------------------------------------------------------------


def test_adding_a_waypoint_moves_no_open_connection(doomed_waypoint: WaypointWorld) -> None:
    """What was made before goes on directly; the next connection passes the waypoint (facts 7, row 9)."""
    mesh = doomed_waypoint
    ztunnels = ("ztunnel.node-a", "ztunnel.node-b")
    with mesh.edited(without_waypoint, *ztunnels):
        open_ = contextlib.ExitStack()
        ask = open_.enter_context(mesh.keep_alive("client", mesh.vip("web"), 80, "web"))
        assert ask().fields["x-peer-address"] == mesh.ip("client")
    with open_, mesh.through(*BOTH, by=1):
        for _ in range(3):
            assert ask().fields["x-peer-address"] == mesh.ip("client")
        assert mesh.http("client", "web").fields["x-peer-address"] in {mesh.pod(pod) for pod in BOTH}


def test_removing_a_waypoint_moves_no_open_connection(doomed_waypoint: WaypointWorld) -> None:
    """It serves what it has; new connections go direct."""
    mesh = doomed_waypoint
    with mesh.keep_alive("client", mesh.vip("web"), 80, "web") as ask:
        assert ask().status == 200
        with mesh.edited(without_waypoint, "ztunnel.node-a", "ztunnel.node-b"):
            with mesh.through(*BOTH, by=2):
                assert [ask().status, ask().status] == [200, 200]
            assert mesh.http("client", "web").fields["x-peer-address"] == mesh.ip("client")


def test_adding_a_waypoint_under_load_loses_nothing(doomed_waypoint: WaypointWorld) -> None:
    """Calls go on while the view changes, there and back."""
    mesh = doomed_waypoint
    with Load(mesh) as load:
        load.more(5)
        with mesh.edited(without_waypoint, "ztunnel.node-a", "ztunnel.node-b"):
            load.more(5)
        load.more(5)
    assert set(load.statuses) == {200}


# -- killed ------------------------------------------------------------------------------------------------------------


def test_a_replica_that_dies_takes_its_share_of_calls_until_it_is_known(doomed_waypoint: WaypointWorld) -> None:
    """A ztunnel neither retries nor ejects (facts 7, row 32); health comes with the view."""
    mesh = doomed_waypoint
    with Load(mesh) as load:
        load.more(5)
        mesh.waypoint("way-2").signal(signal.SIGKILL)
        mesh.waypoint("way-2").wait(5)
        outcomes = load.more(24)
        assert {0, 200} <= set(outcomes)
        with mesh.edited(unhealthy("way-2"), "ztunnel.node-a", "ztunnel.node-b"):
            assert set(load.more(12)[2:]) == {200}


def test_a_kill_of_all_replicas_ends_every_call(doomed_waypoint: WaypointWorld) -> None:
    """And what was open; the endpoint itself is well, as its own address shows."""
    mesh = doomed_waypoint
    with mesh.keep_alive("client", mesh.vip("web"), 80, "web") as ask:
        assert ask().status == 200
        for pod in BOTH:
            mesh.waypoint(pod).signal(signal.SIGKILL)
            mesh.waypoint(pod).wait(5)
        assert ask().status == 0
    assert mesh.http("client", "web").status == 0
    assert mesh.http("client", "", address=mesh.ip("web"), port=8080).status == 200


# -- drained -----------------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_it_has(doomed_waypoint: WaypointWorld) -> None:
    """SIGTERM: the request under way gets its answer, told to be the last of its connection; then the process ends."""
    mesh = doomed_waypoint
    answers: list[Answer] = []

    def slow() -> None:
        answers.append(mesh.http("client", "web", "/?delay_ms=1000"))

    callers = [threading.Thread(target=slow) for _ in range(4)]
    for caller in callers:
        caller.start()
    time.sleep(0.4)
    for pod in BOTH:
        mesh.waypoint(pod).signal(signal.SIGTERM)
    for caller in callers:
        caller.join()
    assert [a.status for a in answers] == [200] * 4
    assert [mesh.waypoint(pod).wait(8) for pod in BOTH] == [0, 0]


def test_a_replica_drains_under_load_without_a_lost_request(doomed_waypoint: WaypointWorld) -> None:
    """Left out of the view first, as istiod does, then ended: the other one takes over."""
    mesh = doomed_waypoint
    with contextlib.ExitStack() as view, Load(mesh) as load:
        load.more(5)
        view.enter_context(mesh.edited(unhealthy("way-2"), "ztunnel.node-a", "ztunnel.node-b"))
        mesh.waypoint("way-2").signal(signal.SIGTERM)
        assert mesh.waypoint("way-2").wait(8) == 0
        load.more(8)
    assert set(load.statuses) == {200}


def test_a_drain_has_a_deadline(doomed_waypoint: WaypointWorld) -> None:
    """A request that takes longer is cut, and the process ends all the same."""
    mesh = doomed_waypoint
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(mesh.http("client", "web", "/?delay_ms=7000")))
    caller.start()
    time.sleep(0.4)
    for pod in BOTH:
        mesh.waypoint(pod).signal(signal.SIGTERM)
    assert [mesh.waypoint(pod).wait(6) for pod in BOTH] == [0, 0]
    caller.join()
    assert [a.status for a in answers] == [0]


def test_a_draining_waypoint_takes_no_new_connection(doomed_waypoint: WaypointWorld) -> None:
    """Its listener is closed at once, while what it has goes on."""
    mesh = doomed_waypoint
    caller = threading.Thread(target=lambda: mesh.http("client", "web", "/?delay_ms=2000"))
    with mesh.edited(unhealthy("way-2"), "ztunnel.node-a", "ztunnel.node-b"):
        caller.start()
        time.sleep(0.4)
        mesh.waypoint("way").signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(OSError):
            mesh.connect_status("client", mesh.pod("way"), f"{mesh.vip('web')}:80", mesh.identity("client"))
        caller.join()
