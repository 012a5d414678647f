"""Load drivers: start the generator inside the client workload's sandbox, wait for it, hand back its raw rows.

`OpenLoop` sends on a schedule drawn before, `ClosedLoop` as fast as answers come. Latency comes from the rows,
counted from the intended send time; locust's percentiles round to the millisecond (below 100 ms, else coarser)
and are never used.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from pathlib import Path

import testbed
from testbed.errors import PeerError, UsageError
from testbed.load import rowfile
from testbed.load.plan import CONNECT_TIMEOUT_S, DRAIN_S, GeneratorPlan
from testbed.load.schedule import check, read_trace
from testbed.model.experiment import Load, LoadRecord
from testbed.runtime.enter import owner_for
from testbed.seams import RunningLab, Spawn

CLIENT_UID = 2000
START_UP_S = 30.0
"""Importing locust takes about a second of CPU; a busy machine needs many times that."""
_numbers = itertools.count(1)


class _Driver:
    kind = ""

    def run(
        self, lab: RunningLab, *, client: str, target: tuple[str, int], plan: Load, seed: int, folder: Path
    ) -> LoadRecord:
        """The rows of the window; those of the warm-up stay in `folder`/generator/rows.bin beside them.

        Raises PeerError when the generator fails, UsageError for a plan that cannot be.
        """
        plan = dataclasses.replace(plan, kind=self.kind)
        check(plan)
        if client not in lab.sandboxes:
            raise UsageError(f"load: the lab has no sandbox {client!r}; known: {', '.join(sorted(lab.sandboxes))}")
        work = _private_folder(folder / "generator")
        job = GeneratorPlan(load=plan, host=target[0], port=target[1], seed=seed, trace_s=_trace(plan))
        _write_for_client(work / "plan.json", job.to_json())
        spawn = Spawn(
            name=f"load.{client}.{next(_numbers)}",
            sandbox=client,
            argv=[sys.executable, "-m", "testbed.load.generator", "--plan", str(work / "plan.json")],
            uid=CLIENT_UID,
            folder=work,
            env={
                "PYTHONPATH": str(Path(testbed.__file__).resolve().parent.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(work),
            },
        )
        header, rows = _wait(lab, spawn, work, plan)
        window = (header.window_start_s, header.window_end_s)
        return LoadRecord(
            rows=tuple(row for row in rows if window[0] <= row.intended_s < window[1]),
            started_s=header.window_start_s,
            ended_s=header.window_end_s,
            cpu_s=header.cpu_s,
            notes=_notes(header, plan),
            connects=header.connects,
        )


class OpenLoop(_Driver):
    kind = "open"


class ClosedLoop(_Driver):
    kind = "closed"


def _trace(plan: Load) -> tuple[float, ...]:
    if not plan.trace or plan.kind != "open":
        return ()
    try:
        text = Path(plan.trace).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"load: the trace {plan.trace} cannot be read ({error})") from error
    return read_trace(text, where=plan.trace)


def _wait(lab: RunningLab, spawn: Spawn, work: Path, plan: Load) -> tuple[rowfile.Header, list[rowfile.RequestRow]]:
    limit_s = START_UP_S + 3 * CONNECT_TIMEOUT_S + plan.warmup_s + plan.window_s + DRAIN_S
    (process,) = lab.spawn([spawn])
    try:
        code = process.wait(limit_s)
    finally:
        if process.poll() is None:
            process.signal(9)
            process.wait(5.0)
    if code is None:
        what = f"not done within {limit_s:g} s, so it was ended; is the machine overloaded?"
        raise PeerError(f"load generator in {spawn.sandbox}: {what}")
    rows_file, failure = work / "rows.bin", work / "failure.txt"
    if code != 0 or not rows_file.exists():
        said = failure.read_text()[-2000:].strip() if failure.exists() else "it left no failure.txt; see its log"
        raise PeerError(f"load generator in {spawn.sandbox}: ended with code {code}: {said}")
    return rowfile.decode(rows_file.read_bytes())


def _notes(header: rowfile.Header, plan: Load) -> tuple[str, ...]:
    notes = [
        f"generator: {header.cpu_s / header.wall_s:.1%} of a core over {header.wall_s:.2f} s",
        f"generator: longest gap {header.max_gap_s * 1000:.1f} ms, {header.gaps_over_5ms} over 5 ms",
    ]
    if header.connects != plan.connections and not plan.requests_per_connection:
        notes.append(f"generator: {header.connects} connections opened for {plan.connections} asked")
    if header.unsent:
        notes.append(f"generator: {header.unsent} requests never sent, no connection was free until the end")
    return tuple(notes)


def _private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = path.resolve()
    for stale in ("rows.bin", "rows.bin.part", "failure.txt", "locust.json"):
        (path / stale).unlink(missing_ok=True)
    _give_to_client(path)
    return path


def _write_for_client(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    _give_to_client(path)


def _give_to_client(path: Path) -> None:
    if (owner := owner_for(CLIENT_UID)) != os.geteuid():
        os.chown(path, owner, owner)
