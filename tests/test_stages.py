"""What leads from one placement to another, and what experiments with events ask of a topology."""

from __future__ import annotations

import pytest

from experiments.disruption import CRASH, FULL
from experiments.disruption import EXPERIMENT as DISRUPTION
from experiments.joining import INSIDE, OUTSIDE
from testbed import eventtrial, planespec, registry, stages, sweep
from testbed.errors import UsageError
from testbed.model.event import Kind, Stage

TOPOLOGY = sweep.resolve(DISRUPTION)
NAMES = [w.name for w in TOPOLOGY.workloads]
QUICK = ("certificates", "disruption", "joining", "migration", "policy_change")
EVENTFUL = (*QUICK, *(f"{name}-full" for name in QUICK))


def placed(plane: str, stage: Stage | None = None):
    return stages.of(stage, TOPOLOGY, plane)[1]


def test_to_join_ambient_is_to_be_entered_and_captured_and_nothing_else() -> None:
    """No proxy comes or goes, nothing is restarted; every ztunnel is told of it."""
    found = stages.change(placed("ambient-l4", OUTSIDE), placed("ambient-l4", INSIDE), NAMES)

    assert found.entered == (("ztunnel.node-b", "server"), ("ztunnel.node-b", "echo"))
    assert {c.workload for c in found.captured} == {"server", "echo"}
    assert {p.name for p in found.told} == {"ztunnel.node-a", "ztunnel.node-b"}
    assert found.restarted == found.started == found.stopped == found.released == found.left == ()


def test_to_leave_is_the_way_back() -> None:
    """What was captured is released, who was entered is left."""
    found = stages.change(placed("ambient-l4", INSIDE), placed("ambient-l4", OUTSIDE), NAMES)

    assert {w for _, w in found.left} == {c.workload for c in found.released} == {"server", "echo"}
    assert found.entered == found.captured == found.restarted == ()


def test_to_join_with_a_sidecar_restarts_the_workload() -> None:
    """A proxy comes into its sandbox; the others are told that it has one."""
    found = stages.change(placed("sidecar", OUTSIDE), placed("sidecar", INSIDE), NAMES)

    assert found.restarted == ("server", "echo")
    assert {p.name for p in found.started} == {"sidecar.server", "sidecar.echo"}
    client = next(p for p in found.told if p.name == "sidecar.client")
    assert any("server" in uid for uid in stages.told(client)["sidecars"])


def test_a_waypoint_that_comes_restarts_nobody() -> None:
    """It has a sandbox of its own."""
    found = stages.change(placed("ambient-l4"), placed("ambient"), NAMES)

    assert [p.name for p in found.started] == ["waypoint.waypoint"]
    assert found.restarted == found.captured == ()


@pytest.mark.parametrize("kind", [Kind.KILL, Kind.HANG, Kind.RESTART])
def test_every_kind_of_part_of_every_plane_is_struck_in_every_way(kind: Kind) -> None:
    """By the full form: each role, and the application itself."""
    for plane in FULL.planes:
        cells = [cell for cell in FULL.cells if not cell.planes or plane in cell.planes]
        where = [event.on for cell in cells for event in cell.events if event.kind is kind]
        struck = {p.name for on in where for p in stages.proxies_of(placed(plane), on)}
        assert "app:server" in where
        assert {p.role for p in placed(plane).proxies} == {p.role for p in placed(plane).proxies if p.name in struck}


def test_nothing_changes_between_equals() -> None:
    """Each plane to itself."""
    for plane in ("sidecar", "ambient", "hybrid"):
        assert stages.change(placed(plane), placed(plane), NAMES) == stages.Change()


def test_the_plugin_is_in_the_proxy_that_is_to_crash_and_in_no_other() -> None:
    """A sidecar's of the server, the server's waypoint, its node's proxy."""
    for plane, name in (("sidecar", "sidecar.server"), ("ambient", "waypoint.waypoint"), ("node-l7", "node-l7.node-b")):
        made = stages.prepared(placed(plane), [CRASH], drain_s=1.5)
        armed = [p.name for p in made.proxies if "crash_header" in p.options]

        assert armed == [name]
        assert {p.options["drain_deadline_s"] for p in made.proxies} == {1.5}
        assert not any("crash_header" in p.options for p in placed(plane).proxies)


def test_whom_an_event_is_on_depends_on_the_plane() -> None:
    """A sidecar, a node's agent, a waypoint, nobody."""
    named = {
        (plane, on): [p.name for p in stages.proxies_of(placed(plane), on)]
        for plane in ("none", "sidecar", "ambient")
        for on in ("proxy:server", "waypoint:server", "proxy:client")
    }

    assert named["sidecar", "proxy:server"] == ["sidecar.server"]
    assert named["ambient", "proxy:server"] == ["ztunnel.node-b"]
    assert named["ambient", "proxy:client"] == ["ztunnel.node-a"]
    assert named["ambient", "waypoint:server"] == ["waypoint.waypoint"]
    assert stages.proxies_of(placed("ambient-l4"), "l7:server") == ()
    assert named["none", "proxy:server"] == named["sidecar", "waypoint:server"] == []
    with pytest.raises(UsageError, match="write proxy:"):
        stages.proxies_of(placed("none"), "server")


def test_a_label_for_nobody_is_refused() -> None:
    """By the name that is wrong."""
    with pytest.raises(UsageError, match="no workload 'sever'"):
        stages.of(Stage(kinds=(("sever", "none"),)), TOPOLOGY, "ambient")


def test_proxies_hold_from_the_beginning_what_they_will_need() -> None:
    """A ztunnel whom a workload is to join has its identity."""
    before = stages.with_identities_of(placed("ambient-l4", OUTSIDE), placed("ambient-l4", INSIDE))
    ztunnel = next(p for p in before.proxies if p.name == "ztunnel.node-b")

    assert {i.service_account for i in ztunnel.identities} == {"server", "ledger", "echo"}
    assert ztunnel.enters == ("ledger",)


@pytest.mark.parametrize("name", EVENTFUL)
def test_every_cell_of_every_experiment_with_events_can_be_placed(name: str) -> None:
    """Under each plane that it names, with a sandbox for each waypoint that comes."""
    experiment = registry.load("experiment", name)
    topology = sweep.resolve(experiment)
    for block in sweep.plan_blocks(experiment, experiment.planes, seed=1):
        assert block.cells
        assert planespec.place(block.plane, topology)
        extra = {sandbox for sandbox, _, _ in eventtrial.sandboxes(experiment, topology, block.plane)}
        for cell in (cell for cell in experiment.cells if cell.name in block.cells):
            begins = eventtrial.begins_as(experiment, cell, topology, block.plane)
            assert {p.sandbox for p in begins.proxies if p.own_address} <= extra
            assert all(event.at_s < cell.load.window_s for event in cell.events)


def test_a_cell_of_some_planes_is_measured_under_no_other() -> None:
    """The waypoint's cells belong to the plane that has one."""
    blocks = sweep.plan_blocks(DISRUPTION, DISRUPTION.planes, seed=1)

    assert {b.plane for b in blocks if any("waypoint" in cell for cell in b.cells)} == {"ambient"}
