"""Test doubles that are real: programs of ours as plain processes on loopback, and a lab of one sandbox."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.seams import Sandbox, Spawn

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass
class App:
    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(15)


@contextlib.contextmanager
def app(module: str, *arguments: str) -> Iterator[App]:
    """The program listening on a free port of loopback, its ready line read."""
    command = [sys.executable, "-m", module, "--port", "0", "--address", "127.0.0.1", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV, cwd=ROOT)
    assert process.stdout is not None
    try:
        listening = process.stdout.readline().split()
        assert listening[0] == "listening", listening
        assert process.stdout.readline() == "ready\n"
        yield App(process, int(listening[1]))
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def talk(port: int, sent: bytes, *, shut: bool = True) -> bytes:
    """Everything that comes back for `sent` until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        connection.sendall(sent)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


class LocalProcess:
    cgroup = None

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


@dataclass
class LocalLab:
    """A `RunningLab` without namespaces: what is spawned is a plain process of this user."""

    folder: Path
    name: str = "local"
    sandboxes: Mapping[str, Sandbox] = field(
        default_factory=lambda: {"client": Sandbox(name="client", kind="workload", netns="", address="127.0.0.1")}
    )
    spawned: list[Spawn] = field(default_factory=list)
    processes: list[LocalProcess] = field(default_factory=list)

    def spawn(self, spawns: Sequence[Spawn]) -> list[LocalProcess]:
        self.spawned += spawns
        started = [
            LocalProcess(s.name, subprocess.Popen(s.argv, env={**os.environ, **s.env}, stderr=subprocess.DEVNULL))
            for s in spawns
        ]
        self.processes += started
        return started

    def open_netns(self, sandbox: str) -> int:
        raise AssertionError(f"{sandbox}: nothing of a lab on loopback enters a namespace")

    def down(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.signal(9)
                process.wait(5)
