"""System calls that Python 3.11 lacks: namespaces, mounts, capabilities.

Thin, and light to import (a keeper starts with it).
"""

from __future__ import annotations

import ctypes
import os

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 24, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
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


def limit_capabilities(bits: list[int]) -> None:
    """Drops every other capability from the bounding set, for good."""
    for bit in range(len(CAPABILITIES)):
        if bit not in bits:
            prctl(PR_CAPBSET_DROP, bit)


def keep_capabilities(bits: list[int]) -> None:
    """Makes exactly these permitted, effective, inheritable and ambient,
    so that they outlive exec by an ordinary user.
    """
    mask = sum(1 << bit for bit in bits)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3: two words a set
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, low, high, high, high)), "capset")
    for bit in bits:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit)
