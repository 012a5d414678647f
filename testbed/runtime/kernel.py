"""System calls that Python 3.11 lacks: namespaces, mounts, memory for machine code.

Thin, and light to import (a keeper starts with it).
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 8, 24, 38, 47
PR_CAP_AMBIENT_RAISE = 2
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x8000, 1, 4
PROT_READ, PROT_WRITE, PROT_EXEC, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 1, 2, 4, 1, 2, 32
OWN_NUMBERS = {"open_tree": 428, "move_mount": 429}
"""Calls that libc has no function for before 2.36; these numbers are the same on every processor."""
# fmt: off
CAPABILITIES = [
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
]
# fmt: on

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), f"setns({fd}, {kind:#x})")


def mount(source: str, target: str, filesystem: str = "", flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), filesystem.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {filesystem or 'bind'} on {target}")


def call(name: str, arguments: Sequence[int]) -> int:
    """The result, or minus the errno; strings and structures are given by their addresses."""
    numbers = [ctypes.c_long(argument) for argument in arguments]
    known = OWN_NUMBERS.get(name)
    result = getattr(_libc, name)(*numbers) if known is None else _libc.syscall(ctypes.c_long(known), *numbers)
    return result if result >= 0 else -ctypes.get_errno()


def open_tree(path: str) -> int:
    """A descriptor of a copy of what is mounted at `path` and below, to be put elsewhere by `move_mount`."""
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    fd = _libc.syscall(ctypes.c_long(OWN_NUMBERS["open_tree"]), ctypes.c_long(AT_FDCWD), path.encode(), flags)
    if fd < 0:
        _check(fd, f"open_tree {path}")
    return fd


def memory(size: int) -> int:
    """Address of new memory that a forked child shares."""
    return _map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)


def function(code: bytes) -> Callable[[int, int], int] | None:
    """Machine code as a function of two numbers; None where the machine allows no new executable memory."""
    try:
        fd = os.memfd_create("code")
    except OSError:
        return None
    try:
        os.write(fd, code)
        address = _map(len(code), PROT_READ | PROT_EXEC, MAP_PRIVATE, fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long)(address)


def _map(size: int, access: int, flags: int, fd: int) -> int:
    address = _libc.mmap(None, ctypes.c_size_t(size), access, flags, fd, ctypes.c_long(0))
    _check(address == ctypes.c_void_p(-1).value, f"mmap of {size} bytes")
    return address


def prctl(option: int, a: int = 0, b: int = 0) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(a), ctypes.c_ulong(b), 0, 0), f"prctl({option}, {a}, {b})")


def capability_bits(names: list[str]) -> list[int]:
    """Numbers of capabilities named as `net_admin`. Raises ValueError naming the unknown one."""
    for name in names:
        if name not in CAPABILITIES:
            raise ValueError(
                f"no capability is called {name!r}; names are as in capabilities(7), lower case, without CAP_"
            )
    return [CAPABILITIES.index(name) for name in names]
