"""The wire process: stands in the middle of veth pairs and forwards each frame when its delay line says so.

Standard library only. It lives in a network namespace of its own (the middle), which nobody else holds: when it ends,
by whatever signal, the kernel removes the middle's devices and with them the far ends in the nodes, so a dead wire
never looks like a quiet link. One AF_PACKET socket per device; the kernel stamps frames on arrival, so that being
woken late to read costs no accuracy. Being woken late to write does: so it learns how late this machine wakes it,
asks to be woken earlier and spins the rest, within a share of the CPU. Figures behind the constants: a veth's
AF_PACKET reads cost 1.7 us, an idle wake-up 28-47 us, a spin of 100 us covers p90 of the lateness.

Control: a listening SOCK_SEQPACKET Unix socket, one JSON line a message: attach, detach, set, stats, status, middle.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import json
import os
import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from testbed.links.delayline import NS_PER_S, DelayLine, Shape, bytes_on_wire

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29
CLOCK_MONOTONIC, TFD_TIMER_ABSTIME = 1, 1
SCHED_RESET_ON_FORK = 0x40000000
FIFO_PRIORITY = 10
MCL_CURRENT = 1
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_TIMESTAMPNS, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 35, 32, 33
VNET_HEADER_BYTES = 10
READ_BYTES = 65536 + 64
SOCKET_BUFFER_BYTES = 4 << 20
"""A socket buffer is a queue that nobody sees: 32 MB turned overload into 350 ms of delay instead of loss."""
BATCH = 64
LEAD_CAP_NS = 100_000
SPIN_SHARE = 0.2
SPIN_WINDOW_NS = 20_000_000
COALESCE_NS = 500_000
HELD_BYTES_TOTAL = 1 << 30
HELD_BYTES_MOST = 128 << 20
HELD_BYTES_LEAST = 16 << 20
NEWEST_STAMP_NS = 1_000_000
DISCARD_MOST = 10_000
OLDEST_STAMP_NS = 2 * NS_PER_S
"""Stamps are CLOCK_REALTIME; one that claims to be older than this tells of a stepped clock, not of a late read."""
_STAMP = struct.Struct("qq")
_LENGTHS = struct.Struct("HH")


class Direction:
    """Frames read from one device's socket, waiting to be written to the other's."""

    __slots__ = (
        "bias_ns",
        "closed",
        "device",
        "held_bytes",
        "line",
        "overflowed",
        "queue",
        "read",
        "received",
        "sent",
        "source",
        "stale",
        "target",
        "write_errors",
    )

    def __init__(self, source: socket.socket, target: int, device: str, bias_ns: int) -> None:
        self.source = source
        self.read = source.recvmsg
        self.target = target
        self.device = device
        self.bias_ns = bias_ns
        self.line = DelayLine(random.Random())
        self.queue: deque[tuple[int, bytes]] = deque()
        self.held_bytes = 0
        self.received = self.sent = self.overflowed = self.stale = self.write_errors = 0
        self.closed = False

    def set(self, shape: Shape) -> None:
        """The wire's own constant error is taken off the delay."""
        fields = {name: getattr(shape, name) for name in Shape.__slots__}
        fields["delay_ns"] = max(0, shape.delay_ns - self.bias_ns)
        self.line.shape = Shape(**fields)

    def close(self) -> None:
        self.closed = True
        self.queue.clear()
        self.source.close()

    def alive(self) -> bool:
        if self.closed:
            return False
        try:
            socket.if_nametoindex(self.device)
        except OSError:
            return False
        return True

    def counters(self) -> dict[str, int]:
        return {
            "received": self.received,
            "sent": self.sent - self.write_errors,
            "lost": self.line.lost,
            "tail_dropped": self.line.tail_dropped,
            "overflowed": self.overflowed,
            "stale": self.stale,
            "write_errors": self.write_errors,
            "waiting": len(self.queue),
        }


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


class Wire:
    """All links of this process, its loop, and the answers to its control socket."""

    def __init__(self, listener: socket.socket, owner_fd: int | None, bias_ns: int, scheduling: str) -> None:
        self.links: dict[str, tuple[Direction, Direction]] = {}
        self.bias_ns = bias_ns
        self.scheduling = scheduling
        self.lead_ns = 30_000.0
        self.quantum_ns = 0
        self.held_limit = HELD_BYTES_MOST
        self.epoll = select.epoll()
        self.by_fd: dict[int, Direction] = {}
        self.timer = Timer()
        self.handlers: dict[int, Callable[[], None]] = {listener.fileno(): lambda: self._accept(listener)}
        if owner_fd is not None:
            self.handlers[owner_fd] = self._owner_gone
        for fd in (*self.handlers, self.timer.fd):
            self.epoll.register(fd, select.EPOLLIN)

    # ---- control

    def _owner_gone(self) -> None:
        raise SystemExit(0)

    def _accept(self, listener: socket.socket) -> None:
        peer, _ = listener.accept()
        peer.setblocking(False)
        self.handlers[peer.fileno()] = lambda: self._serve(peer)
        self.epoll.register(peer.fileno(), select.EPOLLIN)

    def _serve(self, peer: socket.socket) -> None:
        try:
            text = peer.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text:
            self.epoll.unregister(peer.fileno())
            del self.handlers[peer.fileno()]
            peer.close()
            return
        fds: list[int] = []
        try:
            request = json.loads(text)
            answer = getattr(self, "do_" + request.pop("op"))(fds=fds, **request)
        except Exception as error:  # the asker gets it; the links of others go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            socket.send_fds(peer, [json.dumps(answer).encode() + b"\n"], fds)
        except OSError:
            pass  # the asker has gone, or does not read: its loss
        finally:
            for fd in fds:
                os.close(fd)

    def do_middle(self, *, fds: list[int]) -> dict[str, object]:
        """Hands out the middle namespace, to make devices in; who keeps it open keeps the devices of a dead wire."""
        fds.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        return {"ok": True}

    def do_attach(self, *, fds: list[int], name: str, a: str, b: str, a_to_b: dict, b_to_a: dict) -> dict[str, object]:
        sock_a, sock_b = open_device(a), open_device(b)
        forward = Direction(sock_a, sock_b.fileno(), a, self.bias_ns)
        backward = Direction(sock_b, sock_a.fileno(), b, self.bias_ns)
        self.links[name] = (forward, backward)
        for direction in (forward, backward):
            self.by_fd[direction.source.fileno()] = direction
            self.epoll.register(direction.source.fileno(), select.EPOLLIN)
        return self.do_set(fds=fds, name=name, a_to_b=a_to_b, b_to_a=b_to_a)

    def do_set(self, *, fds: list[int], name: str, a_to_b: dict | None, b_to_a: dict | None) -> dict[str, object]:
        for direction, shape in zip(self.links[name], (a_to_b, b_to_a), strict=True):
            if shape is not None:
                direction.set(Shape(**shape))
        self._budget()
        return {"ok": True}

    def do_detach(self, *, fds: list[int], name: str) -> dict[str, object]:
        for direction in self.links.pop(name):
            fd = direction.source.fileno()
            del self.by_fd[fd]
            self.epoll.unregister(fd)
            direction.close()
        self._budget()
        return {"ok": True}

    def do_stats(self, *, fds: list[int]) -> dict[str, object]:
        links = {name: {"a_to_b": ab.counters(), "b_to_a": ba.counters()} for name, (ab, ba) in self.links.items()}
        return {"ok": True, "links": links}

    def do_status(self, *, fds: list[int]) -> dict[str, object]:
        alive = {name: ab.alive() and ba.alive() for name, (ab, ba) in self.links.items()}
        return {
            "ok": True,
            "pid": os.getpid(),
            "scheduling": self.scheduling,
            "bias_ns": self.bias_ns,
            "lead_ns": int(self.lead_ns),
            "cpu_s": time.process_time(),
            "links": alive,
        }

    def _budget(self) -> None:
        directions = [d for pair in self.links.values() for d in pair]
        if not directions:
            return
        self.held_limit = max(HELD_BYTES_LEAST, min(HELD_BYTES_MOST, HELD_BYTES_TOTAL // len(directions)))
        shortest_ns = min(d.line.shape.delay_ns - 3 * d.line.shape.jitter_ns for d in directions)
        self.quantum_ns = max(0, min(COALESCE_NS, (shortest_ns - 150_000) // 2))

    # ---- forwarding

    def _read(self, direction: Direction, offset_ns: int) -> int:
        """Takes up to a batch of frames into the queue, returns how many; `offset_ns` is realtime minus monotonic."""
        queue, line, read = direction.queue, direction.line, direction.read
        count = 0
        now_ns = time.monotonic_ns()  # once a batch: a stamp may be a little later
        latest_ns, oldest_ns = now_ns + NEWEST_STAMP_NS, now_ns - OLDEST_STAMP_NS
        stale_ns = now_ns - line.shape.queue_ns
        while count < BATCH:
            try:
                frame, ancillary, _, _ = read(READ_BYTES, 32)
            except OSError:  # drained; or the device is down or gone, which clears the socket's error
                break
            count += 1
            arrived_ns = now_ns
            if ancillary:
                seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
                stamp_ns = seconds * NS_PER_S + nanoseconds - offset_ns
                if oldest_ns < stamp_ns < latest_ns:
                    arrived_ns = stamp_ns
            length = len(frame) - VNET_HEADER_BYTES
            if frame[1]:  # gso_type
                length = bytes_on_wire(length, *_LENGTHS.unpack_from(frame, 2))
            due_ns = line.push(length, arrived_ns)
            if due_ns is None:
                continue
            # It waited unseen in the socket's buffer: overload is loss, not delay.
            if due_ns < stale_ns:
                discarded = self._discard(direction.source)
                direction.stale += 1 + discarded
                direction.received += discarded
                break
            if direction.held_bytes > self.held_limit:
                direction.overflowed += 1
                continue
            direction.held_bytes += len(frame)
            queue.append((due_ns, frame))
        direction.received += count
        return count

    def _discard(self, source: socket.socket) -> int:
        """Empties a socket's buffer, returns of how many: a full buffer's head is always old, all would be dropped."""
        count = 0
        while count < DISCARD_MOST:
            try:
                source.recv(VNET_HEADER_BYTES)  # less is EINVAL
            except OSError:
                break
            count += 1
        return count

    def run(self) -> None:  # one flat loop: each call saved here is 0.1 us a frame
        now, write, poll = time.monotonic_ns, os.write, self.epoll.poll
        timer, by_fd = self.timer, self.by_fd
        timer_only = select.epoll()
        timer_only.register(timer.fd, select.EPOLLIN)
        heads: list[tuple[int, int, Direction]] = []
        """The earliest frame of each direction that has one."""
        sequence = armed_ns = busy = spun_ns = 0
        window_ns, may_spin = now(), True
        while True:
            t = now()
            if t - window_ns > SPIN_WINDOW_NS:
                may_spin, spun_ns, window_ns = spun_ns < (t - window_ns) * SPIN_SHARE, 0, t
            while heads and heads[0][0] <= t:
                direction = heads[0][2]
                queue, target, sent = direction.queue, direction.target, 0
                while queue and queue[0][0] <= t and sent < BATCH:
                    frame = queue.popleft()[1]
                    direction.held_bytes -= len(frame)
                    sent += 1
                    try:
                        write(target, frame)
                    except OSError:  # ENETDOWN, ENXIO, ENOBUFS, EAGAIN
                        direction.write_errors += 1
                direction.sent += sent
                if queue:
                    sequence += 1
                    heapq.heapreplace(heads, (queue[0][0], sequence, direction))
                else:
                    heapq.heappop(heads)
                t = now()
            lead_ns = int(self.lead_ns) if may_spin else 0
            # Heavy traffic: do not wake for every frame. A full batch means that more wait already.
            if 1 < busy < BATCH and self.quantum_ns:
                wake_ns = min(t + self.quantum_ns, heads[0][0] - lead_ns) if heads else t + self.quantum_ns
                if wake_ns - t > 3000:
                    timer.arm(wake_ns)
                    timer_only.poll()
                    timer.clear()
                    armed_ns = 0
                events = poll(0)
            elif not heads:
                events = poll()
            elif heads[0][0] - t <= lead_ns:
                events = poll(0)
                spun_ns += now() - t
            else:
                wake_ns = heads[0][0] - lead_ns
                if armed_ns != wake_ns:
                    timer.arm(wake_ns)
                    armed_ns = wake_ns
                events = poll()
                if events and events[0][0] == timer.fd:
                    late_ns = now() - wake_ns
                    self.lead_ns = min(LEAD_CAP_NS, self.lead_ns + (late_ns * 1.5 + 3000 - self.lead_ns) * 0.05)
            busy = 0
            offset_ns = time.time_ns() - now()
            for fd, _ in events:
                direction = by_fd.get(fd)
                if direction is not None:
                    was_empty = not direction.queue
                    busy += self._read(direction, offset_ns)
                    if was_empty and direction.queue:
                        sequence += 1
                        heapq.heappush(heads, (direction.queue[0][0], sequence, direction))
                elif fd == timer.fd:
                    timer.clear()
                    armed_ns = 0
                elif fd in self.handlers:
                    self.handlers[fd]()


def make_prompt() -> str:
    """Asks the kernel to wake this process without delay; returns what it granted: `fifo`, `nice` or `normal`."""
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    libc.mlockall(MCL_CURRENT)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | SCHED_RESET_ON_FORK, os.sched_param(FIFO_PRIORITY))
        return "fifo"
    with contextlib.suppress(OSError):  # containers and RT_GROUP_SCHED cgroups refuse
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "nice"
    return "normal"


def main() -> None:
    parser = argparse.ArgumentParser(description="forwards frames between veth pairs; see the module's docstring")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--owner-fd", type=int, help="a pipe's read end: at its end of file the wire ends too")
    parser.add_argument("--bias-ns", type=int, default=0)
    arguments = parser.parse_args()
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET): the wire process needs CAP_SYS_ADMIN")
    for conf in ("all", "default"):
        with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{conf}/disable_ipv6", "w") as switch:
            switch.write("1")
    listener = socket.socket(fileno=arguments.listen_fd)
    listener.setblocking(False)
    wire = Wire(listener, arguments.owner_fd, arguments.bias_ns, make_prompt())
    gc.collect()
    gc.freeze()
    gc.disable()
    wire.run()
