"""The wire process: stands in the middle of veth pairs and forwards each frame when its delay line says so.

Standard library only. It lives in a network namespace of its own (the middle), which nobody else holds: when it ends,
by whatever signal, the kernel removes the middle's devices and with them the far ends in the nodes, so a dead wire
never looks like a quiet link. One AF_PACKET socket per device; the kernel stamps frames on arrival, so that being
woken late to read costs no accuracy. Being woken late to write does: so it asks to be woken earlier and spins the
rest, within a share of the CPU, and lets each frame go as much before it is due as the last ones left late (`pacing`).
Figures behind the constants: a veth's AF_PACKET reads cost 1.7 us, an idle wake-up 28-47 us, a spin of 100 us covers
p90 of the lateness.

Control: a listening SOCK_SEQPACKET Unix socket, one JSON line a message: attach, detach, set, stats, status, middle,
end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from testbed.links.batch import BATCH, SUPER_FRAME_BYTES, Batch, read_singly
from testbed.links.delayline import NS_PER_MS, NS_PER_S, Shape, bytes_on_wire
from testbed.links.direction import Direction
from testbed.links.pacing import STREAMED, WAYS, Pacer, Wakefulness
from testbed.links.prompt import AwakeCores, Timer, libc, make_prompt, open_device

CLONE_NEWNET = 0x40000000
VNET_HEADER_BYTES = 10
COALESCE_NS = 500_000
HELD_BYTES_TOTAL = 1 << 30
HELD_BYTES_MOST = 128 << 20
HELD_BYTES_LEAST = 16 << 20
NEWEST_STAMP_NS = 1_000_000
PATIENCE_NS = 100 * NS_PER_MS
"""A host that stands still for some tens of ms delays frames, as it delays the programs that wait for them; beyond the
queue's depth and this, they are lost. 75,000 frames/s fill the socket's buffer in 145 ms.
"""
OLDEST_STAMP_NS = 2 * NS_PER_S
"""Stamps are CLOCK_REALTIME; one that claims to be older than this tells of a stepped clock, not of a late read."""
LOOK_S = 0.25
"""How often an idle wire looks whether the cores may sleep again, or its devices are gone."""
DOUBT_NS = 60 * NS_PER_S
"""A removal on a busy machine takes this long at most; measured: up to a second."""
_LENGTHS = struct.Struct("HH")


class Wire:
    """All links of this process, its loop, and the answers to its control socket."""

    def __init__(self, listener: socket.socket, owner_fd: int | None, pacer: Pacer, scheduling: str) -> None:
        self.links: dict[str, tuple[Direction, Direction]] = {}
        self.pacer = pacer
        self.scheduling = scheduling
        self.wakefulness = Wakefulness()
        self.cores = AwakeCores()
        self.batch = Batch()
        self.quantum_ns = 0
        self.doubt_until_ns = 0
        """Until then a device that went down may turn out to have been removed."""
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

    def _went_down(self) -> None:
        """A device that is being removed says so once, by going down, and has its name for a while yet; that it is gone
        it never says. So whether it went for good has to be looked at again."""
        self.doubt_until_ns = time.monotonic_ns() + DOUBT_NS
        self._end_with_the_lab()

    def _end_with_the_lab(self) -> None:
        """A lab's end takes all devices; a wire without one would stay for as long as the orchestrator lives."""
        if self.links and not any(direction.alive() for pair in self.links.values() for direction in pair):
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
        forward = Direction(sock_a, sock_b, a)
        backward = Direction(sock_b, sock_a, b)
        self.links[name] = (forward, backward)
        for direction in (forward, backward):
            self.by_fd[direction.source.fileno()] = direction
            self.epoll.register(direction.source.fileno(), select.EPOLLIN)
        return self.do_set(fds=fds, name=name, a_to_b=a_to_b, b_to_a=b_to_a)

    def do_set(self, *, fds: list[int], name: str, a_to_b: dict | None, b_to_a: dict | None) -> dict[str, object]:
        for direction, shape in zip(self.links[name], (a_to_b, b_to_a), strict=True):
            if shape is not None:
                direction.line.shape = Shape(**shape)
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
            "calibrated": self.pacer.compensates,
            "early_ns": dict(zip(WAYS, self.pacer.early_ns, strict=True)),
            "lead_ns": self.pacer.lead_ns,
            "idle_cores": self.cores.state,
            "cpu_s": time.process_time(),
            "links": alive,
        }

    def do_end(self, *, fds: list[int]) -> dict[str, object]:
        raise SystemExit(0)

    def _budget(self) -> None:
        directions = [d for pair in self.links.values() for d in pair]
        self.wakefulness.shortest_ns = min((d.line.shape.delay_ns for d in directions), default=None)
        if not directions:
            return
        self.held_limit = max(HELD_BYTES_LEAST, min(HELD_BYTES_MOST, HELD_BYTES_TOTAL // len(directions)))
        shortest_ns = min(d.line.shape.delay_ns - 3 * d.line.shape.jitter_ns for d in directions)
        self.quantum_ns = max(0, min(COALESCE_NS, (shortest_ns - 150_000) // 2))

    # ---- forwarding

    def _read(self, direction: Direction, offset_ns: int, most: int) -> int:
        """Takes up to `most` frames into the queue, returns how many; `offset_ns` is realtime minus monotonic."""
        now_ns = time.monotonic_ns()  # once a batch: a stamp may be a little later
        one_by_one = most == 1 or direction.bulky
        frames = read_singly(direction.source, most) if one_by_one else self.batch.read(direction.fd)
        queue, line = direction.queue, direction.line
        latest_ns, oldest_ns = now_ns + NEWEST_STAMP_NS, now_ns - OLDEST_STAMP_NS
        stale_ns = now_ns - line.shape.queue_ns - PATIENCE_NS
        bulky = False
        for frame, stamp_ns in frames:
            arrived_ns = stamp_ns - offset_ns
            if not oldest_ns < arrived_ns < latest_ns:
                arrived_ns = now_ns
            length = len(frame) - VNET_HEADER_BYTES
            if frame[1]:  # gso_type
                bulky = bulky or length > SUPER_FRAME_BYTES
                length = bytes_on_wire(length, *_LENGTHS.unpack_from(frame, 2))
            due_ns = line.push(length, arrived_ns)
            if due_ns is None:
                continue
            if due_ns < now_ns:  # it waited unseen in the socket's buffer
                if due_ns < stale_ns:  # overload is loss, not delay
                    direction.stale += 1
                    continue
                if now_ns - due_ns > direction.latest_ns:
                    direction.latest_ns = now_ns - due_ns
            if direction.held_bytes > self.held_limit:
                direction.overflowed += 1
                continue
            direction.held_bytes += len(frame)
            queue.append((due_ns, frame))
        direction.bulky = bulky
        direction.received += len(frames)
        return len(frames)

    def _write(self, direction: Direction, frame: bytes, way: int, due_ns: int) -> None:
        """Writes one frame and lets the pacer learn when it left."""
        left_ns = direction.write_stamped(frame)
        if left_ns is not None:
            self.pacer.left(way, due_ns, left_ns, time.monotonic_ns())

    def run(self) -> None:  # one flat loop: each call saved here is 0.1 us a frame
        now, write, poll = time.monotonic_ns, os.write, self.epoll.poll
        timer, by_fd, pacer, early_ns = self.timer, self.by_fd, self.pacer, self.pacer.early_ns
        timer_only = select.epoll()
        timer_only.register(timer.fd, select.EPOLLIN)
        heads: list[tuple[int, int, Direction]] = []
        """The earliest frame of each direction that has one."""
        sequence = armed_ns = busy = read_ns = 0
        while True:
            t = now()
            way = pacer.way(t)
            early = early_ns[way]
            while heads and heads[0][0] <= t + early:
                direction = heads[0][2]
                queue, target, sent = direction.queue, direction.target, 0
                while queue and queue[0][0] <= t + early and sent < BATCH:
                    due_ns, frame = queue.popleft()
                    direction.held_bytes -= len(frame)
                    try:
                        # Overdue when it was read: says how late the machine woke to read, which nothing can mend.
                        if not sent and due_ns - early > read_ns and pacer.wants(way, t):
                            self._write(direction, frame, way, due_ns)
                        else:
                            write(target, frame)
                    except OSError:  # ENETDOWN, ENXIO, ENOBUFS, EAGAIN
                        direction.write_errors += 1
                    sent += 1
                    way, early = STREAMED, early_ns[STREAMED]
                direction.sent += sent
                if queue:
                    sequence += 1
                    heapq.heapreplace(heads, (queue[0][0], sequence, direction))
                else:
                    heapq.heappop(heads)
                t = now()
            # Heavy traffic: do not wake for every frame. A full batch means that more wait already.
            if 1 < busy < BATCH and self.quantum_ns:
                wake_ns = min(t + self.quantum_ns, pacer.wake_ns(heads[0][0])) if heads else t + self.quantum_ns
                if wake_ns - t > 3000:
                    timer.arm(wake_ns)
                    timer_only.poll()
                    timer.clear()
                    armed_ns = 0
                events = poll(0)
            elif not heads:
                events = poll(LOOK_S if self.wakefulness.awake or self.doubt_until_ns else None)
                if not events:
                    if self.wakefulness.quiet(now()):
                        self.cores.ask(self.wakefulness.awake)
                    if self.doubt_until_ns:
                        self._end_with_the_lab()
                        self.doubt_until_ns = self.doubt_until_ns if now() < self.doubt_until_ns else 0
            elif (wake_ns := pacer.wake_ns(heads[0][0])) <= t:
                events = poll(0)
                pacer.spun(now() - t)
            else:
                if armed_ns != wake_ns:
                    timer.arm(wake_ns)
                    armed_ns = wake_ns
                events = poll()
                if events and events[0][0] == timer.fd:
                    pacer.woken(wake_ns, now())
            # After a quiet turn one frame is the rule; to find nothing behind it costs 60 us with cold caches.
            most, busy = (BATCH if busy else 1), 0
            offset_ns = time.time_ns() - now()
            for fd, mask in events:
                direction = by_fd.get(fd)
                if direction is not None:
                    was_empty = not direction.queue
                    busy += self._read(direction, offset_ns, most)
                    if was_empty and direction.queue:
                        sequence += 1
                        heapq.heappush(heads, (direction.queue[0][0], sequence, direction))
                    if mask & select.EPOLLERR:
                        direction.drop_stamps()
                        self._went_down()
                elif fd == timer.fd:
                    timer.clear()
                    armed_ns = 0
                elif fd in self.handlers:
                    self.handlers[fd]()
            if busy:
                read_ns = now()
                if self.wakefulness.frames(read_ns):
                    self.cores.ask(self.wakefulness.awake)


def main() -> None:
    parser = argparse.ArgumentParser(description="forwards frames between veth pairs; see the module's docstring")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--owner-fd", type=int, help="a pipe's read end: at its end of file the wire ends too")
    parser.add_argument("--uncalibrated", action="store_true", help="let frames go when they are due, not earlier")
    arguments = parser.parse_args()
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET): the wire process needs CAP_SYS_ADMIN")
    for conf in ("all", "default"):
        with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{conf}/disable_ipv6", "w") as switch:
            switch.write("1")
    listener = socket.socket(fileno=arguments.listen_fd)
    listener.setblocking(False)
    wire = Wire(listener, arguments.owner_fd, Pacer(compensates=not arguments.uncalibrated), make_prompt())
    gc.collect()
    gc.freeze()
    gc.disable()
    wire.run()
