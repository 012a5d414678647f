"""HTTP echo: answers what the request asks for, says who answered and whom it saw calling, and counts.

    python -m testbed.apps.web --port 8080 --name web --log seen.jsonl [--call http://10.96.0.11:8080/]

A request chooses by query (or by header `x-echo-<name>`, dashes for underscores): `size` of the body, `delay_ms`,
`status`, `reflect=1` (the answer carries x-canary too), `log=1`. Every answer says `x-workload`, `x-peer-address` and
`x-peer-port`; `x-body-bytes` counts a request body. `GET /-/count` gives totals. Timers tick at 1 ms (libuv's),
delays are no finer.

Only requests marked by `x-canary` or `log=1` are logged unless `--log-requests all`, so that a measured window pays
for counting alone. An answer that depends on nothing but the head is remembered by the head's bytes, but for the
`x-request-id` that L7 proxies make anew for every request: a load generator sends the same head all the time, and the
app must neither be what is measured nor cost more under one plane than under another.

A connection that begins with HTTP/2's preface is served by `http2`, gRPC calls too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from testbed.apps.calls import Callee, Caller, CallError
from testbed.apps.http1 import BodyPart, Malformed, RequestEnd, RequestHead, RequestReader
from testbed.apps.seenlog import SeenLog
from testbed.apps.serving import listen_until_told, until_empty

if TYPE_CHECKING:
    from testbed.apps.http2 import Http2Server

COUNT_PATH = "/-/count"
MAX_SIZE_BYTES = 64 * 1024 * 1024
MAX_DELAY_S = 60.0
MAX_PENDING_BYTES = 64 * 1024
MAX_PEERS_COUNTED = 1024
_REQUEST_ID = re.compile(rb"\r\nx-request-id: [^\r\n]*")
REMEMBERED_HEADS = 256
REMEMBERED_BODY_BYTES = 16 * 1024
_BLOCK = b"x" * MAX_PENDING_BYTES
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a request asks for."""

    size_bytes: int
    delay_s: float
    status: int
    reflect: bool
    log: bool


def read_order(head: RequestHead) -> Order:
    """Raises Malformed for a value out of its range."""

    def number(name: str, low: float, high: float, default: float) -> float:
        text = head.query.get(name) or head.headers.get("x-echo-" + name.replace("_", "-"))
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise Malformed(f"{name}={text[:40]!r} is not a number from {low:g} to {high:g}")
        return value

    return Order(
        size_bytes=int(number("size", 0, MAX_SIZE_BYTES, 0)),
        delay_s=number("delay_ms", 0, MAX_DELAY_S * 1000, 0) / 1000,
        status=int(number("status", 200, 599, 200)),
        reflect=head.query.get("reflect") == "1",
        log="x-canary" in head.headers or head.query.get("log") == "1",
    )


@dataclass(slots=True)
class Totals:
    connections: int = 0
    open_connections: int = 0
    requests: int = 0
    malformed: int = 0
    request_body_bytes: int = 0
    response_body_bytes: int = 0


class WebApp:
    """What all connections of the program share."""

    def __init__(
        self,
        *,
        name: str,
        log: SeenLog,
        log_all: bool = False,
        service_time_s: float = 0.0,
        callees: tuple[Callee, ...] = (),
    ) -> None:
        self.name = name
        self.log = log
        self.log_all = log_all
        self.service_time_s = service_time_s
        self.callers = tuple(Caller(callee) for callee in callees)
        self.totals = Totals()
        self.peers: Counter[str] = Counter()
        self.remembered: dict[bytes, tuple[bytes, bytes]] = {}
        """Request bytes -> the answer before and after the peer's header lines."""
        self.connections: set[Connection | Http2Server] = set()
        self.stopping = False

    def counted(self, address: str, request_bytes: int, response_bytes: int) -> None:
        totals, peers = self.totals, self.peers
        totals.requests += 1
        totals.request_body_bytes += request_bytes
        totals.response_body_bytes += response_bytes
        if address in peers or len(peers) < MAX_PEERS_COUNTED:
            peers[address] += 1

    def count_json(self) -> bytes:
        fields = {name: getattr(self.totals, name) for name in Totals.__slots__}
        return json.dumps({"workload": self.name, **fields, "requests_by_peer": dict(self.peers)}).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection: answers come in order, one after another; meanwhile reading stops."""

    def __init__(self, app: WebApp) -> None:
        self._app = app
        self._reader = RequestReader()
        self._head: RequestHead | None = None
        self._body_bytes = 0
        self._busy = False
        self._ended = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        peer = transport.get_extra_info("peername") or ("unknown", 0)
        self._address, self._port = str(peer[0]), int(peer[1])
        self._peer_lines = f"x-peer-address: {self._address}\r\nx-peer-port: {self._port}\r\n".encode()
        self._fresh = True
        self._app.connections.add(self)
        self._app.totals.connections += 1
        self._app.totals.open_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        app = self._app
        app.connections.discard(self)
        app.totals.open_connections -= 1
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._fresh:
            self._fresh = False
            if data.startswith(b"PRI "):
                self._speak_http2(data)
                return
        if not self._busy and self._reader.between_requests and self._writable.is_set():
            remembered = self._app.remembered.get(_REQUEST_ID.sub(b"", data, 1))
            if remembered is not None:
                before, after = remembered
                self._transport.write(before + self._peer_lines + after)
                self._count(0, len(after) - 2)
                return
        self._reader.receive(data)
        self._pump()

    def _speak_http2(self, data: bytes) -> None:
        from testbed.apps.http2 import Http2Server  # memory that an app without HTTP/2 clients shall not take

        app = self._app
        server = Http2Server(app, self._transport, self._address, self._port)
        app.connections.discard(self)
        app.connections.add(server)
        self._transport.set_protocol(server)
        server.data_received(data)

    def eof_received(self) -> bool:
        # A client that has shut its write side still gets the answer it is waiting for.
        self._ended = True
        return self._busy or not self._writable.is_set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        if not self._busy:
            self._pump()

    def stop(self) -> None:
        """Close now if idle, else after the answer in progress."""
        if not self._busy:
            self._transport.close()

    def _pump(self) -> None:
        try:
            while not self._busy and self._writable.is_set() and not self._transport.is_closing():
                event = self._reader.next_event()
                if event is None:
                    break
                if isinstance(event, BodyPart):
                    self._body_bytes += event.size_bytes
                elif isinstance(event, RequestEnd):
                    self._answer()
                else:
                    self._head, self._body_bytes = event, 0
                    if event.expects_continue and event.body_bytes != 0:
                        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except Malformed as error:
            self._app.totals.malformed += 1
            text = f"{error}\n".encode()
            self._transport.write(self._render(error.status, len(text), close=True, extra="") + b"\r\n" + text)
            self._transport.close()
            return
        if self._ended and not self._busy and self._writable.is_set():
            self._transport.close()
        elif self._reader.buffered_bytes > MAX_PENDING_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _count(self, request_bytes: int, response_bytes: int) -> None:
        self._app.counted(self._address, request_bytes, response_bytes)

    def _render(self, status: int, size_bytes: int, *, close: bool, extra: str) -> bytes:
        """The head without its closing empty line, up to where the peer's lines go."""
        length = "" if status == 204 else f"content-length: {size_bytes}\r\n"
        closing = "connection: close\r\n" if close else ""
        first = f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
        return f"{first}{length}x-workload: {self._app.name}\r\n{closing}{extra}".encode("latin-1")

    def _answer(self) -> None:
        """The request has been read whole."""
        head, app = self._head, self._app
        assert head is not None
        order = read_order(head)
        delay_s = order.delay_s + app.service_time_s
        # The totals are the app's own word: they wait for nobody, and asking for them must not count as a call.
        if head.path != COUNT_PATH and (app.callers or delay_s or order.size_bytes > MAX_PENDING_BYTES):
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._answer_later(head, order, delay_s))
            return
        body = app.count_json() if head.path == COUNT_PATH else _BLOCK[: order.size_bytes]
        before, after = self._compose(head, order, order.status, body, len(body), "")
        self._transport.write(before + self._peer_lines + after)
        if (
            head.method == "GET"
            and head.keep_alive
            and not self._logged(order)
            and not head.expects_continue
            and head.body_bytes == 0
            and head.path != COUNT_PATH
            and len(body) <= REMEMBERED_BODY_BYTES
            and order.status not in (204, 304)
        ):
            self._learn(head, before, after)
        self._done(head, order, order.status, len(after) - 2)

    def _learn(self, head: RequestHead, before: bytes, after: bytes) -> None:
        if len(self._app.remembered) < REMEMBERED_HEADS:
            self._app.remembered[_REQUEST_ID.sub(b"", self._reader.last_head_bytes, 1)] = (before, after)

    def _compose(
        self, head: RequestHead, order: Order, status: int, body: bytes, size_bytes: int, extra: str
    ) -> tuple[bytes, bytes]:
        if order.reflect and "x-canary" in head.headers:
            extra += f"x-canary: {head.headers['x-canary']}\r\n"
        if self._body_bytes:
            extra += f"x-body-bytes: {self._body_bytes}\r\n"
        close = not head.keep_alive or self._app.stopping
        before = self._render(status, size_bytes, close=close, extra=extra)
        bodyless = head.method == "HEAD" or status in (204, 304)
        return before, b"\r\n" if bodyless else b"\r\n" + body

    async def _answer_later(self, head: RequestHead, order: Order, delay_s: float) -> None:
        """An answer that waits, calls others first, or is too long to be handed over in one piece."""
        status, extra = order.status, ""
        try:
            if delay_s:
                await asyncio.sleep(delay_s)
            for caller in self._app.callers:
                answered = await caller.call(head.headers)
                if answered >= 500:
                    raise CallError(f"answered {answered}")
        except CallError as error:
            status, extra = 502, f"x-call-error: {' '.join(str(error).split())[:200]}\r\n"
        before, _ = self._compose(head, order, status, b"", order.size_bytes, extra)
        self._transport.write(before + self._peer_lines + b"\r\n")
        sent = 0
        if head.method != "HEAD" and status not in (204, 304):
            while sent < order.size_bytes and not self._transport.is_closing():
                await self._writable.wait()
                part = _BLOCK[: order.size_bytes - sent]
                self._transport.write(part)
                sent += len(part)
        self._busy, self._task = False, None
        self._done(head, order, status, sent)
        self._pump()

    def _logged(self, order: Order) -> bool:
        return order.log or self._app.log_all

    def _done(self, head: RequestHead, order: Order, status: int, response_bytes: int) -> None:
        self._count(self._body_bytes, response_bytes)
        if self._logged(order):
            self._app.log.write(
                time=time.time(),
                monotonic_s=time.monotonic(),
                workload=self._app.name,
                method=head.method,
                path=head.path,
                peer=self._address,
                peer_port=self._port,
                canary=head.headers.get("x-canary"),
                request_id=head.headers.get("x-request-id"),
                status=status,
                request_body_bytes=self._body_bytes,
                response_body_bytes=response_bytes,
            )
        if not head.keep_alive or self._app.stopping:
            self._transport.close()


async def serve(app: WebApp, *, address: str, ports: list[int]) -> None:
    """Until SIGTERM or SIGINT; then in-flight answers have DRAIN_S to finish."""
    await listen_until_told(lambda: Connection(app), address=address, ports=ports)
    app.stopping = True
    for connection in list(app.connections):
        connection.stop()
    await until_empty(app.connections)
    for caller in app.callers:
        caller.close()
    app.log.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m testbed.apps.web", description="HTTP echo that counts")
    parser.add_argument("--port", type=int, action="append", required=True, help="listen here (repeatable); 0: any")
    parser.add_argument("--address", default="0.0.0.0", help="listen on this address (default: all)")
    parser.add_argument("--name", required=True, help="said in x-workload")
    parser.add_argument("--log", type=Path, help="JSON lines of what was seen")
    parser.add_argument("--log-requests", choices=("marked", "all"), default="marked", help="which requests are logged")
    parser.add_argument("--service-time-ms", type=float, default=0.0, help="added to every answer")
    parser.add_argument("--call", action="append", default=[], metavar="URL", help="call before answering (repeatable)")
    args = parser.parse_args(argv)
    try:
        callees = tuple(Callee.parse(url) for url in args.call)
    except ValueError as error:
        parser.error(str(error))

    async def run() -> None:
        app = WebApp(
            name=args.name,
            log=SeenLog(args.log),
            log_all=args.log_requests == "all",
            service_time_s=args.service_time_ms / 1000,
            callees=callees,
        )
        await serve(app, address=args.address, ports=args.port)

    uvloop.run(run())


if __name__ == "__main__":
    main()
