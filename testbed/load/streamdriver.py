"""Drivers of streams in their clients' sandboxes: started, ready, told when to begin, waited for, read."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import program
from testbed.errors import PeerError, UsageError
from testbed.load import rowfile
from testbed.load.streamplan import (
    CONNECTIONS_A_STREAM,
    DONE_FILE,
    END_FILE,
    GO_FILE,
    PLAN_FILE,
    READY_FILE,
    Lane,
    StreamsPlan,
    Told,
)
from testbed.model.event import Stream
from testbed.model.experiment import RequestRow
from testbed.model.topology import Topology
from testbed.runtime.enter import owner_for
from testbed.seams import Process, RunningLab, Spawn

CLIENT_UID = 2000
READY_WITHIN_S = 40.0
GOES_AFTER_S = 0.1
ENDS_WITHIN_S = 20.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRows:
    stream: Stream
    rows: tuple[RequestRow, ...]
    connects: int


@dataclass(slots=True)
class Drivers:
    """All that run, each in a sandbox of its own."""

    streams: tuple[Stream, ...]
    _folders: list[Path]
    _processes: list[Process]

    def go(self) -> float:
        """Tells all when to begin: CLOCK_MONOTONIC, returned."""
        start_s = time.monotonic() + GOES_AFTER_S
        self._tell(GO_FILE, {"start_s": start_s})
        return start_s

    def _tell(self, name: str, what: dict[str, float]) -> None:
        for folder in self._folders:
            _write(folder / f"{name}.new", json.dumps(what))
            (folder / f"{name}.new").rename(folder / name)

    def rows(self, end_s: float) -> tuple[list[StreamRows], float]:
        """All end at `end_s`: what was sent, by stream, and the longest gap of any driver's own loop."""
        self._tell(END_FILE, {"end_s": end_s})
        found: list[RequestRow] = []
        connects: dict[str, int] = {}
        max_gap_s = 0.0
        deadline_s = max(end_s, time.monotonic()) + ENDS_WITHIN_S
        for folder, process in zip(self._folders, self._processes, strict=True):
            code = process.wait(max(0.0, deadline_s - time.monotonic()))
            if code != 0 or not (folder / "rows.bin").exists():
                raise _failed(folder, process, code)
            found += rowfile.decode((folder / "rows.bin").read_bytes())[1]
            told = Told.from_json((folder / DONE_FILE).read_text())
            connects |= told.connects
            max_gap_s = max(max_gap_s, told.max_gap_s)
        by_stream = [
            StreamRows(
                stream=stream,
                rows=tuple(r for r in found if r.connection // CONNECTIONS_A_STREAM == index),
                connects=connects[str(index)],
            )
            for index, stream in enumerate(self.streams)
        ]
        return by_stream, max_gap_s

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.signal(9)
                process.wait(5.0)


def start(
    lab: RunningLab,
    topology: Topology,
    streams: Sequence[Stream],
    *,
    most_s: float,
    response_bytes: int,
    folder: Path,
) -> Drivers:
    """Returns once every driver is connected and waits to be told."""
    drivers = Drivers(streams=tuple(streams), _folders=[], _processes=[])
    for client in dict.fromkeys(stream.client for stream in streams):
        if client not in lab.sandboxes:
            raise UsageError(f"stream: the lab has no sandbox {client!r}; known: {', '.join(sorted(lab.sandboxes))}")
        home = folder / client
        home.mkdir(parents=True, mode=0o700)
        home = home.resolve()
        _give(home)
        lanes = tuple(
            _lane(topology, index, stream, response_bytes)
            for index, stream in enumerate(streams)
            if stream.client == client
        )
        _write(home / PLAN_FILE, StreamsPlan(lanes=lanes, most_s=most_s).to_json())
        drivers._folders.append(home)
    spawns = [
        Spawn(
            name=f"streams.{home.name}.{next(_numbers)}",
            sandbox=home.name,
            argv=[sys.executable, "-m", "testbed.load.streams", "--folder", str(home)],
            uid=CLIENT_UID,
            folder=home,
            env={"PYTHONPATH": str(program.CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home)},
        )
        for home in drivers._folders
    ]
    drivers._processes = list(lab.spawn(spawns))
    deadline_s = time.monotonic() + READY_WITHIN_S
    try:
        for home, process in zip(drivers._folders, drivers._processes, strict=True):
            while not (home / READY_FILE).exists():
                code = process.poll()
                if code is not None or time.monotonic() > deadline_s:
                    raise _failed(home, process, code)
                time.sleep(0.01)
    except BaseException:
        drivers.end()
        raise
    return drivers


def _lane(topology: Topology, index: int, stream: Stream, response_bytes: int) -> Lane:
    name, _, port = stream.target.partition(":")
    service = topology.service(name)
    return Lane(
        index=index, host=service.address, port=int(port or service.ports[0].port), protocol=stream.protocol,
        held=stream.held, connections=stream.connections, interval_s=stream.interval_s, response_bytes=response_bytes,
        begins_s=stream.begins_s,
    )  # fmt: skip


def _failed(folder: Path, process: Process, code: int | None) -> PeerError:
    failure = folder / "failure.txt"
    said = failure.read_text()[-2000:].strip() if failure.exists() else f"no failure.txt; its log: {process.log}"
    state = "not done in time; is the machine overloaded?" if code is None else f"ended with code {code}:"
    return PeerError(f"{process.name}: {state} {said}")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    _give(path)


def _give(path: Path) -> None:
    if (owner := owner_for(CLIENT_UID)) != os.geteuid():
        os.chown(path, owner, owner)
