"""Throw-away namespaces that look enough like a lab to join links in: for calibration, probes, the bench and tests."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from testbed.errors import MachineError, UsageError
from testbed.links.devices import CLONE_NEWNET, in_netns, libc, netlink_socket, transact, up
from testbed.seams import Process, Sandbox, Spawn


def open_new_netns() -> int:
    """A descriptor of a fresh network namespace, which lives as long as the descriptor. Raises MachineError."""
    opened: list[int] = []
    failure: list[str] = []

    def body() -> None:
        if libc.unshare(CLONE_NEWNET):
            failure.append(os.strerror(ctypes.get_errno()))
        else:
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise MachineError(f"a new network namespace: {failure[0]}; run as root")
    return opened[0]


class ScratchLab:
    """A `RunningLab` of empty nodes; a context manager. It starts no programs."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.name = "scratch"
        self._folder = tempfile.TemporaryDirectory(prefix="meshbed-links-")
        self.folder = Path(self._folder.name)
        self._netns = {node: open_new_netns() for node in nodes}
        for fd in self._netns.values():
            in_netns(fd, _loopback_up)
        self.sandboxes: Mapping[str, Sandbox] = {
            node: Sandbox(name=node, kind="node", netns=f"/proc/{os.getpid()}/fd/{fd}", address="")
            for node, fd in self._netns.items()
        }

    def __enter__(self) -> ScratchLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def spawn(self, spawns: Sequence[Spawn]) -> list[Process]:
        raise UsageError("a scratch lab is for links and starts no programs; bring up a lab of a runtime")

    def open_netns(self, sandbox: str) -> int:
        return os.dup(self._netns[sandbox])

    def drop(self, node: str) -> None:
        """Lets go of one node's namespace, as when a container dies."""
        os.close(self._netns.pop(node))

    def down(self) -> None:
        for node in list(self._netns):
            self.drop(node)
        self._folder.cleanup()


def _loopback_up() -> None:
    with netlink_socket() as sock:
        transact(sock, [up(1)], "loopback")
