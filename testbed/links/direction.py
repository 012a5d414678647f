"""One direction of a wired link: frames read from one device's socket, waiting to be written to the other's."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import deque

from testbed.links.batch import STAMP
from testbed.links.delayline import NS_PER_S, DelayLine
from testbed.links.prompt import SO_TIMESTAMPNS

SO_TIMESTAMPING, TX_SOFTWARE, MSG_ERRQUEUE = 37, 1 << 1, 0x2000
STAMP_REQUEST = [(socket.SOL_SOCKET, SO_TIMESTAMPING, struct.pack("=I", TX_SOFTWARE))]


class Direction:
    """The queue and counters of one direction; the loop of `wireproc` works on them."""

    __slots__ = (
        "bulky",
        "closed",
        "device",
        "fd",
        "held_bytes",
        "latest_ns",
        "line",
        "overflowed",
        "queue",
        "received",
        "sent",
        "sink",
        "source",
        "stale",
        "target",
        "write_errors",
    )

    def __init__(self, source: socket.socket, sink: socket.socket, device: str) -> None:
        self.source = source
        self.fd = source.fileno()
        self.sink = sink
        self.target = sink.fileno()
        self.device = device
        self.line = DelayLine(random.Random())
        self.queue: deque[tuple[int, bytes]] = deque()
        """Due time and frame, vnet header first."""
        self.held_bytes = 0
        self.received = self.sent = self.overflowed = self.stale = self.write_errors = 0
        self.latest_ns = 0
        """How long after it was due a frame was read at the worst, of those that were let go all the same."""
        self.bulky = False
        """Whether the last frames read were super-frames."""
        self.closed = False

    def write_stamped(self, frame: bytes) -> int | None:
        """Writes a frame and returns when it left through the device, monotonic; None where the kernel says nothing.

        The stamp comes back, with a copy, in the socket's error queue, before the write returns. Raises OSError as
        a write does.
        """
        self.sink.sendmsg([frame], STAMP_REQUEST)
        offset_ns = time.time_ns() - time.monotonic_ns()
        left_ns = None
        while True:
            try:
                _, ancillary, _, _ = self.sink.recvmsg(1, 128, MSG_ERRQUEUE)
            except OSError:
                return left_ns
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, nanoseconds = STAMP.unpack(data)
                    left_ns = seconds * NS_PER_S + nanoseconds - offset_ns

    def drop_stamps(self) -> None:
        """Empties the source's error queue of stamps that came late; else it would be readable for ever."""
        try:
            while True:
                self.source.recvmsg(1, 0, MSG_ERRQUEUE)
        except OSError:
            return

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
            "latest_us": self.latest_ns // 1000,
        }
