"""Packets of many places into one pcapng, by a process of its own: `python -m testbed.observe.capture` with orders on
stdin.

The process is apart so that it neither delays nor is delayed by what it watches, and so that an owner's death ends
it: its orders come through a pipe, and the pipe's end is the order to leave. Protocol: one JSON line in (points,
file, snaplen), one line `{"ready": …}` out when every ring listens; a line `stop` in; one line of evidence out. On
any other end the file is removed: what stands under the final name is always whole. Files are 0600, for secrets may
be put inside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from testbed.errors import MachineError, PeerError, TestbedError, UsageError
from testbed.observe import pcapng
from testbed.observe.pcapng import ETHERNET, RAW_IP, Interface, embed_secrets
from testbed.observe.ring import ARPHRD_NONE, Ring

__all__ = ["Capture", "CaptureEvidence", "Point", "embed_secrets"]

RING_BYTES = 8 << 20
"""Per point: at 10 Gbit/s of super-frames, 6 ms; at a proof window's 5,000 packets/s of 1 KiB, over a second."""
SETTLE_S = 0.06
"""After `stop`, frames of a block that is not full are handed over within 20 ms (ring.BLOCK_TIMEOUT_MS); three times
that."""
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    sandbox: str
    netns: str | None
    """Path that setns(2) takes; None for the namespace we are in."""
    device: str | None = None
    """None: all devices of the namespace, each with its own interface block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureEvidence:
    files: tuple[Path, ...]
    packets: int
    drops: int
    """Over all points; per interface they stand in the file."""
    drops_by_point: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Capture:
    """Runs the process. `start` returns when every point is listening, so nothing sent later is missed."""

    def __init__(self, points: Sequence[Point], out: Path, *, snaplen: int = 0, ring_bytes: int = RING_BYTES) -> None:
        if not points:
            raise UsageError("a capture needs at least one point to listen at")
        self.out = out
        self._orders = {
            "points": [dataclasses.asdict(p) for p in points],
            "out": str(out),
            "snaplen": snaplen,
            "ring_bytes": ring_bytes,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> Capture:
        """Raises UsageError (wrong device or namespace) or MachineError (no right), as found in the process."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        # Namespace paths such as /proc/<keeper>/fd/<n> mean the same to the child; our own fds are not inherited.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "testbed.observe.capture"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,
        )
        self._tell(json.dumps(self._orders))
        self._answer(START_TIMEOUT_S, "start")
        return self

    def stop(self) -> CaptureEvidence:
        if self._process is None:
            raise UsageError("this capture was not started")
        self._tell("stop")
        answer = self._answer(STOP_TIMEOUT_S, "stop")
        self._end()
        return CaptureEvidence(
            files=(self.out,),
            packets=answer["packets"],
            drops=answer["drops"],
            drops_by_point=answer["drops_by_point"],
        )

    def __enter__(self) -> Capture:
        return self.start() if self._process is None else self

    def __exit__(self, *_: object) -> None:
        """Without `stop` before, what was captured is thrown away."""
        if self._process is not None:
            self._end()

    def _tell(self, line: str) -> None:
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; the missing answer says so

    def _answer(self, timeout_s: float, doing: str) -> dict:
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._end()
            raise PeerError(f"capture {self.out}: the process did not {doing} within {timeout_s:g} s; see its stderr")
        answer = json.loads(line)
        if "error" in answer:
            self._end()
            kind = {c.__name__: c for c in (UsageError, MachineError)}.get(answer["kind"], PeerError)
            raise kind(f"capture {self.out.name}: {answer['error']}")
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class _Recorder:
    """Inside the process: rings in, one file out."""

    def __init__(self, points: Sequence[Point], file: BinaryIO, *, snaplen: int, ring_bytes: int) -> None:
        self._writer = pcapng.Writer(file)
        self._snaplen = snaplen
        self._points = points
        self._rings: list[Ring] = []
        self._numbers: dict[tuple[int, int], int] = {}  # (ring, device index) -> interface number
        self._first_of_ring: dict[int, int] = {}
        self.packets = 0
        for point in points:
            self._rings.append(Ring(point.netns, point.device, ring_bytes=ring_bytes, snaplen=snaplen))
        for number, point in enumerate(points):
            if point.device is not None:
                # Announced even if nothing comes: a point that heard nothing differs from one that was not there.
                self._interface(number, point.device, self._rings[number].hardware())

    def _interface(self, ring: int, device: str, hardware: int) -> int:
        link_type = RAW_IP if hardware == ARPHRD_NONE else ETHERNET
        name = f"{self._points[ring].sandbox}:{device}"
        number = self._writer.interface(Interface(name=name, link_type=link_type, snaplen=self._snaplen))
        self._first_of_ring.setdefault(ring, number)
        return number

    def _number(self, ring: int, index: int, hardware: int) -> int:
        if self._points[ring].device is not None:
            number = self._first_of_ring[ring]
        else:
            number = self._interface(ring, self._rings[ring].device_name(index), hardware)
        self._numbers[(ring, index)] = number
        return number

    def drain(self) -> None:
        numbers, write = self._numbers, self._writer.packet
        for ring_number, ring in enumerate(self._rings):
            for index, hardware, _, time_ns, data, wire in ring.frames():
                number = numbers.get((ring_number, index))
                if number is None:
                    number = self._number(ring_number, index, hardware)
                write(number, time_ns, data, wire)
                self.packets += 1

    def run(self) -> bool:
        """True when told to stop, False when the owner is gone."""
        poll = select.poll()
        poll.register(0, select.POLLIN | select.POLLHUP)
        for ring in self._rings:
            poll.register(ring, select.POLLIN | select.POLLERR)
        owner = os.getppid()
        while True:
            ready = poll.poll(200)
            self.drain()
            if os.getppid() != owner:
                return False  # a child that it forked may still hold the pipe open
            if any(descriptor == 0 for descriptor, _ in ready):
                return os.read(0, 64).startswith(b"stop")

    def finish(self) -> dict[str, int]:
        """Takes what is still on its way into the rings; returns drops per point."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            self.drain()
            time.sleep(0.005)
        drops: dict[str, int] = {}
        now_ns = time.time_ns()
        for number, (point, ring) in enumerate(zip(self._points, self._rings, strict=True)):
            received, dropped = ring.statistics()
            name = f"{point.sandbox}:{point.device or '*'}"
            drops[name] = drops.get(name, 0) + dropped
            # One ring over all devices has one counter: each of its interfaces bears it, since any may have lost them.
            mine = {n for (r, _), n in self._numbers.items() if r == number}
            mine |= {self._first_of_ring[number]} if number in self._first_of_ring else set()
            for interface in sorted(mine):
                self._writer.statistics(interface, now_ns, received=received, dropped=dropped)
            ring.close()
        return drops


def _in_time_order(part: Path, out: Path) -> None:
    """Rings are emptied one after another; the file is put in order of time, so that packet numbers are too."""
    recording = pcapng.read(part)
    ordered = sorted(recording.packets, key=lambda p: p.time_ns)
    pcapng.write(out, dataclasses.replace(recording, packets=tuple(ordered)))


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is for the owner; it tells us
    orders = json.loads(_line(0))
    out = Path(orders["out"])
    part = out.with_name(f"{out.name}.{os.getpid()}.raw")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=1 << 20) as file:
            points = [Point(**p) for p in orders["points"]]
            recorder = _Recorder(points, file, snaplen=orders["snaplen"], ring_bytes=orders["ring_bytes"])
            _say({"ready": len(points)})
            if not recorder.run():
                return 1
            drops = recorder.finish()
        _in_time_order(part, out)
    except (TestbedError, OSError) as error:
        _say({"error": str(error), "kind": type(error).__name__})
        return 1
    finally:
        part.unlink(missing_ok=True)
    _say({"packets": recorder.packets, "drops": sum(drops.values()), "drops_by_point": drops})
    return 0


def _line(descriptor: int) -> bytes:
    """One line, read byte by byte: whatever follows must stay in the pipe for `poll` to see."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line


def _say(answer: dict) -> None:
    try:
        os.write(1, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    sys.exit(main())
