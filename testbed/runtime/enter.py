"""Run a function inside a network namespace: the one way in for links, capture, load and checks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from testbed.errors import MachineError
from testbed.runtime import kernel

T = TypeVar("T")


def in_netns(where: str | Path | int, function: Callable[[], T]) -> T:
    """What `function` returns, called in a thread of its own that sits in the namespace (a path or a descriptor).

    Sockets, TAPs and child processes that it makes belong there for good; the caller's threads stay where they are.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            fd = where if isinstance(where, int) else os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            try:
                kernel.setns(fd, kernel.NEWNET)
            except OSError as error:
                raise MachineError(
                    f"network namespace {where}: cannot enter ({error}); "
                    "run as root, or in the user namespace of the lab"
                ) from error
            finally:
                if fd != where:
                    os.close(fd)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=f"netns {where}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def move_to(where: str | Path) -> None:
    """This thread goes into the network namespace for good: for a process that is about to become another program."""
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(fd, kernel.NEWNET)
    except OSError as error:
        raise MachineError(
            f"network namespace {where}: cannot enter ({error}); run as root, or in the user namespace of the lab"
        ) from error
    finally:
        os.close(fd)


def become_root() -> None:
    """An ordinary user's process becomes uid 0 of a user namespace of its own. Raises MachineError with the mend."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kernel.NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise MachineError(
            f"this process may not make a user namespace ({error}); run as root, or allow it: "
            "sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0; call before threads start"
        ) from error


def single_uid() -> bool:
    """Whether only one user id exists here (a user namespace of `become_root`),
    so that programs cannot have their own.
    """
    with open("/proc/self/uid_map") as file:
        return sum(int(line.split()[2]) for line in file) < 2
