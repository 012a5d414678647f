"""Whole programs on loopback: two sidecars, or a waypoint between two ztunnels, with real applications at both ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from testbed.bench import l7
from testbed.bench.loopback import CLIENT_URI, SERVER_URI, write_certificates
from tests.ztunnels import rss_kib, wait_for

LIMIT_S = 30
GIGABYTE = 1 << 30
ROLES = ("sidecar http/1.1", "sidecar http/2", "waypoint")
URIS = {"client": CLIENT_URI, "server": SERVER_URI, "waypoint": l7.WAYPOINT_URI}
_numbers = itertools.count(1)


@dataclass
class Mesh:
    folder: Path
    net: l7.Net
    chain: l7.Chain

    def connect(self) -> socket.socket:
        """As the client's application."""
        return socket.create_connection(self.chain.target, timeout=LIMIT_S)

    def serve(self, handle: Callable[[socket.socket], None]) -> contextlib.AbstractContextManager[list[BaseException]]:
        return serving((self.net.server, 8080), handle)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.chain.processes]


@contextlib.contextmanager
def mesh(folder: Path, role: str) -> Iterator[Mesh]:
    net = l7.Net.of(f"127.{20 + os.getpid() % 100}.{(os.getpid() // 100 + next(_numbers)) % 250}")
    write_certificates(folder, URIS)
    with l7.chain(folder, "meshbed", role, net) as chain:
        yield Mesh(folder, net, chain)


@pytest.fixture(params=ROLES)
def any_mesh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mesh]:
    with mesh(tmp_path, request.param) as made:
        yield made


@contextlib.contextmanager
def serving(address: tuple[str, int], handle: Callable[[socket.socket], None]) -> Iterator[list[BaseException]]:
    """A thread per connection; what one raises is in the list, but for the ends that peers may cause."""
    listener = socket.create_server(address, backlog=128)
    raised: list[BaseException] = []

    def one(sock: socket.socket) -> None:
        with sock:
            try:
                handle(sock)
            except OSError:
                pass
            except BaseException as error:
                raised.append(error)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert not raised


def request(line: str, *fields: str) -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", f"host: {l7.HOST}", *fields, "", "")).encode()


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """(a head, what came behind it); empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return b"", b""
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.lower(), rest


def length_of(head: bytes) -> int:
    return next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0)


def answer_all(sock: socket.socket) -> None:
    """Keep-alive; every request is answered by its first line and length."""
    held = b""
    while True:
        while b"\r\n\r\n" not in held:
            part = sock.recv(65536)
            if not part:
                return
            held += part
        head, _, held = held.partition(b"\r\n\r\n")
        need = length_of(head.lower())
        while len(held) < need:
            part = sock.recv(65536)
            if not part:
                return
            held += part
        held = held[need:]
        line = head.split(b"\r\n")[0]
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(line), line))


def ask(sock: socket.socket, data: bytes) -> tuple[int, bytes, bytes]:
    """(status, head, body) of a response with a length."""
    sock.sendall(data)
    head, body = read_head(sock)
    if not head:
        raise ConnectionError("no answer")
    while len(body) < length_of(head):
        part = sock.recv(65536)
        if not part:
            raise ConnectionError("cut answer")
        body += part
    return int(head.split()[1]), head, body


class TestBodies:
    def test_a_gigabyte_each_way_takes_no_more_memory(self, any_mesh: Mesh) -> None:
        """The reader begins late, so that brakes are needed; no process of the mesh grows by 64 MiB."""
        chunk = b"g" * (1 << 20)
        got = []

        def application(sock: socket.socket) -> None:
            head, rest = read_head(sock)
            if head.startswith(b"post"):
                time.sleep(0.5)
                left = length_of(head) - len(rest)
                view = bytearray(1 << 20)
                while left:
                    left -= sock.recv_into(view)
                got.append(left)
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            elif head:
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIGABYTE)
                for _ in range(GIGABYTE >> 20):
                    sock.sendall(chunk)
                sock.recv(1)

        most = {}

        def look() -> None:
            for pid in any_mesh.pids:
                most[pid] = max(most.get(pid, 0), rss_kib(pid))

        with any_mesh.serve(application):
            before = {pid: rss_kib(pid) for pid in any_mesh.pids}
            with any_mesh.connect() as sock:
                sock.sendall(request("POST /big", f"content-length: {GIGABYTE}"))
                for number in range(GIGABYTE >> 20):
                    sock.sendall(chunk)
                    if number % 64 == 0:
                        look()
                head, _ = read_head(sock)
                assert b" 200 " in head and got == [0]
            with any_mesh.connect() as sock:
                sock.sendall(request("GET /big"))
                time.sleep(0.5)
                look()
                _, rest = read_head(sock)
                left, view = GIGABYTE - len(rest), bytearray(1 << 20)
                number = 0
                while left:
                    size = sock.recv_into(view)
                    assert size, f"{left} bytes are missing"
                    left -= size
                    number += 1
                    if number % 512 == 0:
                        look()
        grown = {pid: most[pid] - before[pid] for pid in before}
        assert max(grown.values()) < 64 << 10, grown

    def test_malformed_requests_get_their_status_from_the_first_proxy(self, any_mesh: Mesh) -> None:
        """The application hears of none."""
        heard = []
        with any_mesh.serve(lambda sock: heard.append(sock.recv(100))):
            for bad, status in (
                (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
                (request("POST /", "content-length: 3", "transfer-encoding: chunked"), 400),
                (request("POST /", "transfer-encoding: gzip, chunked"), 501),
                (request("GET /", "x: " + "y" * 100_000), 431),
                (b"GET / HTTP/7.0\r\nhost: a\r\n\r\n", 505),
            ):
                with any_mesh.connect() as sock:
                    assert ask(sock, bad)[0] == status
        assert heard == []


class TestLongLived:
    def test_a_websocket_runs_through_the_mesh(self, any_mesh: Mesh) -> None:
        """101, frames both ways, the server first."""

        def application(sock: socket.socket) -> None:
            head, _ = read_head(sock)
            assert b"upgrade: websocket" in head
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhi")
            while data := sock.recv(65536):
                sock.sendall(data)

        with any_mesh.serve(application), any_mesh.connect() as sock:
            key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
            sock.sendall(request("GET /chat", "upgrade: websocket", "connection: upgrade", key))
            head, rest = read_head(sock)
            assert head.startswith(b"http/1.1 101")
            while len(rest) < 2:
                rest += sock.recv(100)
            assert rest == b"hi"
            for size in (1, 1000, 300_000):
                message = os.urandom(size)
                sock.sendall(message)
                back = b""
                while len(back) < size:
                    back += sock.recv(65536)
                assert back == message

    def test_grpc_streams_of_every_kind(self, any_mesh: Mesh) -> None:
        """grpcio at both ends: unary, both ways at once, a status of the server's, a deadline."""
        server = grpc.server(futures.ThreadPoolExecutor(4))

        def chat(questions, context):  # type: ignore[no-untyped-def]
            for question in questions:
                yield question.upper()
            context.set_trailing_metadata((("x-count", "done"),))

        def fail(question, context):  # type: ignore[no-untyped-def]
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

        def slow(question, context):  # type: ignore[no-untyped-def]
            time.sleep(3)
            return question

        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(lambda question, context: question),
            "Chat": grpc.stream_stream_rpc_method_handler(chat),
            "Fail": grpc.unary_unary_rpc_method_handler(fail),
            "Slow": grpc.unary_unary_rpc_method_handler(slow),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        server.add_insecure_port(f"{any_mesh.net.server}:8080")
        server.start()
        host, port = any_mesh.chain.target
        options = (("grpc.default_authority", l7.HOST),)
        try:
            with grpc.insecure_channel(f"{host}:{port}", options=options) as channel:
                echo = channel.unary_unary("/test.Service/Echo")
                for size in (0, 10, 100_000, 3_000_000):
                    assert echo(b"e" * size, timeout=LIMIT_S) == b"e" * size
                call = channel.stream_stream("/test.Service/Chat")(
                    (b"word %d" % n for n in range(200)), timeout=LIMIT_S
                )
                assert list(call) == [b"WORD %d" % n for n in range(200)]
                assert ("x-count", "done") in [(k, v) for k, v in call.trailing_metadata()]
                with pytest.raises(grpc.RpcError) as failed:
                    channel.unary_unary("/test.Service/Fail")(b"", timeout=LIMIT_S)
                assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                with pytest.raises(grpc.RpcError) as late:
                    channel.unary_unary("/test.Service/Slow")(b"", timeout=0.3)
                assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            server.stop(0).wait()


class Load:
    """Keep-alive clients in threads, each with one request after another; what was asked and not answered counts."""

    def __init__(self, made: Mesh, clients: int) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self.closed = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(made,), daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _client(self, made: Mesh) -> None:
        while not self._stop.is_set():
            try:
                sock = made.connect()
            except OSError:
                return  # nobody takes connections any more, as a client may see before it asks
            with sock:
                while not self._stop.is_set():
                    try:
                        status, head, _ = ask(sock, request("GET /load"))
                    except OSError as error:
                        self.lost.append(str(error))
                        return
                    if status != 200:
                        self.lost.append(str(head))
                        return
                    self.answered += 1
                    if b"connection: close" in head:
                        self.closed += 1
                        return  # told to go elsewhere, which here is nowhere

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)


class TestChange:
    @pytest.mark.parametrize("which", [0, 1], ids=["server's", "client's"])
    def test_a_sidecar_that_ends_under_load_loses_no_request(self, tmp_path: Path, which: int) -> None:
        """SIGTERM: what was asked is answered, with a word to clients to go elsewhere; then the process ends."""
        with mesh(tmp_path, "sidecar http/1.1") as made, made.serve(answer_all):
            load = Load(made, 8)
            wait_for(lambda: load.answered > 200)
            process = made.chain.processes[which]
            process.send_signal(signal.SIGTERM)
            if which == 0:  # the client's side goes on asking: new requests meet no server, which is no loss of these
                time.sleep(0.2)
                load.stop()
            assert process.wait(LIMIT_S) == 0
            load.stop()
            lost = [text for text in load.lost if " 503 " not in text]
            assert lost == []
            if which == 1:
                assert load.lost == [] and load.closed == 8

    def test_a_new_view_under_load_costs_no_request(self, tmp_path: Path) -> None:
        """The file is replaced again and again."""
        with mesh(tmp_path, "sidecar http/1.1") as made, made.serve(answer_all):
            load = Load(made, 4)
            views = [p / "view.json" for p in tmp_path.iterdir() if (p / "view.json").exists()]
            assert len(views) == 2
            for _ in range(8):
                before = load.answered
                for view in views:
                    new = view.with_name("view.new")
                    new.write_text(json.dumps(json.loads(view.read_text())))
                    new.rename(view)
                time.sleep(0.3)
                wait_for(lambda before=before: load.answered > before)
            load.stop()
            assert load.lost == []

    def test_a_view_that_cannot_be_read_changes_nothing(self, tmp_path: Path) -> None:
        """Neither broken JSON nor one without the own workload."""
        with mesh(tmp_path, "sidecar http/1.1") as made, made.serve(answer_all):
            for view in [p / "view.json" for p in tmp_path.iterdir() if (p / "view.json").exists()]:
                whole = json.loads(view.read_text())
                for text in ("{", json.dumps({**whole, "workloads": []})):
                    view.write_text(text)
                    time.sleep(0.6)
                    with made.connect() as sock:
                        assert ask(sock, request("GET /"))[0] == 200

    @pytest.mark.parametrize(
        ("role", "port", "alpn", "name"),
        [("sidecar http/1.1", 15006, "istio-http/1.1", "server"), ("waypoint", 15008, "h2", "waypoint")],
    )
    def test_a_renewed_certificate_is_shown_to_the_next_who_connects(
        self, tmp_path: Path, role: str, port: int, alpn: str, name: str
    ) -> None:
        """What runs goes on, and no connection is refused meanwhile."""
        with mesh(tmp_path, role) as made, made.serve(answer_all):
            address = (getattr(made.net, name), port)

            def shown() -> str:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.load_verify_locations(tmp_path / "roots.pem")
                context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
                context.set_alpn_protocols([alpn])
                with socket.create_connection(address, timeout=5) as raw, context.wrap_socket(raw) as sock:
                    return sock.getpeercert()["serialNumber"]  # type: ignore[index,return-value]

            before = shown()
            load = Load(made, 2)
            wait_for(lambda: load.answered > 0)  # `chain` waits for listeners only: no tunnel stands before
            write_certificates(tmp_path, URIS)
            made.chain.processes[0].send_signal(signal.SIGHUP)
            wait_for(lambda: shown() != before)
            answered = load.answered
            wait_for(lambda: load.answered > answered)
            load.stop()
            assert load.lost == []


class TestBytesThatAreNotHttp:
    def test_a_server_may_speak_first(self, tmp_path: Path) -> None:
        """On a port declared as TCP, between two sidecars."""

        def application(sock: socket.socket) -> None:
            sock.sendall(b"220 hello\r\n")
            while data := sock.recv(65536):
                sock.sendall(data.upper())

        with mesh(tmp_path, "sidecar tcp") as made, made.serve(application), made.connect() as sock:
            assert sock.recv(100) == b"220 hello\r\n"
            sock.sendall(b"quit\r\n")
            assert sock.recv(100) == b"QUIT\r\n"

    def test_an_end_reaches_the_other_side(self, tmp_path: Path) -> None:
        """Either end; all that was written before it arrives."""
        ended = []

        def application(sock: socket.socket) -> None:
            size = 0
            while data := sock.recv(65536):
                if data == b"close":
                    sock.sendall(b"z" * 500_000)
                    return
                size += len(data)
            ended.append(size)

        with mesh(tmp_path, "sidecar tcp") as made, made.serve(application):
            with made.connect() as sock:
                sock.sendall(b"a" * 500_000)
            wait_for(lambda: 500_000 in ended)
            with made.connect() as sock:
                sock.sendall(b"close")
                size = 0
                while data := sock.recv(65536):
                    size += len(data)
            assert size == 500_000
