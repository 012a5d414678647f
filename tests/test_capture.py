"""The capture process on real traffic: loopback of a namespace, veth super-frames, the owner's death."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.errors import TestbedError, UsageError
from testbed.model.experiment import Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Point, embed_secrets
from testbed.observe.streams import follow
from testbed.verify.dissect import verify_file
from testbed.verify.evidence import Canary, gather
from testbed.verify.judge import judge
from testbed.verify.segments import WIRE, Layout, Segment
from tests.recorded import TO_SERVER, Authority, Tunnels

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="capturing and making namespaces need root"),
]


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace with lo up, as long as the test runs."""
    keeper = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 120"], stdout=subprocess.PIPE
    )
    assert keeper.stdout.readline() == b"up\n"
    yield f"/proc/{keeper.pid}/ns/net"
    keeper.kill()
    keeper.wait()
    keeper.stdout.close()


def inside(netns: str, act: Callable[[], object]) -> object:
    """Run `act` in a thread that has entered the namespace; sockets it makes stay there."""
    import ctypes

    box: list[object] = []

    def body() -> None:
        with open(netns) as handle:
            assert ctypes.CDLL(None).setns(handle.fileno(), 0x40000000) == 0
        box.append(act())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return box[0]


def pipe_in(netns: str, address: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, socket.socket]:
    listener = inside(netns, lambda: socket.create_server((address, port)))
    port = listener.getsockname()[1]
    client = inside(netns, lambda: socket.create_connection((address, port)))
    server, _ = listener.accept()
    listener.close()
    return client, server


def test_real_mtls_over_loopback_is_captured_and_judged(netns: str, tmp_path: Path) -> None:
    """Sockets, kernel, OpenSSL, h2 on one side; our capture and judge on the other; they agree."""
    authority = Authority(tmp_path)
    client_id, server_id = (f"spiffe://cluster.local/ns/default/sa/{n}" for n in ("client", "server"))
    keys = tmp_path / "keys.txt"
    out = tmp_path / "proof.pcapng"
    token = b"canary-real"
    capture = Capture([Point(sandbox="pod", netns=netns, device="lo")], out).start()
    raw_client, raw_server = pipe_in(netns, port=15008)
    server_context = authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(server_id), keys)
    ends: dict[bool, ssl.SSLSocket] = {}
    accept = threading.Thread(
        target=lambda: ends.update({True: server_context.wrap_socket(raw_server, server_side=True)})
    )
    accept.start()
    client_context = authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(client_id))
    ends[False] = client_context.wrap_socket(raw_client)
    accept.join()

    def say(way: str, data: bytes) -> bytes:
        sender, receiver = (ends[False], ends[True]) if way == TO_SERVER else (ends[True], ends[False])
        sender.sendall(data)
        heard = b""
        while len(heard) < len(data):
            heard += receiver.recv(65536)
        return heard

    bodies = [(token + b"-%d " % n + bytes(5000), bytes(3000)) for n in range(20)]
    Tunnels(authority="127.0.0.1:8080", bodies=bodies).speak(say)
    for end in ends.values():
        end.close()
    told = capture.stop()
    assert embed_secrets(out, [keys, tmp_path / "no-such-file"]) >= 4

    assert told.drops == 0 and told.packets == len(pcapng.read(out).packets) > 100
    segment = Segment(sandbox="pod", device="lo", kind=WIRE, label="lo", workload="client")
    address = frozenset({"127.0.0.1"})
    layout = Layout(
        segments=(segment,), homes={"client": "n", "server": "n"}, addresses={"client": address, "server": address}
    )
    claim = Claim(
        source="client",
        destination="server",
        segment=WIRE,
        encryption=Encryption.MTLS,
        hbone=True,
        authority="127.0.0.1:8080",
        client_identity=Identity.parse(client_id),
        server_identity=Identity.parse(server_id),
    )
    canary = Canary(token=token, source="client", destination="server", count=20)
    evidence = gather(pcapng.read(out), [segment], file=out.name)
    findings = judge(plane="real", claims=[claim], canaries=[canary], evidence=evidence, layout=layout)
    assert {f.id: f.evidence for f in findings if f.result is not Result.HOLDS} == {}
    assert "client" in verify_file(out, None).text and oct(out.stat().st_mode & 0o777) == "0o600"


def test_cleartext_over_loopback_is_seen_once(netns: str, tmp_path: Path) -> None:
    """Loopback shows every packet twice to a naive listener."""
    with Capture([Point(sandbox="pod", netns=netns, device="lo")], tmp_path / "c.pcapng") as capture:
        client, server = pipe_in(netns)
        client.sendall(b"secret-in-clear")
        assert server.recv(100) == b"secret-in-clear"
        client.close()
        server.close()
        capture.stop()

    recording = pcapng.read(tmp_path / "c.pcapng")
    (connection,) = follow(recording.packets, recording.interfaces).connections
    assert connection.forward.data == b"secret-in-clear" and connection.opening_seen
    assert sum(b"secret-in-clear" in p.data for p in recording.packets) == 1
    assert [i.name for i in recording.interfaces] == ["pod:lo"] and recording.drops == {0: 0}


def test_all_devices_of_two_namespaces_and_super_frames(netns: str, tmp_path: Path) -> None:
    """One interface block per sandbox and device; what TCP hands to a veth in one piece arrives in one piece."""
    pid = netns.split("/")[2]
    peer = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up && exec sleep 120"], stdout=subprocess.PIPE)
    peer.stdout.readline()
    try:
        run = ["nsenter", f"--net={netns}", "ip"]
        subprocess.run(
            [*run, "link", "add", "to-b", "type", "veth", "peer", "name", "to-a", "netns", str(peer.pid)], check=True
        )
        subprocess.run([*run, "addr", "add", "10.9.0.1/24", "dev", "to-b"], check=True)
        subprocess.run([*run, "link", "set", "to-b", "up"], check=True)
        other = f"/proc/{peer.pid}/ns/net"
        run[1] = f"--net={other}"
        subprocess.run([*run, "addr", "add", "10.9.0.2/24", "dev", "to-a"], check=True)
        subprocess.run([*run, "link", "set", "to-a", "up"], check=True)
        out = tmp_path / "two.pcapng"
        points = [Point(sandbox="a", netns=f"/proc/{pid}/ns/net"), Point(sandbox="b", netns=other, device="to-a")]
        sent = os.urandom(3_000_000)
        with Capture(points, out) as capture:
            listener = inside(other, lambda: socket.create_server(("10.9.0.2", 7)))
            client = inside(netns, lambda: socket.create_connection(("10.9.0.2", 7), timeout=10))
            server, _ = listener.accept()
            feeder = threading.Thread(target=client.sendall, args=(sent,))
            feeder.start()
            got = bytearray()
            while len(got) < len(sent):
                got += server.recv(1 << 20)
            feeder.join()
            for end in (client, server, listener):
                end.close()
            told = capture.stop()
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()

    recording = pcapng.read(out)
    assert sorted(i.name for i in recording.interfaces) == ["a:to-b", "b:to-a"]
    assert told.drops == 0 and set(recording.drops.values()) == {0}
    assert max(len(p.data) for p in recording.packets) > 9000
    for interface in range(2):
        streams = [c for c in follow(recording.packets, recording.interfaces).connections if c.interface == interface]
        assert [c.forward.data == sent for c in streams] == [True]
    assert [p.time_ns for p in recording.packets] == sorted(p.time_ns for p in recording.packets)


def test_snaplen_is_cut_in_the_kernel_and_shows_as_missing_bytes(netns: str, tmp_path: Path) -> None:
    """A cut packet keeps its length on the wire, and its stream says what it lacks."""
    point = Point(sandbox="pod", netns=netns, device="lo")
    with Capture([point], tmp_path / "s.pcapng", snaplen=100) as capture:
        client, server = pipe_in(netns)
        client.sendall(bytes(1000))
        assert server.recv(2000, 0)
        client.close()
        server.close()
        capture.stop()

    recording = pcapng.read(tmp_path / "s.pcapng")
    assert max(len(p.data) for p in recording.packets) == 100
    (connection,) = follow(recording.packets, recording.interfaces).connections
    assert connection.forward.gaps[-1][1] == 1000


def test_losses_are_reported(netns: str, tmp_path: Path) -> None:
    """A listener that cannot keep up says so, in its answer and in the file."""
    out = tmp_path / "lost.pcapng"
    capture = Capture([Point(sandbox="pod", netns=netns, device="lo")], out, ring_bytes=2 << 20).start()
    os.kill(capture.pid, signal.SIGSTOP)
    try:
        sender = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for _ in range(300):
            sender.sendto(bytes(30000), ("127.0.0.1", 9))
        sender.close()
    except OSError:
        pass
    finally:
        os.kill(capture.pid, signal.SIGCONT)
    told = capture.stop()

    assert told.drops > 0 and pcapng.read(out).drops == {0: told.drops}


def test_wrong_devices_and_namespaces_are_named(netns: str, tmp_path: Path) -> None:
    """The error tells what and where."""
    with pytest.raises(UsageError, match="no-such-dev"):
        Capture([Point(sandbox="pod", netns=netns, device="no-such-dev")], tmp_path / "x.pcapng").start()
    with pytest.raises(UsageError, match="/no/such/ns"):
        Capture([Point(sandbox="pod", netns="/no/such/ns", device="lo")], tmp_path / "x.pcapng").start()
    assert list(tmp_path.iterdir()) == []


def test_the_process_dies_with_its_owner_and_leaves_no_half_file(netns: str, tmp_path: Path) -> None:
    """Even when the owner is killed."""
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import time
                from pathlib import Path
                from testbed.observe.capture import Capture, Point
                point = Point(sandbox="pod", netns={netns!r}, device="lo")
                capture = Capture([point], Path({str(tmp_path)!r}) / "c.pcapng")
                print(capture.start().pid, flush=True)
                time.sleep(60)
            """),
        ],
        stdout=subprocess.PIPE,
    )
    pid = int(owner.stdout.readline())
    assert any(tmp_path.iterdir())
    owner.kill()
    owner.wait()
    owner.stdout.close()

    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("orders", [b"", b'{"points": ['])
def test_a_starter_that_ends_before_its_orders_are_whole_leaves_no_traceback(orders: bytes) -> None:
    """As when the run is interrupted in these milliseconds."""
    program = [sys.executable, "-m", "testbed.observe.capture"]
    done = subprocess.run(program, input=orders, capture_output=True, timeout=20, cwd=Path(__file__).parent.parent)

    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_a_dead_process_is_an_error_not_an_empty_capture(netns: str, tmp_path: Path) -> None:
    """Stop must not pretend."""
    capture = Capture([Point(sandbox="pod", netns=netns, device="lo")], tmp_path / "c.pcapng").start()
    os.kill(capture.pid, signal.SIGKILL)
    with pytest.raises(TestbedError, match=r"c\.pcapng"):
        capture.stop()
