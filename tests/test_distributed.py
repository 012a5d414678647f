"""A load of several generator processes: locust's master and workers, over loopback."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import PeerError, UsageError
from testbed.load import rowfile
from testbed.load.locust import ClosedLoop, OpenLoop
from testbed.load.schedule import check, intended_times, share
from testbed.model.experiment import Load, RequestRow
from testbed.seams import Spawn
from tests.loopback import App, LocalLab, LocalProcess, app

PLAN = Load(rate_rps=150, connections=5, warmup_s=0.3, window_s=1.0, response_bytes=77, processes=2)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalLab]:
    made = LocalLab(folder=tmp_path)
    yield made
    made.down()


@pytest.fixture(scope="module")
def web() -> Iterator[App]:
    with app("testbed.apps.web", "--name", "target") as started:
        yield started


def seen(web: App) -> int:
    with web.connect() as connection:
        connection.sendall(b"GET /-/count HTTP/1.0\r\n\r\n")
        data = b""
        while part := connection.recv(65536):
            data += part
    return json.loads(data.partition(b"\r\n\r\n")[2])["requests"]


@given(st.lists(st.floats(0, 100), max_size=50).map(sorted), st.integers(1, 7))
def test_shares_together_are_the_schedule(times: list[float], processes: int) -> None:
    """Each time is some worker's, and no other's; no worker has two more than another."""
    shares = [share(times, processes, worker) for worker in range(1, processes + 1)]

    assert sorted(at_s for mine in shares for at_s in mine) == times
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert share(times, processes, None) == times


@pytest.mark.parametrize("processes", [0, -1, 6, 65])
def test_each_process_needs_a_connection(processes: int) -> None:
    """What cannot be is answered before anything is started."""
    with pytest.raises(UsageError, match="processes"):
        check(replace(PLAN, processes=processes, connections=5 if processes < 64 else 100))


def test_several_processes_send_the_schedule_that_one_would(local: LocalLab, web: App, tmp_path: Path) -> None:
    """Every intended time is one row of one worker; the app, the rows and locust's own master count the same."""
    before = seen(web)
    record = OpenLoop().run(local, client="client", target=("127.0.0.1", web.port), plan=PLAN, seed=7, folder=tmp_path)
    after = seen(web)

    times = intended_times(PLAN, random.Random(7).random)
    work = tmp_path / "generator"
    parts = [rowfile.decode((work / f"worker{n}-rows.bin").read_bytes()) for n in (1, 2)]
    begun_s = record.started_s - PLAN.warmup_s
    for number, (_, rows) in enumerate(parts):
        assert [row.intended_s - begun_s for row in rows] == pytest.approx(times[number::2], abs=1e-6)
    expected = [at_s for at_s in times if at_s >= PLAN.warmup_s]
    assert [row.intended_s - begun_s for row in record.rows] == pytest.approx(expected, abs=1e-6)
    assert after - before == len(times) + 1
    counted = json.loads((work / "locust.json").read_text())
    assert counted == {"requests": len(times), "failures": 0, "rows": len(times)}
    assert {row.connection for row in record.rows} <= set(range(5))
    assert sorted(header.users for header, _ in parts) == [2, 3]
    assert [w.name for w in record.workers] == ["worker 1", "worker 2"]
    assert sum(w.requests for w in record.workers) == len(record.rows)
    assert record.cpu_s == pytest.approx(sum(w.cpu_s for w in record.workers))
    assert all(w.send_lag_p99_ms is not None for w in record.workers)


def test_a_closed_loop_has_its_connections_dealt_out(local: LocalLab, web: App, tmp_path: Path) -> None:
    """Every connection sends again when it is answered, whichever process has it; all are counted once."""
    plan = replace(PLAN, window_s=0.4, warmup_s=0.1)
    before = seen(web)
    target = ("127.0.0.1", web.port)
    record = ClosedLoop().run(local, client="client", target=target, plan=plan, seed=1, folder=tmp_path)

    counted = json.loads((tmp_path / "generator" / "locust.json").read_text())
    assert seen(web) - before == counted["requests"] + 1
    assert {row.connection for row in record.rows} == set(range(5))


class Killing(LocalLab):
    """Kills the process whose name ends so, once it has told the driver what it is."""

    ending = ""

    def spawn(self, spawns: Sequence[Spawn]) -> list[LocalProcess]:
        made = super().spawn(spawns)
        (victim,) = [p for p in made if p.name.endswith(self.ending)]

        def kill() -> None:
            end_s = time.monotonic() + 30
            assert spawns[0].folder is not None
            while time.monotonic() < end_s and not (spawns[0].folder / "port.txt").exists():
                time.sleep(0.02)
            victim.signal(signal.SIGKILL)

        threading.Thread(target=kill).start()
        return made


@pytest.mark.parametrize(("ending", "named"), [(".worker2", "worker 2 of 2"), ("", "master")])
def test_a_process_that_dies_fails_the_trial_by_name(tmp_path: Path, web: App, ending: str, named: str) -> None:
    """The others are ended with it: half of a load is another load."""

    class Lab(Killing):
        def spawn(self, spawns: Sequence[Spawn]) -> list[LocalProcess]:
            self.ending = ending or spawns[0].name
            return super().spawn(spawns)

    made = Lab(folder=tmp_path)
    plan = replace(PLAN, window_s=20.0)
    with pytest.raises(PeerError, match=f"load generator in client, {named}: ended with code -9"):
        OpenLoop().run(made, client="client", target=("127.0.0.1", web.port), plan=plan, seed=1, folder=tmp_path)
    assert all(process.poll() is not None for process in made.processes)


def test_rows_that_locust_did_not_count_fail_the_trial(local: LocalLab, web: App, tmp_path: Path) -> None:
    """The master's sum is a second judge; a request lost between two files must not go unnoticed."""
    from testbed.load import locust as driver

    OpenLoop().run(local, client="client", target=("127.0.0.1", web.port), plan=PLAN, seed=7, folder=tmp_path)
    work = tmp_path / "generator"
    job = driver.GeneratorPlan.from_json((work / "plan.json").read_text())
    parts = [
        driver._Part(name=name, plan=replace(job, worker=worker), spawn=spawn)
        for name, worker, spawn in zip(("master", "w1", "w2"), (None, 1, 2), local.spawned, strict=True)
    ]
    header, rows = driver._read(parts, job)[0]
    (work / "worker1-rows.bin").write_bytes(rowfile.encode(header, rows[1:]))

    with pytest.raises(PeerError, match=rf"{len(rows) * 2 - 1}|locust's master counted.*the schedule has"):
        driver._read(parts, job)


def test_merged_rows_are_in_order_with_connections_of_their_own() -> None:
    """Worker after worker; what each says of itself is added up, or the worst."""

    def part(users: int, *at_s: float) -> tuple[rowfile.Header, list[RequestRow]]:
        header = rowfile.Header(
            window_start_s=1.0, window_end_s=2.0, cpu_s=0.1, wall_s=1.2 + users, connects=users, max_gap_s=users / 10,
            gaps_over_5ms=1, unsent=1, users=users,
        )  # fmt: skip
        rows = [
            RequestRow(
                intended_s=t, sent_s=t, first_byte_s=t, last_byte_s=t, status=200, bytes=0, connection=n % users
            )
            for n, t in enumerate(at_s)
        ]
        return header, rows

    header, rows = rowfile.merged([part(2, 1.1, 1.5, 1.6), part(3, 1.2, 1.4)])

    assert [(r.intended_s, r.connection) for r in rows] == [(1.1, 0), (1.2, 2), (1.4, 3), (1.5, 1), (1.6, 0)]
    assert (header.users, header.connects, header.unsent, header.gaps_over_5ms) == (5, 5, 2, 2)
    assert (header.max_gap_s, header.wall_s, header.cpu_s) == (0.3, 4.2, 0.2)
    other = replace(part(1, 1.1)[0], window_start_s=1.5)
    with pytest.raises(PeerError, match="different windows"):
        rowfile.merged([part(2, 1.1), (other, [])])
