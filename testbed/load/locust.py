"""Load drivers: start the generator inside the client workload's sandbox, wait for it, hand back its raw rows.

`OpenLoop` sends on a schedule drawn before, `ClosedLoop` as fast as answers come. Latency comes from the rows,
counted from the intended send time; locust's percentiles round to the millisecond (below 100 ms, else coarser)
and are never used.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path

import testbed
from testbed.errors import PeerError, UsageError
from testbed.load import rowfile
from testbed.load.plan import CONNECT_TIMEOUT_S, DRAIN_S, START_UP_S, GeneratorPlan
from testbed.load.schedule import check, intended_times, read_trace
from testbed.model.experiment import Load, LoadRecord, LoadWorker
from testbed.runtime.enter import owner_for
from testbed.seams import Process, RunningLab, Spawn
from testbed.stats import percentile

CLIENT_UID = 2000
LOOK_S = 0.2
"""How often a load of several processes is asked whether one has died."""
STALE = ("rows.bin", "rows.bin.part", "failure.txt", "locust.json", "plan.json", "port.txt")
_numbers = itertools.count(1)


class _Driver:
    kind = ""

    def run(
        self, lab: RunningLab, *, client: str, target: tuple[str, int], plan: Load, seed: int, folder: Path
    ) -> LoadRecord:
        """The rows of the window; those of the warm-up stay in `folder`/generator/rows.bin (of each worker: its own)
        beside them.

        Raises PeerError when the generator fails, UsageError for a plan that cannot be.
        """
        plan = dataclasses.replace(plan, kind=self.kind)
        check(plan)
        if client not in lab.sandboxes:
            raise UsageError(f"load: the lab has no sandbox {client!r}; known: {', '.join(sorted(lab.sandboxes))}")
        work = _private_folder(folder / "generator")
        job = GeneratorPlan(load=plan, host=target[0], port=target[1], seed=seed, trace_s=_trace(plan))
        parts = _parts(client, work, job)
        _wait(lab, parts, plan)
        read = _read(parts, job)
        header, rows = read[0] if len(read) == 1 else rowfile.merged(read)
        window = (header.window_start_s, header.window_end_s)
        return LoadRecord(
            rows=tuple(row for row in rows if window[0] <= row.intended_s < window[1]),
            started_s=header.window_start_s,
            ended_s=header.window_end_s,
            cpu_s=header.cpu_s,
            notes=_notes(header, plan),
            connects=header.connects,
            workers=tuple(_worker(part, one, plan) for part, one in zip(parts[1:], read, strict=False)),
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One process of the generator."""

    name: str
    """As an error says it."""
    plan: GeneratorPlan
    spawn: Spawn

    def left(self, name: str) -> Path:
        assert self.spawn.folder is not None
        return self.spawn.folder / self.plan.file(name)


def _parts(client: str, work: Path, job: GeneratorPlan) -> list[_Part]:
    """The only process of a load, or its master and then its workers."""
    number = next(_numbers)
    count = job.load.processes
    where = f"load generator in {client}"
    parts = []
    for worker in (None, *(range(1, count + 1) if count > 1 else ())):
        plan = dataclasses.replace(job, worker=worker)
        path = work / plan.file("plan.json")
        _write_for_client(path, plan.to_json())
        spawn = Spawn(
            name=f"load.{client}.{number}" + ("" if worker is None else f".worker{worker}"),
            sandbox=client,
            argv=[sys.executable, "-m", "testbed.load.generator", "--plan", str(path)],
            uid=CLIENT_UID,
            folder=work,
            env={
                "PYTHONPATH": str(Path(testbed.__file__).resolve().parent.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(work),
            },
        )
        who = where if count == 1 else f"{where}, " + ("master" if worker is None else f"worker {worker} of {count}")
        parts.append(_Part(name=who, plan=plan, spawn=spawn))
    return parts


def _wait(lab: RunningLab, parts: list[_Part], plan: Load) -> None:
    """Until all have ended; the first that ends badly ends the others, and is named."""
    limit_s = START_UP_S * len(parts) + 3 * CONNECT_TIMEOUT_S + plan.warmup_s + plan.window_s + DRAIN_S
    end_s = time.monotonic() + limit_s
    processes = lab.spawn([part.spawn for part in parts])
    running: dict[Process, _Part] = dict(zip(processes, parts, strict=True))
    try:
        while running and time.monotonic() < end_s:
            first = next(iter(running))
            first.wait(limit_s if len(parts) == 1 else LOOK_S)
            # Workers first: where one has died, its master's complaint is only the echo.
            for process in reversed(list(running)):
                if (code := process.poll()) is not None:
                    _ended(running.pop(process), code)
    finally:
        for process in running:
            process.signal(9)
        for process in running:
            process.wait(5.0)
    if running:
        who = "; ".join(part.name for part in running.values())
        raise PeerError(f"{who}: not done within {limit_s:g} s, so it was ended; is the machine overloaded?")


def _ended(part: _Part, code: int) -> None:
    wants_rows = part.plan.worker is not None or part.plan.load.processes == 1
    if code != 0 or (wants_rows and not part.left("rows.bin").exists()):
        failure = part.left("failure.txt")
        said = failure.read_text()[-2000:].strip() if failure.exists() else "it left no failure.txt; see its log"
        raise PeerError(f"{part.name}: ended with code {code}: {said}")


def _read(parts: list[_Part], job: GeneratorPlan) -> list[tuple[rowfile.Header, list[rowfile.RequestRow]]]:
    """The rows of each process that sent. Raises PeerError where several did not share the load as they were to."""
    if len(parts) == 1:
        return [rowfile.decode(parts[0].left("rows.bin").read_bytes())]
    read = [rowfile.decode(part.left("rows.bin").read_bytes()) for part in parts[1:]]
    sent, connections = sum(len(rows) for _, rows in read), sum(header.users for header, _ in read)
    counted = json.loads(parts[0].left("locust.json").read_text())["requests"]
    wrong = []
    if counted != sent:
        wrong.append(f"{sent} requests in its workers' rows, locust's master counted {counted}")
    if connections != job.load.connections:
        wrong.append(f"{connections} connections were dealt out, {job.load.connections} asked")
    if job.load.kind == "open" and sent != (
        due := len(intended_times(job.load, random.Random(job.seed).random, job.trace_s))
    ):
        wrong.append(f"{sent} requests in its workers' rows, the schedule has {due}")
    if wrong:
        raise PeerError(f"{parts[0].name}: {'; '.join(wrong)}")
    return read


def _worker(part: _Part, read: tuple[rowfile.Header, list[rowfile.RequestRow]], plan: Load) -> LoadWorker:
    header, rows = read
    lags_ms = [
        (r.sent_s - r.intended_s) * 1e3 for r in rows if header.window_start_s <= r.intended_s < header.window_end_s
    ]
    return LoadWorker(
        name=f"worker {part.plan.worker}",
        requests=len(lags_ms),
        cpu_s=header.cpu_s,
        send_lag_p99_ms=percentile(lags_ms, 99) if lags_ms and plan.kind == "open" else None,
    )


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
    for stale in STALE:
        for left in path.glob(f"*{stale}"):
            left.unlink()
    _give_to_client(path)
    return path


def _write_for_client(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    _give_to_client(path)


def _give_to_client(path: Path) -> None:
    if (owner := owner_for(CLIENT_UID)) != os.geteuid():
        os.chown(path, owner, owner)
