"""Certificates that end, change their root or come from a wrong clock, in one real lab: who is refused, what stays.

How quickly is a matter of the machine and asserted nowhere.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from experiments.certificates import EXPERIMENT
from testbed import deploy, events, eventtrial, lab, sweep
from testbed.certificateevents import LIFE_LEFT, give
from testbed.deploy import Deployment
from testbed.links.wire import WireLinks
from testbed.model.event import Event, Kind
from testbed.pki import not_after
from testbed.runtime.enter import in_netns
from testbed.runtime.netns import NetnsRuntime
from tests.labs import needs_root

pytestmark = [pytest.mark.root, needs_root]

TOPOLOGY = sweep.resolve(EXPERIMENT)
LIFE_S = 3.0
ALL = ("server", "echo", "first", "second", "third")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    placement = eventtrial.begins_as(EXPERIMENT, EXPERIMENT.cells[0], TOPOLOGY, "ambient-l4")
    with (
        lab.up(
            TOPOLOGY, runtime=NetnsRuntime(), links=WireLinks(), name="certified",
            logs=tmp_path_factory.mktemp("logs"),
        ) as running,
        deploy.deploy(running, placement) as made,
    ):  # fmt: skip
        yield made


def anew(deployed: Deployment, life_s: float = 0.0) -> None:
    """Nobody has a tunnel to anybody."""
    events.deploy_anew(deployed, deployed.placement, deployed.stack, leaf_lifetime_s=life_s)


def served(deployed: Deployment, name: str) -> bool:
    """One request on a connection of its own."""
    service = TOPOLOGY.service(name)

    def ask() -> bool:
        try:
            with socket.create_connection((service.address, service.ports[0].port), timeout=30) as sock:
                sock.settimeout(30)
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                return bool(sock.recv(100))
        except OSError:
            return False

    return in_netns(deployed.lab.netns("client"), ask)


def eventually(true: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 30
    while not (found := true()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return found


def during(deployed: Deployment, event: Event, look: Callable[[], None]) -> dict[str, float]:
    """`look` while the event goes on; what it told."""
    done: list[events.Done] = []
    thread = threading.Thread(target=lambda: done.append(events.carry_out(deployed, event)))
    thread.start()
    try:
        look()
    finally:
        thread.join()
    assert set(done[0].components) == set(deployed.proxies)
    return {metric: value for metric, _, value in done[0].told}


def ends(deployed: Deployment) -> list[float]:
    return [not_after(path) for path in deployed.lab.folder.glob("proxies/*/identities/*/cert.pem")]


def test_without_a_ca_only_who_must_shake_hands_is_lost(deployed: Deployment) -> None:
    """After the end of a life a tunnel that is open serves on, a new one is refused; with the CA both are served."""
    anew(deployed, LIFE_S)
    assert eventually(lambda: served(deployed, "server"))

    def look() -> None:
        assert eventually(lambda: max(ends(deployed)) < time.time())
        assert not served(deployed, "first")
        assert served(deployed, "server")

    told = during(deployed, Event(kind=Kind.NO_CA, for_s=3 * LIFE_S), look)
    assert eventually(lambda: served(deployed, "first"))
    # A certificate knows whole seconds only.
    assert LIFE_S - 1 <= told["certificates_ended"] < told["ca_back"] <= told["all_renewed"]
    again = events.carry_out(deployed, Event(kind=Kind.RENEW, for_s=0.5))
    assert {metric for metric, _, _ in again.told} == {"renewals", LIFE_LEFT}


def given(deployed: Deployment, by_s: float) -> None:
    """Certificates of a clock that is off by so much, in use: who answers twice has read its signals before."""
    authority = deployed.authority
    struck = deployed.placement.proxies
    give(deployed, struck, authority, bundle=authority.bundle, now=time.time() + by_s)
    for proxy in struck:
        for _ in range(2):
            deploy.wait_ready(deployed, proxy, limit_s=30.0)


def test_a_clock_that_is_off_counts_for_new_tunnels_and_is_forgiven_a_little(deployed: Deployment) -> None:
    """Ahead and behind; within the minute by which certificates are backdated nobody notices."""
    anew(deployed)
    assert eventually(lambda: served(deployed, "server"))
    given(deployed, 300.0)
    assert not served(deployed, "first") and served(deployed, "server")
    given(deployed, 30.0)
    assert served(deployed, "first")
    given(deployed, -25 * 3600.0)
    assert not served(deployed, "second") and served(deployed, "first")
    told = during(deployed, Event(kind=Kind.CLOCK, by_s=-25 * 3600.0, for_s=0.2), lambda: None)
    assert told["clock_right"] >= 0.2
    assert eventually(lambda: served(deployed, "second")) and min(ends(deployed)) > time.time()


def test_a_root_changes_under_open_tunnels_and_new_ones(deployed: Deployment) -> None:
    """Nobody is refused at any step, and at the end nobody knows the old root."""
    anew(deployed)
    assert eventually(lambda: served(deployed, "server"))
    old, refused = deployed.authority, []

    def look() -> None:
        for name in ALL:
            if not served(deployed, name):
                refused.append(name)

    during(deployed, Event(kind=Kind.NEW_ROOT, for_s=3.0), look)
    assert refused == [] and deployed.authority is not old
    roots = {path.read_bytes() for path in deployed.lab.folder.glob("proxies/*/identities/*/roots.pem")}
    assert roots == {deployed.authority.bundle}
    assert all(served(deployed, name) for name in ALL)
