"""What the wire asks of the kernel so as to be prompt: a timer, a scheduling class, awake cores, stamped sockets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct

from testbed.links.delayline import NS_PER_S

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_TIMERSLACK = 29
CLOCK_MONOTONIC, TFD_TIMER_ABSTIME = 1, 1
SCHED_RESET_ON_FORK = 0x40000000
FIFO_PRIORITY = 10
MCL_CURRENT = 1
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_TIMESTAMPNS, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 35, 32, 33
SOCKET_BUFFER_BYTES = 4 << 20
"""A socket buffer is a queue that nobody sees: 32 MB turned overload into 350 ms of delay instead of loss."""
M_TRIM_THRESHOLD = -1
KEPT_BYTES = 1 << 30
CPU_LATENCY = "/dev/cpu_dma_latency"


class Timer:
    """A timerfd; `epoll(timeout)` has millisecond steps and `select` 50 us of slack."""

    def __init__(self) -> None:
        self.fd = libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._spec = (ctypes.c_int64 * 4)()
        self._reference = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        self._spec[2], self._spec[3] = divmod(at_ns, NS_PER_S)
        libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, self._reference, None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)


class AwakeCores:
    """Makes idle cores poll instead of sleep, for as long as asked; the kernel ends it with this process.

    It costs the host's power, not the lab's CPU time: only an idle core polls, and it accounts as idle.
    """

    def __init__(self) -> None:
        self.state = "sleep"
        """`poll`, `sleep`, or `sleep (<why polling was refused>)`."""
        self._fd: int | None = None

    def ask(self, awake: bool) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd, self.state = None, "sleep"
        if awake:
            try:
                self._fd = os.open(CPU_LATENCY, os.O_WRONLY | os.O_CLOEXEC)
                os.write(self._fd, struct.pack("i", 0))
                self.state = "poll"
            except OSError as error:  # no such device in a container: short delays are less exact then
                self.state = f"sleep ({CPU_LATENCY}: {error.strerror})"


def open_device(name: str) -> socket.socket:
    """A packet socket on `name` of the middle namespace, with offload headers and arrival stamps."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    for forced, limited in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except PermissionError:  # root of a user namespace only: up to net.core.rmem_max and wmem_max
            sock.setsockopt(socket.SOL_SOCKET, limited, SOCKET_BUFFER_BYTES)
    sock.bind((name, 3))  # frames arrive from here on (Python takes the protocol in host order)
    sock.setblocking(False)
    return sock


def make_prompt() -> str:
    """Asks the kernel to wake this process without delay; returns what it granted: `fifo`, `nice` or `normal`.

    Memory that was used once is kept: super-frames come and go at the heap's top, and glibc gave it back to the kernel
    and faulted it in again, five faults a frame, which took 40 % of one TCP flow.
    """
    with contextlib.suppress(AttributeError):  # a C library without it
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    libc.mlockall(MCL_CURRENT)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | SCHED_RESET_ON_FORK, os.sched_param(FIFO_PRIORITY))
        return "fifo"
    with contextlib.suppress(OSError):  # containers and RT_GROUP_SCHED cgroups refuse
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "nice"
    return "normal"
