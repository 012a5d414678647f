"""One running container as this process knows it: its first process, watched by a descriptor, and its exit code."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.runtime import dockerplan, dockersocket
from testbed.runtime.keeper import handles

GONE = -9
"""Code of a program whose container was removed or begun again: what ended it was not its own doing."""
SETTLES_WITHIN_S = 10.0
"""The engine notes an end some milliseconds after it."""


@dataclass(slots=True, kw_only=True)
class Watched:
    """A container and the process that it was when it was first looked at; a restart makes another process."""

    container: str
    """Id."""
    pid: int
    """As the host sees it; 0 when it had ended by then."""
    pidfd: int
    socket: str

    @classmethod
    def look(cls, path: str, container: str) -> Watched:
        """Raises OSError when the engine does not answer."""
        found = dockersocket.look(path, container)
        pid = int(found["State"]["Pid"]) if found else 0
        try:
            pidfd = os.pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            pidfd = -1
        return cls(container=container, pid=pid, pidfd=pidfd, socket=path)

    def ended(self, timeout_s: float = 0.0) -> bool:
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def code(self) -> tuple[int, str]:
        """Of a program that has ended: (exit code, what became of the container where that was not its own end)."""
        deadline = time.monotonic() + SETTLES_WITHIN_S
        while True:
            try:
                found = dockersocket.look(self.socket, self.container)
            except OSError as error:
                return GONE, f"its engine does not answer ({error})"
            if found is None:
                return GONE, "its container was removed"
            state = found["State"]
            if state["Running"] and state["Pid"] != self.pid:
                return GONE, f"its container was begun again (pid {self.pid}, now {state['Pid']})"
            if not state["Running"]:
                return dockerplan.exit_code(int(state["ExitCode"])), "its container ended"
            if time.monotonic() > deadline:
                return GONE, "its process ended, but the engine says that it runs"
            time.sleep(0.002)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class ContainerProcess:
    """A program in a container of its own (`seams.Process`)."""

    def __init__(self, watched: Watched, *, name: str, log: Path, printed_by_engine: bool = False) -> None:
        self.name = name
        self.pid = watched.pid
        self.container = watched.container
        self._log = log
        self._printed_by_engine = printed_by_engine
        self.cgroup = _cgroup(watched.pid)
        self._watched = watched
        self._code: int | None = None
        self._shielded = 0

    def __repr__(self) -> str:
        code = self.poll()
        return f"<{self.name} container {self.container[:12]} {'running' if code is None else f'ended {code}'}>"

    @property
    def log(self) -> Path | None:
        """What it prints. Of an image of the user's own the engine holds it; then the file is as of now."""
        if self._printed_by_engine:
            with suppress(OSError):
                self._log.write_bytes(dockerplan.printed(dockersocket.logs(self._watched.socket, self.container)))
        return self._log

    def poll(self) -> int | None:
        """Exit code (minus the signal's number if one ended it), None while it runs. A restart ends it too."""
        return self.wait(0.0)

    def signal(self, number: int) -> None:
        """A program that does not handle a signal ends by it, though as PID 1 of its container the kernel would
        shield it."""
        if self.poll() is not None:
            return
        if number not in (9, 17, 18, 19, 20, 23, 28) and not handles(self.pid, number):
            self._shielded = number
            number = signal.SIGKILL
        try:
            signal.pidfd_send_signal(self._watched.pidfd, number)
        except ProcessLookupError:
            pass  # it ended meanwhile

    def wait(self, timeout_s: float) -> int | None:
        if self._code is None and self._watched.ended(timeout_s):
            code, _ = self._watched.code()
            self._code = -self._shielded if self._shielded and code == -signal.SIGKILL else code
            self._watched.close()
        return self._code


def _cgroup(pid: int) -> str | None:
    try:
        return dockerplan.cgroup_of(Path(f"/proc/{pid}/cgroup").read_text()) or None
    except OSError:
        return None
