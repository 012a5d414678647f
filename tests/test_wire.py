"""The wire maker, in namespaces: what was asked happens, changes apply live, death is seen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest

from testbed.errors import PeerError
from testbed.links import gauge
from testbed.links.devices import (
    NLM_CREATE,
    attribute,
    in_netns,
    index_of,
    message,
    netlink_socket,
    routes_via,
    transact,
)
from testbed.links.ends import dead_links, open_nodes
from testbed.links.scratch import ScratchLab
from testbed.links.wire import ROOT, WireLinks
from testbed.model.topology import Impairment, Link, link_addresses
from testbed.seams import RunningLab, end_name

SO_RCVBUFFORCE = 33

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root (network namespaces, AF_PACKET)"),
]


def link(a: str, b: str, number: int = 0, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None) -> Link:
    mine, theirs = link_addresses(number)
    return Link(
        a=a, b=b, a_address=mine, b_address=theirs, a_to_b=a_to_b or Impairment(), b_to_a=b_to_a or Impairment()
    )


def inside(lab: RunningLab, node: str, work: Callable[[], object]) -> object:
    fd = lab.open_netns(node)
    try:
        return in_netns(fd, work)
    finally:
        os.close(fd)


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    end_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def lab() -> Iterator[ScratchLab]:
    with ScratchLab(["a", "b", "c"]) as made:
        yield made


@pytest.fixture
def wires() -> Iterator[WireLinks]:
    maker = WireLinks(calibrated=False)
    yield maker
    maker.close()


def median_rtt_ms(lab: RunningLab, live: list, probes: int = 60) -> list[float]:
    return [reading.rtt_p50_ms for reading in gauge.measure(lab, live, probes=probes)]


def test_each_direction_has_its_own_delay(lab: ScratchLab, wires: WireLinks) -> None:
    """The RTT is the sum of what was asked per direction; the neighbour link is its own."""
    live = wires.join(
        lab,
        [
            link("a", "b", 0, Impairment(delay_ms=8), Impairment(delay_ms=2)),
            link("b", "c", 1, Impairment(delay_ms=1), Impairment(delay_ms=1)),
        ],
    )
    first, second = median_rtt_ms(lab, live)

    assert 10 <= first < 11.5
    assert 2 <= second < 3.5


def test_a_plain_link_has_no_wire_process(lab: ScratchLab, wires: WireLinks) -> None:
    """Zero of everything is a bare veth pair."""
    live = wires.join(lab, [link("a", "b")])

    assert wires.status() == []
    assert median_rtt_ms(lab, live)[0] < 1
    assert dead_links(live) == []


def test_tcp_crosses_with_checksums_and_super_frames(lab: ScratchLab, wires: WireLinks) -> None:
    """A megabyte arrives whole: partial checksums and TSO frames survive the middle."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1), Impairment(delay_ms=1))])
    payload = os.urandom(1 << 20)
    server = inside(lab, "b", lambda: socket.create_server((live[0].link.b_address, 7000)))
    client = inside(lab, "a", lambda: socket.create_connection((live[0].link.b_address, 7000), timeout=10))
    with server, client:
        peer, _ = server.accept()
        with peer:
            peer.settimeout(10)
            client.setblocking(False)
            sent, received = 0, bytearray()
            while len(received) < len(payload):
                try:
                    sent += client.send(payload[sent : sent + 65536]) if sent < len(payload) else 0
                except BlockingIOError:
                    pass
                peer.settimeout(0.001 if sent < len(payload) else 10)
                try:
                    received += peer.recv(1 << 20)
                except TimeoutError:
                    pass

    assert bytes(received) == payload


def test_a_live_change_applies_to_one_direction(lab: ScratchLab, wires: WireLinks) -> None:
    """`set` of one direction leaves the other as it was, and the link says what holds now."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1), Impairment(delay_ms=1))])
    live[0].set(a_to_b=Impairment(delay_ms=20))

    assert live[0].link.rtt_ms == 21
    assert 21 <= median_rtt_ms(lab, live)[0] < 23


def test_full_loss_lets_nothing_through(lab: ScratchLab, wires: WireLinks) -> None:
    """Loss 1 is a cut line: probes are lost, counted, and the reading agrees with what was asked."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, loss=1.0))])
    reading = gauge.measure(lab, live, probes=30)[0]

    assert reading.loss == 1.0
    assert live[0].counters()["a_to_b"]["lost"] == 30
    assert live[0].counters()["b_to_a"]["received"] == 0


def test_a_plain_link_can_be_impaired_and_healed_live(lab: ScratchLab, wires: WireLinks) -> None:
    """Its ends are made again with the same names and indexes; routes over them stay."""
    live = wires.join(lab, [link("a", "b")])
    with open_nodes(lab, [live[0].link]) as nodes:
        index = index_of(nodes["a"], "to-b")
        route = message(
            24,
            bytes([2, 16, 0, 0, 254, 4, 0, 1])
            + bytes(4)
            + attribute(1, bytes([10, 2, 0, 0]))
            + attribute(5, socket.inet_aton(live[0].link.b_address)),
            NLM_CREATE,
        )
        in_netns(nodes["a"], lambda: transact(netlink_socket(), [route], "test route"))
        before = routes_via(nodes["a"], index)

        live[0].set(a_to_b=Impairment(delay_ms=5))
        impaired_ms = median_rtt_ms(lab, live)[0]
        live[0].set(a_to_b=Impairment())
        healed_ms = median_rtt_ms(lab, live)[0]

        assert index_of(nodes["a"], "to-b") == index
        assert routes_via(nodes["a"], index) == before
    assert len(before) == 1
    assert 5 <= impaired_ms < 6.5
    assert healed_ms < 1
    assert dead_links(live) == []


def test_a_rate_holds_back_a_burst(lab: ScratchLab, wires: WireLinks) -> None:
    """100 frames of 1042 bytes at 10 Mbit/s take at least 83 ms, less the first."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(rate_mbit=10, queue_ms=500))])
    receiver = inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)  # else it holds 92 while we are not running
        receiver.bind((live[0].link.b_address, 7001))
        receiver.settimeout(5)
        start_s = time.monotonic()
        for _ in range(100):
            sender.sendto(bytes(1000), (live[0].link.b_address, 7001))
        for _ in range(100):
            receiver.recv(2000)
        took_s = time.monotonic() - start_s

    assert took_s >= 100 * 1042 * 8 / 10e6 - 0.001


def test_a_dead_wire_is_named_and_unreachable(lab: ScratchLab, wires: WireLinks) -> None:
    """SIGKILL of the wire process removes its links' ends: senders get an error at once, never silence."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1)), link("b", "c", 1)])
    os.kill(wires.status()[0]["pid"], signal.SIGKILL)

    assert dead_links(live) == ["a--b"]
    with open_nodes(lab, [live[0].link]) as nodes:
        assert eventually(lambda: index_of(nodes["a"], end_name(live[0].link, "a")) == 0)
    with pytest.raises(OSError, match="unreachable"):
        inside(lab, "a", lambda: socket.create_connection((live[0].link.b_address, 7000), timeout=5))
    with pytest.raises(PeerError, match="its links are dead"):
        live[0].set(a_to_b=Impairment(delay_ms=2))


def test_a_hung_wire_is_not_alive(lab: ScratchLab, wires: WireLinks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process answers nothing; that counts as dead, and within the time-out."""
    monkeypatch.setattr("testbed.links.wire.ANSWER_TIMEOUT_S", 0.3)
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1))])
    pid = wires.status()[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert dead_links(live) == ["a--b"]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_stalled_wire_drops_what_became_old_and_recovers(lab: ScratchLab, wires: WireLinks) -> None:
    """Frames that waited unseen beyond the queue's depth are lost and counted, not delivered late; new ones pass."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, queue_ms=50))])
    pid = wires.status()[0]["pid"]
    receiver = inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.bind((live[0].link.b_address, 7001))
        receiver.settimeout(5)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(200):
            sender.sendto(b"old", (live[0].link.b_address, 7001))
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: live[0].counters()["a_to_b"]["stale"] == 200)
        sender.sendto(b"new", (live[0].link.b_address, 7001))

        assert receiver.recv(100) == b"new"


def test_a_short_stall_loses_nothing_and_is_told(lab: ScratchLab, wires: WireLinks) -> None:
    """A host that stands still for 80 ms delays frames, also beyond the queue's depth, and says by how much."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, queue_ms=5))])
    pid = wires.status()[0]["pid"]
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sender:
        os.kill(pid, signal.SIGSTOP)
        for _ in range(2000):
            sender.sendto(b"late", (live[0].link.b_address, 7001))
        time.sleep(0.06)
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: live[0].counters()["a_to_b"]["sent"] == 2000)
    its = live[0].counters()["a_to_b"]

    assert its["received"] == 2000
    assert its["stale"] == 0
    assert 50_000 < its["latest_us"] < 105_000


def test_a_gone_node_makes_only_its_links_dead(lab: ScratchLab, wires: WireLinks) -> None:
    """When a namespace disappears, its link is dead and the wire goes on for the others."""
    delay = Impairment(delay_ms=1)
    live = wires.join(lab, [link("a", "b", 0, delay), link("b", "c", 1, delay)])
    lab.drop("a")

    assert eventually(lambda: wires.status()[0]["links"] == {"a--b": False, "b--c": True})
    assert median_rtt_ms(lab, live[1:])[0] >= 1


def test_a_wire_ends_with_its_lab() -> None:
    """Not only with its owner: a run of many trials would else leave a wire process a trial."""
    maker = WireLinks(calibrated=False)
    with ScratchLab(["a", "b"]) as lab:
        maker.join(lab, [link("a", "b", 0, Impairment(delay_ms=1))])
        pid = maker.status()[0]["pid"]

    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_fifty_one_links_need_two_processes() -> None:
    """The default: 50 to a process; all of them deliver, and the death of one process spares the other's links."""
    nodes = [f"n{number}" for number in range(52)]
    delay = Impairment(delay_ms=2)
    maker = WireLinks()
    with ScratchLab(nodes) as lab, contextlib.closing(maker):
        live = maker.join(lab, [link(nodes[n], nodes[n + 1], n, delay, delay) for n in range(51)])
        status = maker.status()
        readings = gauge.measure(lab, live, probes=20)
        os.kill(status[1]["pid"], signal.SIGKILL)

        assert [len(one["links"]) for one in status] == [50, 1]
        assert [r.loss for r in readings] == [0.0] * 51
        assert min(r.rtt_p50_ms for r in readings) > 3.9
        assert dead_links(live) == ["n50--n51"]


def test_links_are_spread_over_processes(lab: ScratchLab) -> None:
    """Above the number one process carries, another one is started."""
    maker = WireLinks(calibrated=False, links_per_process=1)
    delay = Impairment(delay_ms=1)
    try:
        live = maker.join(lab, [link("a", "b", 0, delay), link("b", "c", 1, delay)])
        status = maker.status()
    finally:
        maker.close()

    assert [list(one["links"]) for one in status] == [["a--b"], ["b--c"]]
    assert len({one["pid"] for one in status}) == 2
    assert len(live) == 2


def test_another_process_can_change_a_link(lab: ScratchLab, wires: WireLinks) -> None:
    """`attach` finds the wires by their sockets in the lab's folder."""
    declared = [link("a", "b", 0, Impairment(delay_ms=1)), link("b", "c", 1)]
    live = wires.join(lab, declared)
    again = WireLinks(calibrated=False).attach(lab, declared)
    again[0].set(a_to_b=Impairment(delay_ms=9))

    assert dead_links(again) == []
    assert median_rtt_ms(lab, live)[0] >= 9


def test_the_wire_ends_with_its_owner_even_by_sigkill() -> None:
    """The owner's end of the pipe closes with it; the wire reads the end of file and leaves."""
    program = textwrap.dedent("""
        import sys, time
        from testbed.links.scratch import ScratchLab
        from testbed.links.wire import WireLinks
        from testbed.model.topology import Impairment, Link
        lab = ScratchLab(["a", "b"])
        maker = WireLinks(calibrated=False)
        maker.join(lab, [Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1",
                              a_to_b=Impairment(delay_ms=1))])
        print(maker.status()[0]["pid"], lab.folder, flush=True)
        time.sleep(60)
    """)
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with owner:
        pid, folder = owner.stdout.readline().split()
        assert os.path.exists(f"/proc/{pid}")
        owner.kill()
    subprocess.run(["rm", "-r", folder], check=True)

    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))
