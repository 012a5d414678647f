"""Ways in: into a network namespace for one function, into a user namespace for good, for who is not root.

An ordinary user's process becomes root of a user namespace of its own (`become_root`), in which it may make a lab; a
later process of the same user enters that of a lab that is up (`join`). Both must happen before the process has
threads: numpy and pyarrow start some when they are imported.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from testbed.errors import MachineError
from testbed.runtime import kernel

T = TypeVar("T")
LEAST_IDS = 16384
"""A smaller range of subordinate ids is not used: applications, proxies and generators have ids of some thousands."""
SWITCHES = {
    "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
    "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
}
"""Under /proc/sys: the value that forbids user namespaces to ordinary users, and the mend."""


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
    """An ordinary user's process becomes uid 0 of a user namespace of its own; nothing for who has uid 0 already.

    With a range in /etc/subuid and the programs newuidmap and newgidmap it has other ids to give to programs, too;
    else this one only. Raises MachineError with the mend.
    """
    if os.geteuid() == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    helpers = _map_commands(os.getpid(), uid, gid)
    ready, go = os.pipe()
    child = os.fork() if helpers else 0  # before unshare: the helpers must stay outside
    if helpers and child == 0:
        _run_helpers(helpers, ready, go)
    try:
        kernel.unshare(kernel.NEWUSER)
        os.write(go, b"!")
        mapped = child != 0 and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = 0
        if not mapped:
            _map_alone(uid, gid)
    except OSError as error:
        raise MachineError(f"this process may not make a user namespace ({error.strerror}); {mend(error)}") from error
    finally:
        os.close(ready)
        os.close(go)
        if child:
            os.waitpid(child, 0)


def join(pid: int) -> None:
    """Enters the user namespace of a process, as uid 0 of it. Nothing when this process is in it, or is real root."""
    try:
        theirs = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return  # of another user: whatever needs it says so
    except OSError as error:
        raise MachineError(f"process {pid}: its user namespace is gone ({error.strerror})") from error
    try:
        if os.fstat(theirs).st_ino != os.stat("/proc/self/ns/user").st_ino:
            kernel.setns(theirs, kernel.NEWUSER)
    except OSError as error:
        raise MachineError(f"process {pid}: its user namespace cannot be entered ({error.strerror})") from error
    finally:
        os.close(theirs)


def mend(error: OSError) -> str:
    """What lets an ordinary user make user namespaces on this machine."""
    if error.errno == errno.EINVAL:
        return "BUG: this process has threads already"
    found = []
    for name, (forbids, cure) in SWITCHES.items():
        try:
            if Path("/proc/sys", name).read_text().strip() == forbids:
                found.append(cure)
        except OSError:
            continue
    if not found and error.errno in (errno.ENOSPC, errno.EUSERS):
        found.append("a limit of an enclosing container: user.max_user_namespaces there, or fewer levels")
    unknown = "sysctl user.max_user_namespaces=10000; in a container, its seccomp profile"
    return f"run as root, or allow it: {' and '.join(found) or unknown}"


def user_id() -> int:
    """Whose process this is, the same before and after `become_root`."""
    if os.geteuid() != 0:
        return os.geteuid()
    return next((outside for inside, outside, _ in _uid_map() if inside == 0), 0)


def in_user_namespace() -> bool:
    """Whether this process is root only of a user namespace, that of `become_root` or of a container."""
    return os.geteuid() == 0 and _uid_map() != [(0, 0, 2**32 - 1)]


def single_uid() -> bool:
    """Whether only one user id exists here, so that programs cannot have their own."""
    return os.geteuid() != 0 or sum(count for _, _, count in _uid_map()) < LEAST_IDS


def owner_for(uid: int) -> int:
    """Whose a file becomes that a program with user id `uid` will read: its, or ours where ids are not to give."""
    return os.geteuid() if single_uid() else uid


def _uid_map() -> list[tuple[int, int, int]]:
    """(inside, outside, count) rows."""
    with open("/proc/self/uid_map") as file:
        return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in file)]


def subordinate(table: str, names: tuple[str, ...]) -> tuple[int, int] | None:
    """(first, count) of the first range in the text of /etc/subuid or /etc/subgid that is large enough."""
    for line in table.splitlines():
        name, first, count = [*line.split(":"), "", ""][:3]
        if name in names and first.isdigit() and count.isdigit() and int(count) >= LEAST_IDS:
            return int(first), int(count)
    return None


def _map_commands(pid: int, uid: int, gid: int) -> list[list[str]]:
    """Empty where this user has no subordinate ids, or the programs that map them are missing."""
    names = [str(uid)]
    try:
        names.append(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass
    commands = []
    for program, table, mine in (("newgidmap", "/etc/subgid", gid), ("newuidmap", "/etc/subuid", uid)):
        found = shutil.which(program)
        try:
            given = subordinate(Path(table).read_text(), tuple(names))
        except OSError:
            given = None
        if found is None or given is None:
            return []
        first, count = given
        commands.append([found, str(pid), "0", str(mine), "1", "1", str(first), str(count)])
    return commands


def _run_helpers(commands: list[list[str]], ready: int, go: int) -> None:
    """In a child: waits for the parent to have unshared, then maps it. Never returns."""
    code = 1
    try:
        os.close(go)
        if os.read(ready, 1):
            code = max(subprocess.run(command, stderr=subprocess.DEVNULL).returncode for command in commands)
    finally:
        os._exit(code)


def _map_alone(uid: int, gid: int) -> None:
    """Only what is not mapped yet: a helper may have failed halfway."""
    if not Path("/proc/self/gid_map").read_text().strip():
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if not Path("/proc/self/uid_map").read_text().strip():
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
