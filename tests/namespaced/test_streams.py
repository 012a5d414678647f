"""gRPC, a WebSocket and large bodies through each plane, and through every pair of kinds that hybrid mixes.

Bodies are of 256 MiB; MESHBED_FULL_BODIES=1 makes them the gigabyte that is claimed (and the file take four times as
long). `test_waypoint_streams` looks closer at what a waypoint does with them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest
import websocket

from tests.labs import needs_root
from tests.namespaced import worlds
from tests.namespaced.test_waypoint_streams import CHUNK, Echo, websocket_echo
from tests.namespaced.waypoints import WaypointWorld, pss_mib
from tests.namespaced.worlds import LIMIT_S

pytestmark = [pytest.mark.root, needs_root]
BODY_BYTES = 10**9 if os.environ.get("MESHBED_FULL_BODIES") else 256 << 20
BOUND_MIB = 64
"""Windows and buffers of the proxies on the way are far below; a body kept whole would be four times as much."""
PART_BYTES = 1 << 20
PATTERN = CHUNK * (PART_BYTES // len(CHUNK) + 1)
HTTP_PORT, GRPC_PORT = 8081, 8082
KINDS = ("sidecar", "ambient", "none")
_SERVICE = """
  to-{name}:
    ports:
      - {{port: 80, targetPort: 8081, protocol: http}}
      - {{port: 81, targetPort: 8082, protocol: grpc}}
    workloads: [to-{name}]
"""
_WORKLOADS = """
  from-{name}: {{node: node-a, serviceAccount: from-{name}{label}}}
  to-{name}: {{node: node-b, serviceAccount: to-{name}{label}, app: {{kind: tcp-echo, ports: [8081, 8082]}}}}
"""


def text(*names: str, waypoint: bool = False) -> str:
    """A client and a server of each name; a name that is a kind is a label, too."""
    workloads = "".join(
        _WORKLOADS.format(name=name, label=f", plane: {name}" if name in KINDS else "") for name in names
    )
    way = "    waypoint: {name: way, node: node-b}\n" if waypoint else ""
    services = "".join(_SERVICE.format(name=name) + way for name in names)
    return f"""
name: streams
nodes: {{node-a: {{}}, node-b: {{}}}}
workloads:{workloads}
services:{services}
links:
  - {{between: [node-a, node-b]}}
"""


LABS = {
    "none": text("all"), "sidecar": text("all"), "ambient-l4": text("all"), "ambient": text("all", waypoint=True),
    "hybrid": text(*KINDS), "hybrid-hbone": text(*KINDS),
}  # fmt: skip
EVERY_PAIR = [
    (plane, client, server)
    for plane, names in ((p, KINDS if p.startswith("hybrid") else ("all",)) for p in LABS)
    for client, server in itertools.product(names, names)
]
LARGE_PAIRS = [
    pair for pair in EVERY_PAIR
    if pair[0] not in ("hybrid", "hybrid-hbone")
    or pair in {
        ("hybrid", "sidecar", "ambient"), ("hybrid", "ambient", "sidecar"), ("hybrid-hbone", "ambient", "sidecar"),
    }
]  # fmt: skip
"""Of hybrid's those that no other plane has: what is like another plane's is only asked for small things."""


@pytest.fixture(scope="module")
def labs() -> Iterator[Callable[[str], WaypointWorld]]:
    """By plane, each brought up once and kept for all cases: pytest would make one anew for every pair."""
    held: dict[str, WaypointWorld] = {}
    with contextlib.ExitStack() as stack:

        def of(plane: str) -> WaypointWorld:
            if plane not in held:
                made = stack.enter_context(worlds.world(LABS[plane], plane=plane, made=WaypointWorld))
                assert isinstance(made, WaypointWorld)
                held[plane] = made
                for name, app in made.lab.apps.items():
                    if name.startswith("to-"):  # the cases listen there themselves
                        app.signal(signal.SIGKILL)
                        assert app.wait(LIMIT_S) is not None
            return held[plane]

        yield of


@pytest.fixture
def lab(labs: Callable[[str], WaypointWorld], request: pytest.FixtureRequest) -> WaypointWorld:
    return labs(request.param)


def pairs(listed: list[tuple[str, str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("lab", "client", "server"),
        [pytest.param(plane, f"from-{c}", f"to-{s}", id=f"{plane}-{c}-{s}") for plane, c, s in listed],
        indirect=["lab"],
    )


@pairs(EVERY_PAIR)
def test_grpc(lab: WaypointWorld, client: str, server: str) -> None:
    """A real client and a real server: a call with trailers, streams each way and both, a failure as such."""
    serving = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Echo(),))
    assert lab.inside(server, lambda: serving.add_insecure_port(f"0.0.0.0:{GRPC_PORT}")) == GRPC_PORT
    lab.inside(server, serving.start)
    try:
        with (
            lab.door(client, lab.vip(server), 81) as port,
            grpc.insecure_channel(f"127.0.0.1:{port}", (("grpc.default_authority", server),)) as channel,
        ):
            answer, call = channel.unary_unary("/t.Echo/Unary").with_call(b"hello", timeout=8)
            assert answer == b"HELLO"
            assert ("x-trailer", "there") in [(k, v) for k, v in call.trailing_metadata()]
            assert list(channel.unary_stream("/t.Echo/Down")(b"20", timeout=8)) == [b"%d" % n for n in range(20)]
            assert channel.stream_unary("/t.Echo/Up")(iter([b"abc"] * 20), timeout=8) == b"60"
            both_ways(channel)
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary("/t.Echo/Fail")(b"", timeout=8)
            assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        serving.stop(None).wait()


def both_ways(channel: grpc.Channel) -> None:
    """Each message is sent when the one before has been answered: nothing may wait for an end."""
    gate = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for n in range(8):
            assert gate.acquire(timeout=8)
            yield b"message %d" % n

    answers = []
    for reply in channel.stream_stream("/t.Echo/Both")(ask(), timeout=8):
        answers.append(reply)
        gate.release()
    assert answers == [(b"message %d" % n)[::-1] for n in range(8)]


@pairs(EVERY_PAIR)
def test_a_websocket(lab: WaypointWorld, client: str, server: str) -> None:
    """Frames both ways, among them one of a mebibyte, until both close."""
    with (
        lab.serve(server, HTTP_PORT, websocket_echo),
        contextlib.closing(
            websocket.create_connection(f"ws://{server}/", socket=lab.connect(client, lab.vip(server), 80), timeout=8)
        ) as made,
    ):
        made.send("hello")
        assert made.recv() == "olleh"
        made.send_binary(CHUNK * 16)
        assert made.recv() == CHUNK * 16
        made.close()


@contextlib.contextmanager
def watched(lab: WaypointWorld) -> Iterator[dict[str, float]]:
    """The most that each proxy held at any look during the body, in MiB beyond what it held before."""
    before = {name: pss_mib(process) for name, process in lab.deployment.proxies.items()}
    grown = dict.fromkeys(before, 0.0)
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.1):
            for name, process in lab.deployment.proxies.items():
                grown[name] = max(grown[name], pss_mib(process) - before[name])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield grown
    finally:
        ending.set()
        thread.join()


def take(sock: socket.socket, held: bytes, size: int) -> None:
    """Compares what comes with what `give` sends, byte by byte: a wrong one is named by its place."""
    taken, part = 0, held
    while True:
        start = taken % len(CHUNK)
        wanted = memoryview(PATTERN)[start : start + len(part)]
        if part != wanted:
            wrong = next(n for n, (a, b) in enumerate(zip(part, wanted, strict=True)) if a != b)
            have, ought = part[wrong : wrong + 40], bytes(wanted[wrong : wrong + 40])
            raise AssertionError(f"byte {taken + wrong} is wrong: {have!r}, not {ought!r}")
        taken += len(part)
        if taken >= size:
            break
        part = sock.recv(PART_BYTES)
        assert part, f"ended after {taken} of {size} bytes"
    assert taken == size


def head_of(sock: socket.socket) -> tuple[bytes, bytes]:
    held = b""
    while b"\r\n\r\n" not in held:
        part = sock.recv(65536)
        assert part, f"ended within a head: {held[:200]!r}"
        held += part
    head, _, rest = held.partition(b"\r\n\r\n")
    return head, rest


def give(send: Callable[[bytes], int], size: int) -> None:
    """Goes on within a chunk where a send ended within it."""
    sent = 0
    while sent < size:
        start = sent % len(CHUNK)
        sent += send(CHUNK[start : start + size - sent])


def settled(count: Callable[[], int]) -> int:
    """What it stays at for half a second: on a busy machine buffers take a while to fill."""
    deadline, last = time.monotonic() + 20, -1
    while (now := count()) != last and time.monotonic() < deadline:
        last = now
        time.sleep(0.5)
    return now


@pairs(LARGE_PAIRS)
def test_a_large_body_each_way(lab: WaypointWorld, client: str, server: str) -> None:
    """Every byte arrives, up to a server and down to a reader that first lets it wait; no proxy keeps any of it."""
    sent = {"bytes": 0}

    def handle(sock: socket.socket) -> None:
        sock.settimeout(60)
        _, rest = head_of(sock)
        take(sock, rest, BODY_BYTES)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BODY_BYTES)

        def send(data: bytes) -> int:
            size = sock.send(data)
            sent["bytes"] += size
            return size

        give(send, BODY_BYTES)

    with (
        lab.serve(server, HTTP_PORT, handle),
        watched(lab) as grown,
        lab.connect(client, lab.vip(server), 80, timeout_s=60) as sock,
    ):
        sock.sendall(b"POST / HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n\r\n" % (server.encode(), BODY_BYTES))
        give(sock.send, BODY_BYTES)
        head, rest = head_of(sock)
        assert head.startswith(b"HTTP/1.1 200")
        assert settled(lambda: sent["bytes"]) < BODY_BYTES / 2, "the server is not made to wait"
        take(sock, rest, BODY_BYTES)
    assert max(grown.values(), default=0.0) < BOUND_MIB, grown
