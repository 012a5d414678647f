"""The few calls of an engine: here against a small one behind a real socket, which removes as slowly as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from testbed.runtime import dockersocket

LABELS = {"meshbed.lab": "x"}


class Small(ThreadingMixIn, UnixStreamServer):
    """An engine whose containers are being removed already, by somebody who is gone, until `gone_at`."""

    daemon_threads = True
    gone_at = 0.0


class Answers(BaseHTTPRequestHandler):
    server: Small
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        there = time.monotonic() < self.server.gone_at
        self._say(200, json.dumps([{"Id": "c1"}] if there else []).encode())

    def do_DELETE(self) -> None:
        there = time.monotonic() < self.server.gone_at
        self._say(409 if there else 404, b'{"message": "removal of container c1 is already in progress"}')

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def busy_engine(folder: Path, *, busy_s: float) -> Iterator[str]:
    path = str(folder / "engine.sock")
    with Small(path, Answers) as server:
        server.gone_at = time.monotonic() + busy_s
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def test_a_sweep_waits_for_a_removal_that_somebody_else_asked_for(tmp_path: Path) -> None:
    """As a keeper that was killed while it swept: the engine goes on, and says 409 to whoever asks again."""
    with busy_engine(tmp_path, busy_s=0.4) as path:
        assert dockersocket.sweep(path, LABELS) == ["c1"]


def test_a_sweep_ends_though_containers_do_not(tmp_path: Path) -> None:
    """And says how many are left."""
    with busy_engine(tmp_path, busy_s=60) as path, pytest.raises(OSError, match=r"after 0\.1 s 1 containers"):
        dockersocket.sweep(path, LABELS, within_s=0.1)
