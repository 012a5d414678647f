"""One client connection of the load generator: a request out, an answer in, timed; here over HTTP/1.1.

Other protocols change `round_trip` alone: `tcp`, `http2` (gRPC too).

The socket is gevent's where gevent has patched the standard library, as in the generator. Nothing here is locust's:
its faster client costs 100 us of CPU a request (measured), more than a proxy that is to be measured.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from testbed.load.plan import CONNECT_TIMEOUT_S
from testbed.model.experiment import RequestRow

MAX_HEAD_BYTES = 64 * 1024


class BadAnswer(Exception):
    """The bytes that came back are no answer."""


class Connection:
    """One HTTP/1.1 client connection over a plain (gevent) socket: a request out, an answer in, timed.

    Subclasses say what a request is (`Request`) and how one is answered (`round_trip`).
    """

    def __init__(self, number: int, host: str, port: int, most_requests: int = 0) -> None:
        self.number = number
        self._address = (host, port)
        self._most_requests = most_requests
        """After so many it is closed, and opened again by the next; 0: never."""
        self._requests = 0
        self._socket: socket.socket | None = None
        self.connects = 0
        self.busy_since_s: float | None = None
        self.timed_out = False

    def connect(self) -> None:
        self._socket = socket.create_connection(self._address, CONNECT_TIMEOUT_S)
        # A watchdog breaks what takes too long: a timer per request would cost as much as the request.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connects += 1
        self._requests = 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def interrupt(self) -> None:
        """Called by the watchdog: the waiting `exchange` then sees the end of the stream."""
        self.timed_out = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def round_trip(self, request: Any) -> tuple[int, int, float, bool]:
        """(status, body bytes, when its first byte came, whether the connection may be used again).

        Raises OSError or BadAnswer.
        """
        assert self._socket is not None
        self._socket.sendall(request)
        data = self._socket.recv(65536)
        first_byte_s = time.monotonic()
        return self._read_answer(data, first_byte_s)

    def exchange(self, request: Any, intended_s: float | None) -> RequestRow:
        """Never raises for what the network or the peer does: that is a row's `error`."""
        sent_s = time.monotonic()
        first_byte_s = 0.0
        self.busy_since_s, self.timed_out = sent_s, False
        status = received = 0
        keep, error = True, ""
        try:
            if self._socket is None:
                self.connect()
            status, received, first_byte_s, keep = self.round_trip(request)
            self._requests += 1
        except (OSError, BadAnswer) as problem:
            self.close()
            error = "timeout" if self.timed_out else _kind(problem)
        last_byte_s = time.monotonic()
        self.busy_since_s = None
        if not keep or self._requests == self._most_requests:
            self.close()  # after the clock: it is no part of the answer
        return RequestRow(
            intended_s=sent_s if intended_s is None else intended_s,
            sent_s=sent_s,
            first_byte_s=first_byte_s or last_byte_s,
            last_byte_s=last_byte_s,
            status=status,
            bytes=received,
            connection=self.number,
            error=error or (f"status {status}" if status >= 400 else ""),
        )

    def _more(self) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            raise BadAnswer("closed")
        return data

    def _read_answer(self, data: bytes, first_byte_s: float) -> tuple[int, int, float, bool]:
        if not data:
            raise BadAnswer("closed")
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise BadAnswer("head-too-long")
            data += self._more()
        head = data[:end].lower()
        if not head.startswith(b"http/1.") or not head[9:12].isdigit():
            raise BadAnswer("not-http")
        status, at = int(head[9:12]), head.find(b"\r\ncontent-length:")
        keep = b"\r\nconnection: close" not in head
        body = data[end + 4 :]
        if at >= 0:
            value = head[at + 17 :].split(b"\r\n", 1)[0].strip()
            if not value.isdigit():
                raise BadAnswer("bad-length")
            left = int(value) - len(body)
            while left > 0:
                left -= len(self._more())
            if left < 0:
                raise BadAnswer("too-many-bytes")
            return status, int(value), first_byte_s, keep
        if status in (204, 304):
            return status, 0, first_byte_s, keep
        if b"\r\ntransfer-encoding: chunked" in head:
            return status, self._read_chunked(body), first_byte_s, keep
        raise BadAnswer("no-length")

    def _read_chunked(self, data: bytes) -> int:
        total = 0
        while True:
            while (end := data.find(b"\r\n")) < 0:
                data += self._more()
            try:
                size = int(data[:end].split(b";")[0], 16)
            except ValueError as error:
                raise BadAnswer("bad-chunk") from error
            data = data[end + 2 :]
            while len(data) < size + 2:
                data += self._more()
            data = data[size + 2 :]
            if not size:
                return total
            total += size


def _kind(problem: Exception) -> str:
    """Short, the same for the same cause, so that errors can be counted."""
    if isinstance(problem, BadAnswer):
        return str(problem)
    if isinstance(problem, TimeoutError):
        return "connect-timeout"
    return {ConnectionRefusedError: "refused", ConnectionResetError: "reset", BrokenPipeError: "reset"}.get(
        type(problem), f"{type(problem).__name__} {problem.errno if isinstance(problem, OSError) else ''}".strip()
    )
