"""The load generator's program: locust, as a library, inside the client workload's sandbox.

    python -m testbed.load.generator --plan plan.json

reads a `GeneratorPlan`; rows.bin appears beside it, whole or not at all. What its users do is in `users`; of a load of
several processes, one is locust's master and the others are its workers (`distributed`).
"""

from __future__ import annotations

import locust  # isort: skip  # noqa: F401 - patches the standard library for gevent: before anything that uses sockets

import argparse
import json
import logging
import sys
import time
import traceback
from pathlib import Path

from testbed.load import distributed, rowfile, users
from testbed.load.plan import CONNECT_TIMEOUT_S, GeneratorPlan, leave

START_AFTER_S = 0.1


def alone(plan: GeneratorPlan, folder: Path) -> None:
    """All of the load from this process."""
    trial = users.Trial(plan)
    environment = users.made(plan, trial)
    runner = environment.create_local_runner()
    runner.start(plan.load.connections, spawn_rate=plan.load.connections)
    trial.all_connected.wait(timeout=CONNECT_TIMEOUT_S * 2)
    users.settled()
    header, rows = users.measure(trial, environment, time.monotonic() + START_AFTER_S)
    runner.quit()
    trial.close()
    leave(folder / plan.file("rows.bin"), rowfile.encode(header, rows))
    total = environment.stats.total
    counted = {"requests": total.num_requests, "failures": total.num_failures, "rows": len(rows)}
    (folder / "locust.json").write_text(json.dumps(counted))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.load.generator", description="drive load by a plan")
    parser.add_argument("--plan", type=Path, required=True, help="a GeneratorPlan as JSON")
    path: Path = parser.parse_args(argv).plan
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    plan = GeneratorPlan.from_json(path.read_text())
    part = alone if plan.load.processes == 1 else distributed.lead if plan.worker is None else distributed.work
    try:
        part(plan, path.parent)
    except (Exception, SystemExit):  # locust leaves by the second where its port is taken
        # The orchestrator sees this folder, not our stderr.
        path.with_name(plan.file("failure.txt")).write_text(traceback.format_exc())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
