"""From a fork of the keeper to a program alone in its world: the steps between fork and exec, in the order that works.

Cgroup first (what is allocated later is charged to it), then the network namespace, then a mount namespace in which
only its
own folders of the lab are left, /tmp is its own and /proc shows itself alone, then capabilities and user id, which
cannot be taken back. All of it happens in the child, so that the keeper forks the next one meanwhile.

Two locks guard one program's keys from another: the hiding, and folders of mode 0700 with an owner each. A program that
keeps
`sys_admin` (ztunnel, which enters the namespaces of workloads) can unmount what hides; the second lock stays, for it
keeps
neither `dac_override` nor `sys_ptrace`, and the PID namespace shows it no process of another. That is as much as a node
proxy of this kind allows: who needs `sys_admin` holds the node (its blast radius says so).
"""

from __future__ import annotations

import fcntl
import os
import stat

from testbed.runtime import kernel

TMP = "/tmp"


def start(job: dict, netns_fd: int, received: list[int], pid_namespace_fd: int) -> tuple[int, int]:
    """(pid in the keeper's namespace, pipe).

    The pipe carries the host's pid, then an error's text if exec did not happen.
    """
    read_end, write_end = os.pipe()
    pid = -1
    if job["pid_namespace"]:
        kernel.unshare(kernel.NEWPID)  # for children only; taken back below, or the next unshare would be refused
    try:
        pid = os.fork()
    finally:
        if job["pid_namespace"] and pid != 0:
            kernel.setns(pid_namespace_fd, kernel.NEWPID)
    if pid == 0:
        try:
            _become(job, netns_fd, received, write_end)
        except BaseException as error:
            os.write(write_end, f"! {error}".encode())
        finally:
            os._exit(127)
    os.close(write_end)
    return pid, read_end


def _become(job: dict, netns_fd: int, received: list[int], report: int) -> None:
    os.setsid()
    host_pid = os.readlink("/proc/self")  # this procfs is still the host's
    if job["cgroup"]:
        fd = os.open(job["cgroup"], os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
    kernel.setns(netns_fd, kernel.NEWNET)
    prepare(job["folder"], job["uid"], job["single_uid"])
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    kernel.unshare(kernel.NEWNS)
    hide(job["hide"], job["show"])
    null = os.open("/dev/null", os.O_RDONLY)
    own_proc(job["pid_namespace"], required=job["own_proc"])
    os.chdir(job["folder"])
    drop(job)
    received[:] = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max([2, *job["fds"]]) + 1) for fd in received]
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, max([2, *job["fds"], *received]) + 1)
    for fd, number in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, number)
    for fd, number in zip(received, job["fds"], strict=True):
        os.dup2(fd, number)
    os.write(report, host_pid.encode())
    execute(job["programs"], job["argv"], job["env"])


def execute(programs: list[str], argv: list[str], env: dict[str, str]) -> None:
    """The first of `programs` that is there for this user. Raises the last OSError."""
    error: OSError | None = None
    for program in programs:
        try:
            os.execve(program, argv, env)
        except OSError as refused:
            error = refused
    raise error or FileNotFoundError(2, f"No such file in PATH: {argv[0]}")


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


def own_proc(pid_namespace: bool, *, required: bool) -> None:
    """A /proc that shows this PID namespace; where it is the lab's shared one,
    other users' processes stay invisible.
    """
    try:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("proc", "/proc", "proc", flags, "" if pid_namespace else "hidepid=invisible")
    except PermissionError:
        if required:
            raise  # in a user namespace under a masked /proc the kernel refuses; there we go as far as we can


def hide(hidden: list[str], shown: list[str]) -> None:
    """Covers each `hidden` folder by an empty one (/tmp by one to write to) and puts the `shown` back at their own
    paths.
    """
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in shown]
    covers = [path for path in hidden if not any(_below(path, other) for other in hidden if other != path)]
    for path in covers:
        options = "mode=1777,size=64m" if path == TMP else "mode=755,size=1m"
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for path, fd in kept:
        if any(path == cover or _below(path, cover) for cover in covers):
            os.makedirs(path, 0o755, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{fd}", path, flags=kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def drop(job: dict) -> None:
    bits = kernel.capability_bits(job["capabilities"])
    if not job["single_uid"]:
        if (
            job["uid"] == 0
        ):  # any other user cannot gain one by exec once no_new_privs is set; this saves 40 system calls
            kernel.limit_capabilities(bits)
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    kernel.keep_capabilities(bits)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
