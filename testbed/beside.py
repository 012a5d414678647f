"""A second load beside the one that is measured: a noisy neighbour, driven from another client by the same generator.

It begins as the measured one begins to start up and lasts longer than it; whether it did is looked at afterwards, and
where it left part of the window alone the trial does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.deploy import Deployment
from testbed.errors import TestbedError
from testbed.model.experiment import Beside, Load, LoadRecord
from testbed.registry import load
from testbed.standing import with_rows
from testbed.stats import percentile
from testbed.trial import Outcome

LASTS_LONGER_S = 1.0
JOIN_S = 60.0
"""The generator gives up by itself long before."""
LEAST_COVERED = 0.95
"""Of the measured window."""
LEAST_ANSWERED = 0.5
"""Of what it sent: less, and it was no neighbour but a casualty."""


@dataclass(slots=True)
class Neighbour:
    """Its record once it has ended, or why there is none."""

    record: LoadRecord | None = None
    failure: str = ""

    def judged(self, outcome: Outcome) -> Outcome:
        """The measured trial with what the neighbour did. Costs a request are left out: its work is in them."""
        kept = tuple(m for m in outcome.measurements if m.metric != "cpu_per_1000_requests")
        outcome = replace(outcome, measurements=kept)
        if self.record is None:
            return with_rows(outcome, [], [f"the load beside failed: {self.failure or 'it gave no record'}"])
        answered = [r for r in self.record.rows if not r.error and r.status == 200]
        share = len(answered) / max(1, len(self.record.rows))
        span_s = max(self.record.ended_s - self.record.started_s, 1e-9)
        reasons = [] if share >= LEAST_ANSWERED else [f"the load beside: {share:.0%} of its requests answered"]
        if (part := covered(self.record, outcome)) < LEAST_COVERED:
            reasons.append(f"the load beside covered {part:.0%} of the window")
        rows = [("testbed", "beside_rate", "1/s", len(answered) / span_s), ("testbed", "beside_errors", "", 1 - share)]
        if answered:
            p99_ms = percentile([(r.last_byte_s - r.intended_s) * 1e3 for r in answered], 99)
            rows.append(("testbed", "beside_p99", "ms", p99_ms))
        return with_rows(outcome, rows, reasons)


def covered(record: LoadRecord, outcome: Outcome) -> float:
    """Share of the measured requests that were due while the neighbour sent; 1 where there are none to look at."""
    due = [r.intended_s for r in outcome.requests]
    return sum(record.started_s <= at_s < record.ended_s for at_s in due) / len(due) if due else 1.0


@contextmanager
def beside(
    deployment: Deployment, plan: Beside | None, measured: Load, *, seed: int, folder: Path
) -> Iterator[Neighbour]:
    """Runs during the body and ends with it; `None` runs nothing."""
    neighbour = Neighbour()
    if plan is None:
        yield neighbour
        return
    topology = deployment.lab.topology
    name, _, port = plan.target.partition(":")
    service = topology.service(name)
    window_s = measured.warmup_s + measured.window_s + LASTS_LONGER_S
    lasting = replace(plan.load, warmup_s=0.0, window_s=window_s)

    def drive() -> None:
        try:
            neighbour.record = load("load", plan.load.kind)().run(  # type: ignore[attr-defined]
                deployment.lab.running,
                client=plan.client,
                target=(service.address, int(port or service.ports[0].port)),
                plan=lasting,
                seed=seed + 1,
                folder=folder,
            )
        except TestbedError as error:
            neighbour.failure = " ".join(str(error).split())

    thread = threading.Thread(target=drive, name="load-beside", daemon=True)
    thread.start()
    yield neighbour  # where the body fails, the lab's end ends this load, too
    thread.join(timeout=JOIN_S)
