"""What the locust users of one generator process do: each is one connection, and together they claim a schedule.

Kept alive or opened anew after so many requests. Open loop: a free connection claims the next time of the schedule,
waits for it and sends; when all are busy, times pass unclaimed and the requests go out late, which latency counted from
the intended time shows. (That is one queue with N servers; a user that paced itself, as locust's constant_throughput
does, would omit exactly the slow moments.) Closed loop: each sends again as soon as it is answered; intended and sent
are one.

locust's own events are fired for each request once the window is over, so that its statistics hold and its cost does
not.
"""

from __future__ import annotations

import locust  # isort: skip  # patches the standard library for gevent: before anything that uses sockets

import gc
import random
import resource
import time
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment

from testbed.load import rowfile
from testbed.load.connection import Connection
from testbed.load.pacer import Pacer
from testbed.load.plan import CONNECT_TIMEOUT_S, DRAIN_S, REQUEST_TIMEOUT_S, GeneratorPlan, with_id
from testbed.load.schedule import intended_times, share
from testbed.load.tcp import TcpConnection
from testbed.model.experiment import RequestRow

HEARTBEAT_S = 0.01
MAX_CLOSED_ROWS = 3_000_000
TOLD_AT_ONCE = 5_000


def client(plan: GeneratorPlan) -> tuple[type[Connection], Any]:
    """What a connection is, and the request that each one sends."""
    load = plan.load
    if load.protocol == "tcp":
        return TcpConnection, b"b" * load.request_bytes
    if load.protocol == "http1":
        return Connection, request_bytes(plan)
    from testbed.load import http2  # only those who speak it pay for its import

    kind = http2.GrpcConnection if load.protocol == "grpc" else http2.Http2Connection
    return kind, kind.request(f"{plan.host}:{plan.port}", load.request_bytes, load.response_bytes)


def request_bytes(plan: GeneratorPlan) -> bytes:
    load = plan.load
    method = "POST" if load.request_bytes else "GET"
    length = f"content-length: {load.request_bytes}\r\n" if load.request_bytes else ""
    head = f"{method} /?size={load.response_bytes} HTTP/1.1\r\nhost: {plan.host}:{plan.port}\r\n{length}\r\n"
    return head.encode() + b"b" * load.request_bytes


class Trial:
    """What the users of one trial share."""

    def __init__(self, plan: GeneratorPlan) -> None:
        self.plan = plan
        self.connection, self.request = client(plan)
        draw = random.Random(plan.seed).random
        times = intended_times(plan.load, draw, plan.trace_s) if plan.load.kind == "open" else []
        self.times = share(times, plan.load.processes, plan.worker)
        self.next_time = iter(self.times)
        self.pacer = Pacer()
        self.connections: list[Connection] = []
        self.users = self.connected = self.finished = 0
        self.all_connected, self.go, self.all_finished = Event(), Event(), Event()
        self.start_s = self.end_s = self.give_up_s = 0.0
        self.rows: list[RequestRow] = []
        self.unsent: list[RequestRow] = []
        self.max_gap_s = 0.0
        self.gaps_over_5ms = 0

    def open_connection(self, users: int) -> Connection:
        """`users`: how many connections this process has in all."""
        plan, self.users = self.plan, users
        connection = self.connection(len(self.connections), plan.host, plan.port, plan.load.requests_per_connection)
        self.connections.append(connection)
        try:
            connection.connect()
        except OSError:
            pass  # each request tries again, and its row says what happened
        self.connected += 1
        if self.connected == users:
            self.all_connected.set()
        return connection

    def finish(self) -> None:
        self.finished += 1
        if self.finished == self.users:
            self.all_finished.set()

    def drive_open(self, connection: Connection) -> None:
        rows, request, start_s, pacer = self.rows, self.request, self.start_s, self.pacer
        identified = self.plan.load.request_ids
        for at_s in self.next_time:
            due_s = start_s + at_s
            if identified:
                request = with_id(self.request, connection.number, due_s)
            pacer.sleep_until(due_s)
            now_s = time.monotonic()
            if now_s > self.give_up_s:
                self.unsent.append(_unsent(due_s, now_s, connection.number))
                continue
            rows.append(connection.exchange(request, due_s))

    def drive_closed(self, connection: Connection) -> None:
        rows, request = self.rows, self.request
        while time.monotonic() < self.end_s and len(rows) < MAX_CLOSED_ROWS:
            row = connection.exchange(request, None)
            rows.append(row)
            if row.error:
                gevent.sleep(0.01)  # a refusing peer must not be hammered as fast as it can refuse

    def heartbeat(self) -> None:
        while True:
            before_s = time.monotonic()
            gevent.sleep(HEARTBEAT_S)
            # gevent's own millisecond is not a gap of the machine's
            gap_s = time.monotonic() - before_s - HEARTBEAT_S - 0.001
            self.max_gap_s = max(self.max_gap_s, gap_s)
            self.gaps_over_5ms += gap_s > 0.005

    def watchdog(self) -> None:
        while True:
            gevent.sleep(0.25)
            now_s = time.monotonic()
            for connection in self.connections:
                since_s = connection.busy_since_s
                if since_s is not None and (now_s - since_s > REQUEST_TIMEOUT_S or now_s > self.give_up_s):
                    connection.interrupt()

    def close(self) -> None:
        self.pacer.close()
        for connection in self.connections:
            connection.close()


def _unsent(due_s: float, now_s: float, connection: int) -> RequestRow:
    """Its latency is a lower bound: the trial ended before a connection was free for it."""
    return RequestRow(
        intended_s=due_s,
        sent_s=now_s,
        first_byte_s=now_s,
        last_byte_s=now_s,
        status=0,
        bytes=0,
        connection=connection,
        error="unsent",
    )


def user_class(trial: Trial | None) -> type[locust.User]:
    """`None` where no user runs: a master knows the class's name alone."""

    class ConnectionUser(locust.User):
        """One connection at a time; its single task is the whole trial."""

        @locust.task
        def drive(self) -> None:
            assert trial is not None
            connection = trial.open_connection(self.environment.runner.target_user_count)
            try:
                trial.go.wait()
                (trial.drive_open if trial.plan.load.kind == "open" else trial.drive_closed)(connection)
            finally:
                trial.finish()
            raise locust.exception.StopUser

    return ConnectionUser


def made(plan: GeneratorPlan, trial: Trial | None) -> Environment:
    return Environment(user_classes=[user_class(trial)], host=f"http://{plan.host}:{plan.port}")


def settled() -> None:
    """Rows are many and hold no cycles; a collection would be a gap in the window."""
    gc.collect()
    gc.freeze()
    gc.disable()


def measure(trial: Trial, environment: Environment, start_s: float) -> tuple[rowfile.Header, list[RequestRow]]:
    """Once all are connected: the load from `start_s` on until its last answer; locust is told of each request."""
    load = trial.plan.load
    trial.start_s = start_s
    trial.end_s = trial.start_s + load.warmup_s + load.window_s
    trial.give_up_s = trial.end_s + DRAIN_S
    helpers = [gevent.spawn(trial.heartbeat), gevent.spawn(trial.watchdog)]
    cpu_before_s, wall_before_s = _cpu_s(), time.monotonic()
    trial.go.set()
    trial.all_finished.wait(timeout=trial.give_up_s - time.monotonic() + CONNECT_TIMEOUT_S + 1.0)
    cpu_s, wall_s = _cpu_s() - cpu_before_s, time.monotonic() - wall_before_s
    gevent.killall(helpers)
    rows = sorted(trial.rows + trial.unsent, key=lambda row: row.intended_s)
    _tell_locust(environment, trial.plan, rows)
    header = rowfile.Header(
        window_start_s=trial.start_s + load.warmup_s,
        window_end_s=trial.end_s,
        cpu_s=cpu_s,
        wall_s=wall_s,
        connects=sum(connection.connects for connection in trial.connections),
        max_gap_s=trial.max_gap_s,
        gaps_over_5ms=trial.gaps_over_5ms,
        unsent=len(trial.unsent),
        users=trial.users,
    )
    return header, rows


def _tell_locust(environment: Environment, plan: GeneratorPlan, rows: list[RequestRow]) -> None:
    offset_s = time.time() - time.monotonic()
    for number, row in enumerate(rows):
        if number % TOLD_AT_ONCE == 0:
            gevent.sleep(0)  # a worker's heartbeats go on, or its master would take it for lost
        environment.events.request.fire(
            request_type="POST" if plan.load.request_bytes else "GET",
            name="/",
            response_time=(row.last_byte_s - row.intended_s) * 1000,
            response_length=row.bytes,
            start_time=row.intended_s + offset_s,
            url=environment.host,
            context={"connection": row.connection},
            exception=RuntimeError(row.error) if row.error else None,
        )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
