"""Locust's own distributed mode, for more load than one process can send on time.

The master (`lead`) takes no part in sending: locust's dispatcher gives each worker its share of the connections, and
the master tells all of them one instant to begin at, of the clock that they share. Each worker (`work`) draws the whole
schedule from the seed and sends its share of it, writes its rows, and reports its statistics as locust's workers do.
The master's sum of those reports is a second count of all requests.

They talk over loopback inside the client's namespace, which no plane captures.
"""

from __future__ import annotations

import locust  # isort: skip  # noqa: F401 - patches the standard library for gevent: before anything that uses sockets

import json
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from testbed.load import rowfile, users
from testbed.load.plan import CONNECT_TIMEOUT_S, DRAIN_S, START_UP_S, GeneratorPlan, leave

START_AFTER_S = 0.3
"""Until then the master's word has reached every worker."""
LOOPBACK = "127.0.0.1"
PORT_FILE = "port.txt"


class _Heard:
    """Which workers have said a thing, and what with it."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.said: dict[int, Any] = {}
        self.all = Event()

    def __call__(self, environment: Any, msg: Any, **_: Any) -> None:
        self.said[msg.data["worker"]] = msg.data
        if len(self.said) == self.wanted:
            self.all.set()

    def wait(self, within_s: float, what: str) -> None:
        if not self.all.wait(timeout=within_s):
            silent = [f"worker {n}" for n in range(1, self.wanted + 1) if n not in self.said]
            raise TimeoutError(f"{', '.join(silent)} not {what} within {within_s:g} s")


def lead(plan: GeneratorPlan, folder: Path) -> None:
    """The master: begins once every worker is there, ends once every worker has told all it sent."""
    load, count = plan.load, plan.load.processes
    environment = users.made(plan, None)
    runner = environment.create_master_runner(LOOPBACK, 0)
    here, connected, finished = _Heard(count), _Heard(count), _Heard(count)
    for word, heard in (("here", here), ("connected", connected), ("finished", finished)):
        runner.register_message(word, heard)
    leave(folder / PORT_FILE, str(runner.server.port).encode())
    here.wait(START_UP_S, "started")
    runner.start(load.connections, spawn_rate=load.connections)
    connected.wait(CONNECT_TIMEOUT_S * 2 + START_UP_S, "connected")
    runner.send_message("go", {"start_s": time.monotonic() + START_AFTER_S})
    finished.wait(load.warmup_s + load.window_s + DRAIN_S + CONNECT_TIMEOUT_S + START_UP_S, "done")
    total = environment.stats.total
    counted = {
        "requests": total.num_requests,
        "failures": total.num_failures,
        "rows": sum(said["rows"] for said in finished.said.values()),
    }
    leave(folder / "locust.json", json.dumps(counted).encode())
    runner.quit()


def work(plan: GeneratorPlan, folder: Path) -> None:
    """A worker: its share of the schedule, over as many connections as locust's dispatcher gives it."""
    assert plan.worker is not None
    trial = users.Trial(plan)
    environment = users.made(plan, trial)
    runner = environment.create_worker_runner(LOOPBACK, _port(folder / PORT_FILE))
    begin: AsyncResult = AsyncResult()
    runner.register_message("go", lambda environment, msg, **_: begin.set(msg.data["start_s"]))
    runner.send_message("here", {"worker": plan.worker})
    trial.all_connected.wait(timeout=CONNECT_TIMEOUT_S * 2 + START_UP_S)
    users.settled()
    runner.send_message("connected", {"worker": plan.worker})
    header, rows = users.measure(trial, environment, begin.get(timeout=CONNECT_TIMEOUT_S * 2 + START_UP_S))
    trial.close()
    leave(folder / plan.file("rows.bin"), rowfile.encode(header, rows))
    # What locust's own reporter would say in its next turn, three seconds later at most; each request is in one report.
    report: dict[str, Any] = {}
    environment.events.report_to_master.fire(client_id=runner.client_id, data=report)
    runner.send_message("stats", report)
    runner.send_message("finished", {"worker": plan.worker, "rows": len(rows)})
    runner.greenlet.join(timeout=START_UP_S)  # until the master has heard it and says so


def _port(path: Path) -> int:
    end_s = time.monotonic() + START_UP_S
    while time.monotonic() < end_s:
        if path.exists():
            return int(path.read_text())
        gevent.sleep(0.02)
    raise TimeoutError(f"the master was not there within {START_UP_S:g} s")
