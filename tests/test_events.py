"""Events carried out in one real lab, one after another: what they strike is struck, and all is served again.

How quickly is a matter of the machine and asserted nowhere.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.disruption import CRASH, STREAMS
from experiments.disruption import EXPERIMENT as DISRUPTION
from experiments.joining import INSIDE, OUTSIDE
from planes.l7.crash import EXIT_CODE
from testbed import deploy, events, eventtrial, lab, stages, sweep
from testbed.deploy import Deployment
from testbed.links.wire import WireLinks
from testbed.model.event import Event, Kind, Stage
from testbed.model.experiment import Cell, Load
from testbed.model.placement import Placement
from testbed.runtime.enter import in_netns
from testbed.runtime.netns import NetnsRuntime
from tests.labs import needs_root
from tests.loose import gates

pytestmark = [pytest.mark.root, needs_root]

TOPOLOGY = sweep.resolve(DISRUPTION)
EXPERIMENT = dataclasses.replace(DISRUPTION, drain_s=0.5)
ON_NODE, ON_WAYPOINT = "proxy:server", "waypoint:server"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    logs = tmp_path_factory.mktemp("logs")
    with (
        lab.up(
            TOPOLOGY, runtime=NetnsRuntime(), links=WireLinks(), name="eventful", logs=logs,
            extra=eventtrial.sandboxes(EXPERIMENT, TOPOLOGY, "ambient"),
        ) as running,
        deploy.deploy(running, eventtrial.begins_as(EXPERIMENT, CRASH, TOPOLOGY, "ambient")) as made,
    ):
        yield made  # fmt: skip


def status(deployed: Deployment, service: str, client: str = "client") -> int:
    address = TOPOLOGY.service(service).address
    return lab.http_get(deployed.lab, client, address, 8080, "/")[0]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def served(deployed: Deployment) -> bool:
    return eventually(lambda: all(status(deployed, name) == 200 for name in ("server", "ledger", "home")))


def pids(deployed: Deployment) -> dict[str, int]:
    proxies = {name: process.pid for name, process in deployed.proxies.items()}
    return proxies | {f"app.{name}": process.pid for name, process in deployed.lab.apps.items()}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def placed(stage: Stage) -> Placement:
    return stages.prepared(stages.of(stage, TOPOLOGY, "ambient")[1], EXPERIMENT.cells, drain_s=0.5)


@pytest.mark.parametrize(("kind", "on"), [(Kind.KILL, ON_NODE), (Kind.RESTART, ON_WAYPOINT), (Kind.UPGRADE, ON_NODE)])
def test_what_is_struck_is_begun_anew_and_nothing_else(deployed: Deployment, kind: Kind, on: str) -> None:
    """Another process in its place, the old one ended, and all is served."""
    before = pids(deployed)
    (struck,) = stages.proxies_of(deployed.placement, on)
    old = deployed.proxies[struck.name]
    done = events.carry_out(deployed, Event(kind=kind, on=on, for_s=0.05))

    assert done.components == done.proxies_restarted == (struck.name,)
    assert done.workloads_restarted == ()
    assert changed(before, pids(deployed)) == {struck.name}
    assert old.poll() is not None
    assert served(deployed)


def test_what_hangs_goes_on(deployed: Deployment) -> None:
    """The same processes before and after."""
    before = pids(deployed)
    done = events.carry_out(deployed, Event(kind=Kind.HANG, on=ON_NODE, for_s=0.1))

    assert done.proxies_restarted == () and done.ended_s - done.began_s >= 0.1
    assert pids(deployed) == before
    assert served(deployed)


def test_a_marked_request_ends_the_proxy_with_the_plugin(deployed: Deployment) -> None:
    """The waypoint, which is begun again; the ztunnels that pass the request on do not read it."""
    before, old = pids(deployed), deployed.proxies["waypoint.waypoint"]
    events.carry_out(deployed, Event(kind=Kind.CRASH, on="l7:server", for_s=0.05), client="client")

    assert old.poll() == EXIT_CODE
    assert changed(before, pids(deployed)) == {"waypoint.waypoint"}
    assert served(deployed)


def test_an_application_can_be_struck_too(deployed: Deployment) -> None:
    """Its workload counts as restarted."""
    before = pids(deployed)
    done = events.carry_out(deployed, Event(kind=Kind.KILL, on="app:server", for_s=0.05))

    assert done.workloads_restarted == ("server",)
    assert changed(before, pids(deployed)) == {"app.server"}
    assert served(deployed)


def test_a_plane_without_the_part_is_left_alone(deployed: Deployment) -> None:
    """Nobody has a waypoint but `server`."""
    before = pids(deployed)

    assert events.carry_out(deployed, Event(kind=Kind.KILL, on="waypoint:ledger")).components == ()
    assert pids(deployed) == before


def test_a_trial_counts_what_failed_and_is_valid_all_the_same(deployed: Deployment) -> None:
    """A killed ztunnel breaks what is held through it; that is a result, not a reason to leave the trial out."""
    load = Load(warmup_s=0.2, window_s=3.0, response_bytes=64)
    cell = Cell(name="kill", load=load, events=(Event(kind=Kind.KILL, on=ON_NODE, at_s=0.5, for_s=0.3),))
    # Only what breaks for certain: an open connection whose tunnel has died.
    found = eventtrial.run(
        deployed, dataclasses.replace(EXPERIMENT, cells=(cell,)), cell, plane="ambient", deployed="ambient",
        round_number=1, block=1, folder=deployed.lab.folder / "load", readings=(), gates=gates(),
    )  # fmt: skip
    value = {(m.component, m.metric): m.value for m in found.measurements}
    echo = next(s for s in STREAMS if s.protocol == "tcp")

    assert value[echo.name, "connections_broken"] == value[echo.name, "connections_held"] == 2
    assert value[echo.name, "failed"] >= 2 and value[echo.name, "behind_struck"] == 1
    home = next(s.name for s in STREAMS if s.target == "home")
    assert value[home, "behind_struck"] == 0 and value[home, "requests_since"] > 0
    numbers = {int(r.connection // 1000) for r in found.requests}
    assert numbers == set(range(len(STREAMS)))
    of_machine = ("a driver was kept", "kill came", "link ")
    assert all(reason.startswith(of_machine) or "before anything happened" in reason for reason in found.reasons)
    told = {check.name for check in found.certificate.checks if check.level is not None}
    assert {"lag", "busy", "steal", "link-rtt", "link-after"} <= told
    assert not told & {"path", "run-queue", "retransmits"}
    assert found.links_after and {m.metric for m in found.measurements} >= {"fidelity.busy", "link_rtt_after_p50"}


def test_a_workload_leaves_and_joins_without_a_restart(deployed: Deployment) -> None:
    """Its policy is enforced inside and not outside; no process is another."""
    inside, outside = (dataclasses.replace(stage, plane="ambient-l4") for stage in (INSIDE, OUTSIDE))
    before = placed(inside)  # behind a waypoint the server would not see who calls
    if deployed.placement != before:
        events.deploy_anew(deployed, before, deployed.stack)
    held = pids(deployed)
    assert eventually(lambda: status(deployed, "server", "other") != 200)
    assert eventually(lambda: status(deployed, "server") == 200)
    events.become(deployed, placed(outside), began_s=0.0)

    assert eventually(lambda: status(deployed, "server", "other") == 200)
    events.become(deployed, before, began_s=0.0)
    assert eventually(lambda: status(deployed, "server", "other") != 200)
    assert served(deployed)
    assert pids(deployed) == held


def test_to_move_to_sidecars_restarts_every_workload(deployed: Deployment) -> None:
    """Node agents and waypoint end, a sidecar comes into each workload, and open connections end with their pods."""
    before = pids(deployed)
    echo = (TOPOLOGY.service("echo").address, 9000)
    with in_netns(deployed.lab.netns("client"), lambda: socket.create_connection(echo)) as held:
        held.settimeout(30)
        held.sendall(b"one")
        assert held.recv(10) == b"one"
        done = events.become(deployed, placed(Stage(plane="sidecar")), began_s=0.0)
        try:
            held.sendall(b"two")
            assert held.recv(10) == b""
        except ConnectionError:
            pass

    assert set(done.workloads_restarted) == {w.name for w in TOPOLOGY.workloads}
    assert set(deployed.proxies) == {f"sidecar.{w.name}" for w in TOPOLOGY.workloads}
    assert not any(name in before for name in deployed.proxies)
    assert served(deployed)
