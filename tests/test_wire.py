"""The wire maker, in namespaces: what was asked happens, changes apply live, death is seen."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.errors import PeerError
from testbed.links import gauge, oneway
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
from testbed.links.pacing import EARLY_CAP_NS, FIRST_GUESS_NS, WAYS
from testbed.links.scratch import ScratchLab
from testbed.links.wire import ROOT, WireLinks
from testbed.model.topology import Impairment, Link, link_addresses
from testbed.seams import RunningLab, end_name

SO_RCVBUFFORCE = 33
SIOCETHTOOL, ETHTOOL_GTSO, ETHTOOL_GGSO = 0x8946, 0x1E, 0x23
UDP_SEGMENT = 103

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


def stop(pid: int) -> None:
    """Returns when it stands still: the signal itself takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


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


@pytest.mark.parametrize("delay_ms", [0.0, 1.0])
def test_the_first_frame_over_a_new_link_passes(lab: ScratchLab, wires: WireLinks, delay_ms: float) -> None:
    """Also over one made again, from plain to impaired and back."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=delay_ms))])
    receiver = inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.bind(("0.0.0.0", 7001))
        receiver.settimeout(2)
        for number in range(4):
            sender.sendto(bytes([number]), (live[0].link.b_address, 7001))
            assert receiver.recv(100) == bytes([number])
            live[0].set(a_to_b=Impairment(delay_ms=float(number % 2)))


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


def test_a_link_its_process_does_not_know_is_not_alive(lab: ScratchLab, wires: WireLinks) -> None:
    """As when another orchestrator took it away."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1))])
    live[0]._process.ask("detach", name="a--b")

    assert dead_links(live) == ["a--b"]


def test_a_stalled_wire_drops_what_became_old_and_recovers(lab: ScratchLab, wires: WireLinks) -> None:
    """Frames that waited unseen beyond the queue's depth are lost and counted, not delivered late; new ones pass."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, queue_ms=50))])
    pid = wires.status()[0]["pid"]
    receiver = inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.bind((live[0].link.b_address, 7001))
        receiver.settimeout(5)
        stop(pid)
        for _ in range(200):
            sender.sendto(b"old", (live[0].link.b_address, 7001))
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: live[0].counters()["a_to_b"]["stale"] == 200)
        sender.sendto(b"new", (live[0].link.b_address, 7001))

        assert receiver.recv(100) == b"new"


def test_a_short_stall_loses_nothing_and_is_told(lab: ScratchLab, wires: WireLinks) -> None:
    """A host that stands still for 80 ms delays frames, also beyond the queue's depth, and says by how much."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, queue_ms=20))])
    pid = wires.status()[0]["pid"]
    with inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(10):  # until this test itself was not held up
            before = live[0].counters()["a_to_b"]
            stop(pid)
            start_s = time.monotonic()
            for _ in range(1000):
                sender.sendto(b"late", (live[0].link.b_address, 7001))
            time.sleep(0.06)
            os.kill(pid, signal.SIGCONT)
            took_s = time.monotonic() - start_s
            assert eventually(lambda seen=before["received"]: live[0].counters()["a_to_b"]["received"] == seen + 1000)
            assert eventually(lambda: live[0].counters()["a_to_b"]["waiting"] == 0)
            after = live[0].counters()["a_to_b"]
            if took_s < 0.1:
                break

    assert took_s < 0.1
    assert (after["sent"] - before["sent"], after["stale"] - before["stale"]) == (1000, 0)
    assert after["latest_us"] > 50_000


def offloads(lab: ScratchLab, node: str, name: str) -> set[bool]:
    """What a device says of its segmentation offloads, TCP's and the generic one."""

    def ask() -> set[bool]:
        answers = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for command in (ETHTOOL_GTSO, ETHTOOL_GGSO):
                value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
                fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value)))
                answers.add(bool(struct.unpack("=II", value[:8])[1]))
        return answers

    return inside(lab, node, ask)


def test_only_the_end_that_sends_over_a_lossy_line_cuts_its_super_frames(lab: ScratchLab, wires: WireLinks) -> None:
    """One loss is to be one frame; the other direction keeps its speed. A live change changes that too."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1, loss=0.1), Impairment(delay_ms=1))])
    before = offloads(lab, "a", "to-b"), offloads(lab, "b", "to-a")
    live[0].set(a_to_b=Impairment(delay_ms=1), b_to_a=Impairment(delay_ms=1, rate_mbit=10))

    assert before == ({False}, {True})
    assert (offloads(lab, "a", "to-b"), offloads(lab, "b", "to-a")) == ({True}, {False})


def test_nothing_but_what_is_sent_crosses_a_link(lab: ScratchLab, wires: WireLinks) -> None:
    """The far end's hardware address is known for good, so nobody asks for it, and no end speaks IPv6."""
    wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1))])

    def seen() -> tuple[list[str], str]:
        arp = [line.split()[2] for line in Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]]
        return arp, Path("/proc/thread-self/net/if_inet6").read_text().replace("lo\n", "")

    neighbours, ipv6 = inside(lab, "a", seen)
    assert neighbours == ["0x6"]  # complete and permanent
    assert "to-b" not in ipv6


def test_a_super_frame_takes_the_line_for_as_long_as_its_frames(lab: ScratchLab, wires: WireLinks) -> None:
    """200 times 64 segments of 200 bytes at 1 Gbit/s: a sixth of the line's time is headers."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(rate_mbit=1000, queue_ms=500))])
    receiver = inside(lab, "b", lambda: oneway._receiver(live[0].link.b_address))
    sender = inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 200)
        took_ns = []
        for _ in range(3):  # a first frame that was held up makes the time shorter
            before = live[0].counters()["a_to_b"]
            for number in range(200):
                block = b"".join((number * 64 + segment).to_bytes(8, "little") + bytes(192) for segment in range(64))
                sender.sendto(block, (live[0].link.b_address, oneway.PORT))
            assert eventually(lambda seen=before["sent"]: live[0].counters()["a_to_b"]["sent"] == seen + 200)
            time.sleep(0.05)
            arrived_ns = sorted(oneway._arrivals(receiver).values())
            assert len(arrived_ns) == 200 * 64
            took_ns.append(arrived_ns[-1] - arrived_ns[0])

    assert max(took_ns) >= 0.93 * 199 * 64 * 242 * 8  # without the headers it would be 0.83


def test_more_than_a_wire_may_hold_passes_in_time(lab: ScratchLab, wires: WireLinks) -> None:
    """200 MB through a queue of 128: what has left is not held any more."""
    live = wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=0.2), Impairment(delay_ms=0.2))])
    address, total = (live[0].link.b_address, 7000), 200 << 20
    server = inside(lab, "b", lambda: socket.create_server(address))
    client = inside(lab, "a", lambda: socket.create_connection(address, timeout=10))
    with server, client:
        peer, _ = server.accept()
        peer.settimeout(10)
        sending = threading.Thread(target=lambda: [client.sendall(bytes(1 << 20)) for _ in range(200)], daemon=True)
        sending.start()
        with peer:
            received, buffer = 0, bytearray(1 << 20)
            while received < total:
                received += peer.recv_into(buffer)

    assert live[0].counters()["a_to_b"]["overflowed"] == 0


def test_a_process_takes_a_new_link_for_one_that_left_it(lab: ScratchLab) -> None:
    """A healed link leaves room where there is one link to a process."""
    delay = Impairment(delay_ms=1)
    with contextlib.closing(WireLinks(calibrated=False, links_per_process=1)) as maker:
        live = maker.join(lab, [link("a", "b", 0, delay, delay), link("b", "c", 1)])
        live[0].set(a_to_b=Impairment(), b_to_a=Impairment())
        live[1].set(a_to_b=delay)

        assert [list(one["links"]) for one in maker.status()] == [["b--c"]]


def test_a_calibrated_wire_learns_how_late_it_is(lab: ScratchLab) -> None:
    """It samples when frames really left: what it takes off is neither the guess it began with nor the most allowed."""
    with contextlib.closing(WireLinks()) as maker:
        live = maker.join(lab, [link("a", "b", 0, Impairment(delay_ms=2), Impairment(delay_ms=2))])

        def has_learned() -> bool:
            """Of one way at least: in a busy minute it is later than the most allowed."""
            gauge.probe(lab, [live[0].link], probes=100)
            (status,) = maker.status()
            assert status["calibrated"]
            taken_off = [status["early_ns"][way] for way in WAYS]
            return any(its not in both for its, *both in zip(taken_off, FIRST_GUESS_NS, EARLY_CAP_NS, strict=True))

        assert any(has_learned() for _ in range(20))


def test_an_uncalibrated_wire_takes_nothing_off(lab: ScratchLab, wires: WireLinks) -> None:
    """And says so."""
    wires.join(lab, [link("a", "b", 0, Impairment(delay_ms=1))])
    (status,) = wires.status()

    assert not status["calibrated"]
    assert set(status["early_ns"].values()) == {0}


def test_answers_to_somebody_elses_probes_are_no_answers(lab: ScratchLab, wires: WireLinks) -> None:
    """Two gauges may look at one link: the mark tells whose an echo is."""
    live = wires.join(lab, [link("a", "b")])
    with inside(lab, "a", lambda: gauge.open_prober(live[0].link.b_address)) as sock:
        for number in range(4):
            sock.send(gauge.echo(7 if number % 2 else 8, number))
        time.sleep(0.1)

        assert len(gauge.replies(sock, 7, dict.fromkeys(range(4), time.time_ns()))) == 2


def test_a_gone_node_makes_only_its_links_dead(lab: ScratchLab, wires: WireLinks) -> None:
    """When a namespace disappears, its link is dead and the wire goes on for the others."""
    delay = Impairment(delay_ms=1)
    live = wires.join(lab, [link("a", "b", 0, delay), link("b", "c", 1, delay)])
    lab.drop("a")

    assert eventually(lambda: wires.status()[0]["links"] == {"a--b": False, "b--c": True})
    assert median_rtt_ms(lab, live[1:])[0] >= 1

    with inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(5):
            sender.sendto(b"into the void", (live[0].link.a_address, 7001))
    assert eventually(lambda: live[0].counters()["b_to_a"]["write_errors"] == 5)
    assert live[0].counters()["b_to_a"]["sent"] == 0


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
