"""A lab's side of its keeper: the connection, and the handles of programs started through it."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.errors import PeerError
from testbed.runtime.wireframe import Reader, pack


class Connection:
    """Requests out, answers in; news of ended programs is kept until someone asks. Safe to use from several threads."""

    def __init__(self, sock: socket.socket, lab: str) -> None:
        self.lab = lab
        self.codes: dict[str, int] = {}
        """Exit codes by name of what has ended."""
        self.processes: dict[str, list[int | None]] = {}
        self.keeper_pid = 0
        self.closed = False
        self._socket = sock
        self._reader = Reader()
        self._answers: list[dict] = []
        self._lock = threading.RLock()

    def send(self, message: dict, fds: Sequence[int] = ()) -> None:
        data = pack(message)
        try:
            with self._lock:
                sent = socket.send_fds(self._socket, [data], list(fds)) if fds else 0
                self._socket.sendall(data[sent:])
        except OSError as error:
            raise self._gone() from error

    def ask(self, message: dict, *, timeout_s: float = 30.0) -> dict:
        with self._lock:
            self.send(message)
            return self.answer(timeout_s=timeout_s)

    def answer(self, *, timeout_s: float = 30.0) -> dict:
        """The next answer. Raises PeerError when the keeper is gone or silent."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not self._answers:
                self._read(max(0.0, deadline - time.monotonic()))
                if self.closed:
                    raise self._gone()
                if time.monotonic() >= deadline and not self._answers:
                    raise PeerError(f"lab {self.lab}: its keeper did not answer within {timeout_s:g} s")
            return self._answers.pop(0)

    def news(self, timeout_s: float = 0.0) -> None:
        """Takes in what has arrived, waiting up to `timeout_s` for something."""
        with self._lock:
            self._read(timeout_s)

    def held(self) -> threading.RLock:
        """For a `with`: requests and their answers of one thread, with none of another's between them."""
        return self._lock

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def wait_closed(self, timeout_s: float) -> bool:
        """Whether the keeper's end was closed in time."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not self.closed and (left := deadline - time.monotonic()) > 0:
                self._read(left)
            return self.closed

    def _read(self, timeout_s: float) -> None:
        if self.closed:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return
        try:
            data = self._socket.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.closed = True
        for message in self._reader.feed(data):
            if message["op"] == "ended":
                self.codes[message["name"]] = message["code"]
            elif message["op"] == "hello":
                self.keeper_pid = message["pid"]
                self.processes = message["processes"]
                self.codes |= {name: code for name, (_, code) in self.processes.items() if code is not None}
            else:
                self._answers.append(message)

    def _gone(self) -> PeerError:
        return PeerError(f"lab {self.lab}: its keeper is gone, and with it the lab; run `lab.gc`, then `lab.up` again")


class LabProcess:
    """A program in the lab (`seams.Process`). Its log is `log`; its exit code stays known after it has ended."""

    def __init__(self, connection: Connection, *, name: str, pid: int, cgroup: str | None, log: Path | None) -> None:
        self.name = name
        self.pid = pid
        self.cgroup = cgroup
        self.log = log
        self._connection = connection

    def __repr__(self) -> str:
        code = self._connection.codes.get(self.name)
        return f"<{self.name} pid {self.pid} {'running' if code is None else f'ended {code}'}>"

    def poll(self) -> int | None:
        """Exit code (minus the signal's number if one ended it), None while it runs. The lab's end ends it with -9."""
        self._connection.news()
        return self._code()

    def signal(self, number: int) -> None:
        """A program that does not handle a signal ends by it, though as PID 1 of its namespace the kernel would
        shield it.
        """
        if self.poll() is None:
            self._connection.ask({"op": "signal", "name": self.name, "number": int(number)})

    def wait(self, timeout_s: float) -> int | None:
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and (left := deadline - time.monotonic()) > 0:
            if not self._ended(min(left, 0.5)):
                continue
            self._connection.news(min(left, 0.5))  # the keeper tells its code in a moment
        return self._code()

    def _ended(self, timeout_s: float) -> bool:
        """Waits without the connection, so that whoever starts another program meanwhile need not wait."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return True
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(pidfd)

    def _code(self) -> int | None:
        code = self._connection.codes.get(self.name)
        return -9 if code is None and self._connection.closed and not os.path.exists(f"/proc/{self.pid}") else code
