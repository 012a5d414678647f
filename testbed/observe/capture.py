"""Packets of many places into one pcapng, by a process of its own: `python -m testbed.observe.capture` with orders on
stdin.

The process is apart so that it neither delays nor is delayed by what it watches, and so that an owner's death ends
it: its orders come through a pipe, and the pipe's end is the order to leave. Protocol: one JSON line in (points,
file, snaplen), one line `{"ready": …}` out when every ring listens; a line `stop` in; one line of evidence out. On
any other end the file is removed: what stands under the final name is always whole. Files are 0600, for secrets may
be put inside.

A `detached` one belongs to a lab instead: it survives who started it, is told by SIGTERM to stop, stops by itself when
the lab's keeper ends or its limit is reached, and leaves its evidence in a file. In both cases its file is whole.
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

from testbed.errors import OF_THE_MACHINE, MachineError, PeerError, TestbedError, UsageError
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
UNFINISHED = ".raw"
"""End of the name of what is still being written: never to be taken for a capture."""


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


def start_detached(
    points: Sequence[Point],
    out: Path,
    *,
    keeper: tuple[int, int],
    done: Path,
    log: Path,
    key_logs: Sequence[Path] = (),
    snaplen: int = 0,
    limit_bytes: int = 0,
) -> int:
    """Pid of a capture that outlives this process. `keeper` is pid and start time of what it ends with.

    At its end it puts the secrets of `key_logs` into `out` and its evidence, or its error, into `done`.
    """
    orders = _orders(points, out, snaplen=snaplen, ring_bytes=RING_BYTES) | {
        "keeper": list(keeper),
        "done": str(done),
        "key_logs": [str(path) for path in key_logs],
        "limit_bytes": limit_bytes,
    }
    with open(log, "ab") as said:
        process = _start(stderr=said)
    try:
        _tell(process, json.dumps(orders))
        _answer(process, START_TIMEOUT_S, "start", out)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdin.close()
        process.stdout.close()
    pid = process.pid
    process.returncode = 0  # not ours to wait for any more: without it, Popen's end would warn
    return pid


def _orders(points: Sequence[Point], out: Path, *, snaplen: int, ring_bytes: int) -> dict:
    if not points:
        raise UsageError("a capture needs at least one point to listen at")
    rows = [dataclasses.asdict(p) for p in points]
    return {"points": rows, "out": str(out), "snaplen": snaplen, "ring_bytes": ring_bytes}


def _start(stderr: BinaryIO | None = None) -> subprocess.Popen[bytes]:
    # Namespace paths such as /proc/<keeper>/fd/<n> mean the same to the child; our own fds are not inherited.
    return subprocess.Popen(
        [sys.executable, "-m", "testbed.observe.capture"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    try:
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it is gone; the missing answer says so


def _answer(process: subprocess.Popen[bytes], timeout_s: float, doing: str, out: Path) -> dict:
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    line = process.stdout.readline() if ready else b""
    if not line:
        raise PeerError(f"capture {out}: the process did not {doing} within {timeout_s:g} s; see its stderr")
    answer = json.loads(line)
    if "error" in answer:
        raise told_error(answer, out)
    return answer


def told_error(answer: Mapping[str, str], out: Path) -> TestbedError:
    """The process's error as ours. A disk or a right that is missing is the machine's, whatever raised it."""
    kind = {c.__name__: c for c in (UsageError, MachineError)}.get(answer["kind"], PeerError)
    return kind(f"capture {out}: {answer['error']}")


class Capture:
    """Runs the process. `start` returns when every point is listening, so nothing sent later is missed."""

    def __init__(self, points: Sequence[Point], out: Path, *, snaplen: int = 0, ring_bytes: int = RING_BYTES) -> None:
        self.out = out
        self._orders = _orders(points, out, snaplen=snaplen, ring_bytes=ring_bytes)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> Capture:
        """Raises UsageError (wrong device or namespace) or MachineError (no right), as found in the process."""
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"capture {self.out}: no folder for it: {error.strerror}; check rights and space"
            ) from error
        self._process = _start()
        self._ask(json.dumps(self._orders), START_TIMEOUT_S, "start")
        return self

    def stop(self) -> CaptureEvidence:
        if self._process is None:
            raise UsageError("this capture was not started")
        answer = self._ask("stop", STOP_TIMEOUT_S, "stop")
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

    def _ask(self, line: str, timeout_s: float, doing: str) -> dict:
        try:
            _tell(self._process, line)
            return _answer(self._process, timeout_s, doing, self.out)
        except TestbedError:
            self._end()
            raise

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
        self._file = file
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

    def run(self, owner: _Owner | _Keeper, *, limit_bytes: int = 0) -> bool:
        """True when told to stop or full, False when what it is for is gone and the file is nobody's."""
        poll = select.poll()
        for descriptor in owner.descriptors:
            poll.register(descriptor, select.POLLIN | select.POLLHUP)
        for ring in self._rings:
            poll.register(ring, select.POLLIN | select.POLLERR)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(200)}
            self.drain()
            if (told := owner.told(ready)) is not None:
                return told
            if limit_bytes and self._file.tell() >= limit_bytes:
                return True

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


class _Owner:
    """The process that started us: its word comes on stdin, and its end is ours."""

    descriptors = (0,)

    def __init__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # Ctrl-C is for the owner; it tells us
        self._parent = os.getppid()

    def told(self, ready: set[int]) -> bool | None:
        if os.getppid() != self._parent:
            return False  # a child that it forked may still hold the pipe open
        return os.read(0, 64).startswith(b"stop") if 0 in ready else None


class _Keeper:
    """The lab we belong to, for a detached capture: its end, or SIGTERM, is the order to stop."""

    def __init__(self, pid: int, started: int) -> None:
        from testbed.runtime.ownership import Being

        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            keeper = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise UsageError("the lab is down") from error
        if not Being(pid=pid, started=started).alive:
            raise UsageError("the lab is down")
        self.descriptors = (read_end, keeper)

    def told(self, ready: set[int]) -> bool | None:
        return True if ready & set(self.descriptors) else None


def main() -> int:
    line = _line(0)
    if not line.endswith(b"\n"):
        return 1  # whoever started us was interrupted before it had said what for
    orders = json.loads(line)
    out = Path(orders["out"])
    part = out.with_name(f"{out.name}.{os.getpid()}{UNFINISHED}")
    try:
        owner = _Keeper(*orders["keeper"]) if "keeper" in orders else _Owner()
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=1 << 20) as file:
            points = [Point(**p) for p in orders["points"]]
            recorder = _Recorder(points, file, snaplen=orders["snaplen"], ring_bytes=orders["ring_bytes"])
            _say({"ready": len(points)})
            if not recorder.run(owner, limit_bytes=orders.get("limit_bytes", 0)):
                return 1
            drops = recorder.finish()
        _in_time_order(part, out)
        secrets = embed_secrets(out, [Path(path) for path in orders.get("key_logs", ())])
        answer = {"packets": recorder.packets, "drops": sum(drops.values()), "drops_by_point": drops}
        answer["secrets"] = secrets
    except (TestbedError, OSError) as error:
        blame = isinstance(error, OSError) and error.errno in OF_THE_MACHINE
        text = f"{error.strerror}; nothing of it is kept, check rights and space" if blame else str(error)
        answer = {"error": text, "kind": "MachineError" if blame else type(error).__name__}
    finally:
        part.unlink(missing_ok=True)
    _say(answer)
    if "done" in orders and Path(orders["done"]).parent.is_dir():
        Path(orders["done"]).write_text(json.dumps(answer))
    return 1 if "error" in answer else 0


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
