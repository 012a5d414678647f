"""What attacks on whole L7 programs are judged by: an application that reads with h11 and h2 and tells what it got."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

from testbed.bench import l7
from tests.test_l7_programs import LIMIT_S, Mesh, length_of, read_head, request

HOST = l7.HOST.encode()
SILENCE_S = 0.15
"""How long a client waits for more."""


_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_POISON = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
EVIL = {
    "a second answer": (_OK + _POISON, 200),
    "length and chunked": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + _POISON, 502
    ),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\nok" + _POISON, 502),
    "no version": (b"200 OK\r\n\r\n" + _POISON, 502),
    "not HTTP": (b"SSH-2.0-x\r\n\r\n" + _POISON, 502),
    "space before the colon": (b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok" + _POISON, 502),
    "204 with a body": (b"HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\nok" + _POISON, 204),
    "304 with a body": (b"HTTP/1.1 304 No\r\n\r\n" + _POISON, 304),
    "100 and no more-closes": (b"HTTP/1.1 100 Continue\r\n\r\n", 503),
    "101 unasked": (b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + _POISON, 502),
    "chunk size broken": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" + _POISON, 0),
    "cut by length-closes": (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok", 0),
    "cut in a chunk-closes": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok", 0),
    "nothing-closes": (b"", 503),
    "half a head-closes": (b"HTTP/1.1 200 OK\r\ncontent-le", 503),
    "huge head": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", 502),
    "a thousand fields": (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(1000)) + b"\r\n", 502),
}
"""(what the application sends, the status that its client gets; 0: a head, and then no whole body)."""


@dataclass
class Received:
    line: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False


class Application:
    """Reads with h11, or h2 where it is spoken to so, and answers as the path says; what they refuse is in `broken`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.received: list[Received] = []
        self.broken: list[str] = []
        self.asked, self.go = threading.Event(), threading.Event()
        self.waiting = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(address, backlog=1024)
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        self.received.clear()
        self.broken.clear()
        self.asked.clear()
        self.go.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def targets(self) -> list[str]:
        return [r.line.split(" ")[1] for r in self.received]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            if sock.recv(4, socket.MSG_PEEK) == b"PRI ":
                self._serve_http2(sock)
            while True:
                made = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
                try:
                    if not self._exchange(sock, made):
                        return
                    while made.their_state is h11.DONE and made.our_state is h11.DONE:
                        made.start_next_cycle()
                        if not self._exchange(sock, made):
                            return
                except h11.RemoteProtocolError as error:
                    if "closed" not in str(error):
                        self.broken.append(str(error))
                    return
                return

    def _next(self, sock: socket.socket, made: h11.Connection) -> object:
        while (event := made.next_event()) is h11.NEED_DATA:
            made.receive_data(sock.recv(65536))
        return event

    def _exchange(self, sock: socket.socket, made: h11.Connection) -> bool:
        head = self._next(sock, made)
        if not isinstance(head, h11.Request):
            return False
        target = head.target.decode()
        got = Received(f"{head.method.decode()} {target}", _text(head.headers))
        self.received.append(got)
        if target == "/early":
            sock.sendall(b"HTTP/1.1 413 Too Much\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly")
            sock.shutdown(socket.SHUT_WR)
            time.sleep(SILENCE_S)
            return False
        if target == "/refuse":
            sock.sendall(b"HTTP/1.1 417 No\r\ncontent-length: 2\r\n\r\nno")
            return False
        if target.startswith("/evil/"):
            sock.sendall(EVIL[target.removeprefix("/evil/")][0])
            if target.endswith("-closes"):
                return False
            time.sleep(0.1)
            return False
        if made.they_are_waiting_for_100_continue:
            sock.sendall(made.send(h11.InformationalResponse(status_code=100, headers=[])))
        while not isinstance(event := self._next(sock, made), h11.EndOfMessage):
            got.body += bytes(event.data)  # type: ignore[attr-defined]
        got.trailers = _text(event.headers)
        got.whole = True
        self._answer(sock, made, head, got, target)
        return True

    def _hold(self) -> None:
        self.asked.set()
        with self._lock:
            self.waiting += 1
        self.go.wait(LIMIT_S)
        with self._lock:
            self.waiting -= 1

    def _answer(self, sock: socket.socket, made: h11.Connection, head: h11.Request, got: Received, target: str) -> None:
        if target == "/hold":
            self._hold()
        body = f"{got.line} {len(got.body)}".encode()
        fields: list[tuple[str, str]] = [("content-length", str(len(body)))]
        trailers: list[tuple[str, str]] = []
        if target == "/trailers":
            fields, trailers = [("transfer-encoding", "chunked")], [("x-echoed", v) for _, v in got.trailers]
        if target.startswith("/many/"):
            fields += [(f"x-{n}", "y" * 400) for n in range(int(target[6:]))]
        sock.sendall(made.send(h11.Response(status_code=200, headers=fields)))
        if head.method != b"HEAD":
            sock.sendall(made.send(h11.Data(data=body)))
        sock.sendall(made.send(h11.EndOfMessage(headers=trailers)))

    def _serve_http2(self, sock: socket.socket) -> None:
        made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        made.local_settings.max_concurrent_streams = 10_000
        made.initiate_connection()
        sending = threading.Lock()
        got: dict[int, Received] = {}
        sock.sendall(made.data_to_send())
        while data := sock.recv(65536):
            with sending:
                try:
                    events = made.receive_data(data)
                except h2.exceptions.ProtocolError as error:
                    self.broken.append(str(error))
                    return
                for event in events:
                    self._event(sock, made, got, event, sending)
                sock.sendall(made.data_to_send())

    def _event(
        self, sock: socket.socket, made: h2.connection.H2Connection, got: dict[int, Received], event: h2.events.Event,
        sending: threading.Lock,
    ) -> None:  # fmt: skip
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                fields = dict(headers)
                names = [(("host" if n == ":authority" else n), v) for n, v in headers]
                got[stream] = Received(f"{fields[':method']} {fields[':path']}", names)
                self.received.append(got[stream])
            case h2.events.DataReceived(stream_id=stream):
                got[stream].body += event.data
                made.acknowledge_received_data(event.flow_controlled_length, stream)
            case h2.events.TrailersReceived(stream_id=stream, headers=headers):
                got[stream].trailers = list(headers)
            case h2.events.StreamEnded(stream_id=stream):
                held = got[stream]
                held.whole = True

                def respond() -> None:
                    if held.line.endswith(" /hold"):
                        self._hold()
                    text = f"{held.line} {len(held.body)}".encode()
                    with sending, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
                        made.send_headers(stream, [(":status", "200")])
                        silent = held.line.startswith("HEAD ")
                        made.send_data(stream, b"" if silent else text, end_stream=not held.trailers)
                        if held.trailers:
                            made.send_headers(stream, [("x-echoed", v) for _, v in held.trailers], end_stream=True)
                        sock.sendall(made.data_to_send())

                threading.Thread(target=respond, daemon=True).start()


def _text(fields: object) -> list[tuple[str, str]]:
    return [(n.decode(), v.decode("latin-1")) for n, v in fields]  # type: ignore[attr-defined]


@dataclass
class Target:
    mesh: Mesh
    app: Application
    role: str

    def connect(self) -> socket.socket:
        sock = self.mesh.connect()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def heard(sock: socket.socket, *, within_s: float = SILENCE_S) -> tuple[bytes, bool]:
    """(all that comes until silence or the end, whether it was the end)."""
    data = b""
    sock.settimeout(within_s)
    try:
        while part := sock.recv(65536):
            data += part
    except TimeoutError:
        return data, False
    except ConnectionError:
        pass
    return data, True


def answer(sock: socket.socket) -> tuple[int, bytes, bytes]:
    """(status, head, body by length)."""
    head, body = read_head(sock)
    assert head, "the connection ended without an answer"
    while len(body) < length_of(head):
        part = sock.recv(65536)
        assert part, "a cut answer"
        body += part
    return int(head.split()[1]), head, body


def works(target: Target, path: str = "/after") -> None:
    """The mesh still serves the next client, with its own answer."""
    with target.connect() as sock:
        sock.sendall(request(f"GET {path}"))
        assert answer(sock)[::2] == (200, f"GET {path} 0".encode())


def http2(*, checked: bool = False) -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(
        h2.config.H2Configuration(
            header_encoding="latin-1", validate_outbound_headers=checked, normalize_outbound_headers=checked,
            validate_inbound_headers=True,
        )
    )  # fmt: skip
    made.initiate_connection()
    return made


def events_of(sock: socket.socket, made: h2.connection.H2Connection, until: int | None) -> list[h2.events.Event]:
    """What comes until that many streams have ended; with None until silence or the end."""
    found: list[h2.events.Event] = []
    sock.settimeout(LIMIT_S if until is not None else SILENCE_S)
    ends = (h2.events.StreamEnded, h2.events.StreamReset)
    while until is None or sum(isinstance(e, ends) for e in found) < until:
        sock.sendall(made.data_to_send())
        try:
            data = sock.recv(1 << 20)
        except (TimeoutError, ConnectionError):
            break
        if not data:
            break
        for event in made.receive_data(data):
            found.append(event)
            if isinstance(event, h2.events.DataReceived):
                made.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, h2.events.ConnectionTerminated):
                return found
    sock.sendall(made.data_to_send())
    return found
