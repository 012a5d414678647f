"""The driver of streams: a client's requests at fixed intervals, each on its own connection or on held ones.

    python -m testbed.load.streams --folder <dir>

connects what is held, says `ready`, waits for `go.json` with the instant to begin (CLOCK_MONOTONIC), ends at that of
`end.json`, and leaves its rows in rows.bin. It measures who is served and when, not latency: a machine that has to run
many of them at once could not load locust for each.
"""

from __future__ import annotations

import testbed.load.greenlets  # isort: skip  # noqa: F401 - before anything that uses sockets

import argparse
import json
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import gevent

from testbed.load import rowfile
from testbed.load.connection import Connection
from testbed.load.streamplan import (
    CONNECTIONS_A_STREAM,
    DONE_FILE,
    END_FILE,
    GO_FILE,
    PLAN_FILE,
    READY_FILE,
    REQUEST_TIMEOUT_S,
    Lane,
    StreamsPlan,
    Told,
)
from testbed.load.tcp import TcpConnection
from testbed.model.experiment import RequestRow

GO_WITHIN_S = 60.0
HEARTBEAT_S = 0.01
LOOK_EVERY_S = 0.05
TCP_BYTES = 64


class Driver:
    def __init__(self, plan: StreamsPlan) -> None:
        self.plan = plan
        self.rows: list[RequestRow] = []
        self.connects: dict[str, int] = {str(lane.index): 0 for lane in plan.lanes}
        self.max_gap_s = 0.0
        self.end_s = 0.0
        self.held: dict[int, list[Connection]] = {}
        self._short: list[gevent.Greenlet] = []

    def open_held(self) -> None:
        for lane in self.plan.lanes:
            if lane.held:
                self.held[lane.index] = [connection(lane, number) for number in range(lane.connections)]
                for one in self.held[lane.index]:
                    try:
                        with gevent.Timeout(REQUEST_TIMEOUT_S, TimeoutError()):
                            one.connect()
                    except OSError:
                        pass  # the first request tries again, and its row says what happened

    def run(self, start_s: float, end_file: Path) -> None:
        self.end_s = start_s + self.plan.most_s
        helpers = [gevent.spawn(self.heartbeat), gevent.spawn(self.watch, end_file)]
        lanes = []
        for lane in self.plan.lanes:
            if lane.held:
                lanes += [
                    gevent.spawn(
                        self.hold, lane, one, start_s + lane.begins_s + lane.interval_s * number / lane.connections
                    )
                    for number, one in enumerate(self.held[lane.index])
                ]
            else:
                lanes.append(gevent.spawn(self.call, lane, start_s + lane.begins_s))
        gevent.joinall(lanes, raise_error=True)
        gevent.joinall(self._short, raise_error=True)
        gevent.killall(helpers)
        for lane in self.plan.lanes:
            for one in self.held.get(lane.index, ()):
                self.connects[str(lane.index)] += one.connects
                one.close()

    def watch(self, end_file: Path) -> None:
        """The end is known once all that was to happen has."""
        while True:
            gevent.sleep(LOOK_EVERY_S)
            try:
                self.end_s = float(json.loads(end_file.read_text())["end_s"])
                return
            except FileNotFoundError:
                pass

    def hold(self, lane: Lane, one: Connection, due_s: float) -> None:
        """What was missed while a request hung is not made up for: one connection has one request at a time."""
        request = request_bytes(lane)
        while due_s < self.end_s:
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            self.rows.append(exchanged(one, request, due_s))
            missed = max(0, int((time.monotonic() - due_s) / lane.interval_s))
            due_s += (missed + 1) * lane.interval_s

    def call(self, lane: Lane, start_s: float) -> None:
        """Open loop: whatever becomes of one request, the next is sent at its time."""
        request, number = request_bytes(lane), 0
        while (due_s := start_s + (number + 0.5) * lane.interval_s) < self.end_s:
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            self._short.append(gevent.spawn(self.call_once, lane, request, due_s))
            number += 1

    def call_once(self, lane: Lane, request: bytes, due_s: float) -> None:
        one = connection(lane, 0)
        self.rows.append(exchanged(one, request, due_s))
        self.connects[str(lane.index)] += one.connects
        one.close()

    def heartbeat(self) -> None:
        while True:
            before_s = time.monotonic()
            gevent.sleep(HEARTBEAT_S)
            self.max_gap_s = max(self.max_gap_s, time.monotonic() - before_s - HEARTBEAT_S)


def connection(lane: Lane, number: int) -> Connection:
    kind = TcpConnection if lane.protocol == "tcp" else Connection
    return kind(lane.index * CONNECTIONS_A_STREAM + number, lane.host, lane.port)


def request_bytes(lane: Lane) -> bytes:
    if lane.protocol == "tcp":
        return b"b" * TCP_BYTES
    return f"GET /?size={lane.response_bytes} HTTP/1.1\r\nhost: {lane.host}:{lane.port}\r\n\r\n".encode()


def exchanged(one: Connection, request: bytes, due_s: float) -> RequestRow:
    sent_s = time.monotonic()
    try:
        with gevent.Timeout(REQUEST_TIMEOUT_S, TimeoutError()):
            row = one.exchange(request, due_s)
    except TimeoutError:  # between the answer and the end of the block
        one.close()
        now_s = time.monotonic()
        row = RequestRow(
            intended_s=due_s, sent_s=sent_s, first_byte_s=now_s, last_byte_s=now_s, status=0, bytes=0,
            connection=one.number, error="timeout",
        )  # fmt: skip
    return replace(row, error="timeout") if row.error == "connect-timeout" else row


def wait_for_go(folder: Path) -> float:
    give_up_s = time.monotonic() + GO_WITHIN_S
    while time.monotonic() < give_up_s:
        try:
            return float(json.loads((folder / GO_FILE).read_text())["start_s"])
        except FileNotFoundError:
            gevent.sleep(0.02)
    raise TimeoutError(f"no {GO_FILE} within {GO_WITHIN_S:g} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.load.streams", description="drive streams by a plan")
    parser.add_argument("--folder", type=Path, required=True, help=f"holds {PLAN_FILE}")
    folder: Path = parser.parse_args(argv).folder
    try:
        driver = Driver(StreamsPlan.from_json((folder / PLAN_FILE).read_text()))
        driver.open_held()
        (folder / READY_FILE).touch()
        start_s = wait_for_go(folder)
        driver.run(start_s, folder / END_FILE)
        rows = sorted(driver.rows, key=lambda row: row.intended_s)
        header = rowfile.Header(
            window_start_s=start_s, window_end_s=driver.end_s, cpu_s=time.process_time(),
            wall_s=time.monotonic() - start_s, connects=sum(driver.connects.values()), max_gap_s=driver.max_gap_s,
            gaps_over_5ms=0, unsent=0,
        )  # fmt: skip
        (folder / DONE_FILE).write_text(Told(max_gap_s=driver.max_gap_s, connects=driver.connects).to_json())
        partial = folder / "rows.bin.part"
        partial.write_bytes(rowfile.encode(header, rows))
        os.replace(partial, folder / "rows.bin")
    except Exception:
        # Who started it sees this folder, not our stderr.
        (folder / "failure.txt").write_text(traceback.format_exc())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
