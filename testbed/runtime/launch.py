"""From a job to a program alone in its world: the steps between a child's birth and exec, in the order that works.

Cgroup first (what is allocated later is charged to it), then the network namespace, then a mount namespace in which
only its own folders of the lab are left, /tmp is its own and /proc shows itself alone, then capabilities and user id,
which cannot be taken back.

Two locks guard one program's keys from another: the hiding, and folders of mode 0700 with an owner each. A program that
keeps `sys_admin` (ztunnel, which enters the namespaces of workloads) can unmount what hides; the second lock stays, for
it keeps neither `dac_override` nor `sys_ptrace`, and the PID namespace shows it no process of another. That is as much
as a node proxy of this kind allows: who needs `sys_admin` holds the node (its blast radius says so).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from testbed.runtime import kernel
from testbed.runtime.child import Launcher, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from testbed.runtime.child import Step

TMP = "/tmp"
HOST_PID = step("readlinkat", kernel.AT_FDCWD, b"/proc/self", bytes(15), 15)


def start(launcher: Launcher, job: dict, netns_fd: int, received: list[int]) -> tuple[int, int]:
    """(pid in the keeper's namespace, the host's). Raises OSError when the program could not begin.

    `received` are the descriptors that it gets, at the numbers that the job names.
    """
    covered = covers(job["hide"])
    shown = [path for path in job["show"] if any(_below(path, cover) for cover in covered)]
    opened: list[int] = []
    try:
        trees = {path: _opened(opened, kernel.open_tree(path)) for path in shown}
        above = max([2, *job["fds"]]) + 1
        moved = [_opened(opened, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)) for fd in received]
        steps = [
            HOST_PID,  # before it has a /proc of its own
            step("setsid"),
            *_join(job["cgroup"]),
            step("setns", netns_fd, kernel.NEWNET),
            *_outputs(job["log"]),
            *cover(covered, trees),
            own_proc(job["pid_namespace"], required=job["own_proc"]),
            step("chdir", os.fsencode(job["folder"])),
            *drop(job["capabilities"], job["uid"], single_uid=job["single_uid"]),
            *(step("dup3", fd, number, 0) for fd, number in zip(moved, job["fds"], strict=True)),
            *execute(job["programs"], job["argv"], job["env"]),
        ]
        pid = launcher.start(steps, kernel.NEWNS | (kernel.NEWPID if job["pid_namespace"] else 0))
        return pid, int(launcher.text(0, 2))
    finally:
        for fd in opened:
            os.close(fd)


def _opened(opened: list[int], fd: int) -> int:
    opened.append(fd)
    return fd


def _join(cgroup: str) -> Iterable[Step]:
    """As descriptor 0, which is the lowest free one when it has been closed, so that its number is known before."""
    if cgroup:
        yield step("close", 0)
        yield step("openat", kernel.AT_FDCWD, os.fsencode(cgroup), os.O_WRONLY)
        yield step("write", 0, b"0", 1)


def _outputs(log: str) -> Iterable[Step]:
    yield step("close", 0)
    yield step("openat", kernel.AT_FDCWD, b"/dev/null", os.O_RDONLY)
    yield step("close", 1)
    yield step("openat", kernel.AT_FDCWD, os.fsencode(log), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    yield step("dup3", 1, 2, 0)


def execute(programs: list[str], argv: list[str], env: dict[str, str]) -> Iterable[Step]:
    """The first of `programs` that is there for this user. Raises FileNotFoundError when there is none to try."""
    if not programs:
        raise FileNotFoundError(2, f"No such file in PATH: {argv[0]}")
    words = tuple(os.fsencode(word) for word in argv)
    settings = tuple(os.fsencode(f"{name}={value}") for name, value in env.items())
    return [step("execve", os.fsencode(program), words, settings, optional=True) for program in programs]


def prepare(folder: str, uid: int, single_uid: bool) -> None:
    """The private folder, with all that was put into it, becomes the process's own; nobody else may enter."""
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o700)
    if not single_uid:
        _give(folder, uid)


def _give(path: str, uid: int) -> None:
    os.lchown(path, uid, uid)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            _give(f"{path}/{name}", uid)


def own_proc(pid_namespace: bool, *, required: bool) -> Step:
    """A /proc that shows this PID namespace; where it is the lab's shared one,
    other users' processes stay invisible.

    Where it is not `required`, in a user namespace under a masked /proc, the kernel may refuse; there we go as far as
    we can.
    """
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    options = b"" if pid_namespace else b"hidepid=invisible"
    return step("mount", b"proc", b"/proc", b"proc", flags, options, optional=not required)


def hide(hidden: list[str], shown: list[str]) -> None:
    """In this process: covers each `hidden` folder, and puts those `shown` back at their own paths."""
    covered = covers(hidden)
    trees = {path: kernel.open_tree(path) for path in shown if any(_below(path, cover) for cover in covered)}
    Launcher().make(list(cover(covered, trees)))
    for fd in trees.values():
        os.close(fd)


def covers(hidden: list[str]) -> list[str]:
    """Those of the folders that are not in another of them."""
    return [path for path in hidden if not any(_below(path, other) for other in hidden)]


def cover(covered: list[str], trees: Mapping[str, int]) -> Iterable[Step]:
    """Covers each folder by an empty one (/tmp by one to write to) and attaches the `trees` at their own paths."""
    for path in covered:
        options = b"mode=1777,size=64m" if path == TMP else b"mode=755,size=1m"
        yield step("mount", b"tmpfs", os.fsencode(path), b"tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    made: set[str] = set()
    for path, fd in trees.items():
        top = next(folder for folder in covered if _below(path, folder))
        ends = [at for at, letter in enumerate(path) if letter == "/" and at > len(top)] + [len(path)]
        for folder in [path[:end] for end in ends if path[:end] not in made]:
            made.add(folder)
            yield step("mkdir", os.fsencode(folder), 0o755, optional=True)  # it is there below an attached tree
        yield step("move_mount", fd, b"", kernel.AT_FDCWD, os.fsencode(path), kernel.MOVE_MOUNT_F_EMPTY_PATH)


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def drop(capabilities: list[str], uid: int, *, single_uid: bool) -> Iterable[Step]:
    """Exactly these capabilities, ambient too, so that they outlive exec by an ordinary user, and no way to gain one.

    Raises ValueError naming an unknown one.
    """
    bits = kernel.capability_bits(capabilities)
    low, high = (sum(1 << bit for bit in bits) >> shift & 0xFFFFFFFF for shift in (0, 32))
    version = struct.pack("=2I", 0x20080522, 0)  # 3: two words a set
    steps = []
    if not single_uid:
        if uid == 0:  # any other user cannot gain one by exec once no_new_privs is set; this saves 40 system calls
            rest = (bit for bit in range(len(kernel.CAPABILITIES)) if bit not in bits)
            steps += [step("prctl", kernel.PR_CAPBSET_DROP, bit) for bit in rest]
        steps += [
            step("prctl", kernel.PR_SET_KEEPCAPS, 1),
            step("setgroups", 0, 0),
            step("setresgid", uid, uid, uid),
            step("setresuid", uid, uid, uid),
        ]
    steps.append(step("capset", version, struct.pack("=6I", low, low, low, high, high, high)))
    steps += [step("prctl", kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_RAISE, bit) for bit in bits]
    steps.append(step("prctl", kernel.PR_SET_NO_NEW_PRIVS, 1))
    return steps
