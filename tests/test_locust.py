"""The drivers with a real generator process and a real app, over loopback."""

from __future__ import annotations

import itertools
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import registry
from testbed.errors import PeerError, UsageError
from testbed.load import rowfile
from testbed.load.connection import Connection
from testbed.load.locust import ClosedLoop, OpenLoop
from testbed.load.plan import GeneratorPlan
from testbed.load.schedule import intended_times
from testbed.model.experiment import Load, RequestRow
from testbed.seams import Spawn
from tests.loopback import App, LocalLab, LocalProcess, app

PLAN = Load(rate_rps=100, connections=4, warmup_s=0.3, window_s=1.0, response_bytes=77)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LocalLab]:
    lab = LocalLab(folder=tmp_path)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def web() -> Iterator[App]:
    with app("testbed.apps.web", "--name", "target") as started:
        yield started


def requests_seen(web: App) -> int:
    with web.connect() as connection:
        connection.sendall(b"GET /-/count HTTP/1.0\r\n\r\n")
        data = b""
        while part := connection.recv(65536):
            data += part
    return json.loads(data.partition(b"\r\n\r\n")[2])["requests"]


def test_open_loop_sends_the_schedule_drawn_from_the_seed(lab: LocalLab, web: App, tmp_path: Path) -> None:
    """Each intended time of the window is one row, none skipped or moved; the app counted the warm-up's too."""
    before = requests_seen(web)
    record = OpenLoop().run(lab, client="client", target=("127.0.0.1", web.port), plan=PLAN, seed=7, folder=tmp_path)
    after = requests_seen(web)

    times = intended_times(PLAN, random.Random(7).random)
    expected = [at_s - PLAN.warmup_s for at_s in times if at_s >= PLAN.warmup_s]
    assert [row.intended_s - record.started_s for row in record.rows] == pytest.approx(expected, abs=1e-6)
    assert after - before == len(times) + 1
    assert record.ended_s - record.started_s == pytest.approx(PLAN.window_s)
    for row in record.rows:
        assert row.intended_s <= row.sent_s <= row.first_byte_s <= row.last_byte_s
        assert (row.status, row.bytes, row.error) == (200, 77, "")
    assert {row.connection for row in record.rows} <= {0, 1, 2, 3}
    assert record.cpu_s > 0


def test_locust_counted_what_the_rows_hold(lab: LocalLab, web: App, tmp_path: Path) -> None:
    """The events were fired for every request, those of the warm-up too: locust's totals agree with the rows."""
    OpenLoop().run(lab, client="client", target=("127.0.0.1", web.port), plan=PLAN, seed=8, folder=tmp_path)

    _, rows = rowfile.decode((tmp_path / "generator" / "rows.bin").read_bytes())
    counted = json.loads((tmp_path / "generator" / "locust.json").read_text())
    assert counted == {"requests": len(rows), "failures": 0, "rows": len(rows)}


def test_a_stalled_app_is_charged_for_every_request_it_kept_waiting(lab: LocalLab, tmp_path: Path) -> None:
    """Coordinated omission: an app stopped for 0.8 s at 100/s shows tens of slow requests, not one a connection."""
    plan = replace(PLAN, connections=2, window_s=2.5, arrival="uniform")
    with app("testbed.apps.web", "--name", "stalled") as web:

        def stall() -> None:
            asked = 0  # asking for the count is counted too
            while requests_seen(web) - asked < 60:  # 0.6 s after the start, so within the window
                asked += 1
                time.sleep(0.02)
            web.process.send_signal(signal.SIGSTOP)
            time.sleep(0.8)
            web.process.send_signal(signal.SIGCONT)

        stopper = threading.Thread(target=stall)
        stopper.start()
        record = OpenLoop().run(
            lab, client="client", target=("127.0.0.1", web.port), plan=plan, seed=1, folder=tmp_path
        )
        stopper.join()

    slow = [row for row in record.rows if row.last_byte_s - row.intended_s > 0.2]
    assert len(slow) >= 40  # 0.6 s at 100/s, less what the stop's own timing costs
    assert (
        sum(row.last_byte_s - row.sent_s > 0.2 for row in record.rows) <= 2
    )  # what counting from `sent` would have shown
    assert not [row for row in record.rows if row.error]


def test_closed_loop_sends_again_as_soon_as_it_is_answered(lab: LocalLab, web: App, tmp_path: Path) -> None:
    """On each connection a request begins after the one before has ended; the app counted each one."""
    plan = replace(PLAN, window_s=0.4, warmup_s=0.1)
    before = requests_seen(web)
    record = ClosedLoop().run(lab, client="client", target=("127.0.0.1", web.port), plan=plan, seed=1, folder=tmp_path)
    _, rows = rowfile.decode((tmp_path / "generator" / "rows.bin").read_bytes())

    assert requests_seen(web) - before == len(rows) + 1
    assert len({row.connection for row in record.rows}) == 4
    assert all(row.intended_s == row.sent_s for row in rows)
    for number in range(4):
        mine = [row for row in rows if row.connection == number]
        assert all(before.last_byte_s <= after.sent_s for before, after in itertools.pairwise(mine))


def test_request_bodies_arrive(lab: LocalLab, tmp_path: Path) -> None:
    """A plan's request_bytes are what the app counts."""
    plan = replace(PLAN, request_bytes=3000, window_s=0.3, warmup_s=0.0)
    with app("testbed.apps.web", "--name", "w") as web:
        record = OpenLoop().run(
            lab, client="client", target=("127.0.0.1", web.port), plan=plan, seed=1, folder=tmp_path
        )
        with web.connect() as connection:
            connection.sendall(b"GET /-/count HTTP/1.0\r\n\r\n")
            time.sleep(0.1)
            counted = json.loads(connection.recv(65536).partition(b"\r\n\r\n")[2])

    assert counted["request_body_bytes"] == 3000 * len(record.rows) > 0


def test_nobody_listening_is_a_row_each_not_a_failure(lab: LocalLab, tmp_path: Path) -> None:
    """A refused connection is a result: every intended request has its row, with the error's name."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = ("127.0.0.1", unused.getsockname()[1])
        record = OpenLoop().run(lab, client="client", target=target, plan=PLAN, seed=1, folder=tmp_path)

    assert {row.error for row in record.rows} == {"refused"}
    assert len(record.rows) == sum(at_s >= 0.3 for at_s in intended_times(PLAN, random.Random(1).random))


def test_an_app_that_never_answers_loses_no_request_from_the_count(lab: LocalLab, tmp_path: Path) -> None:
    """What was sent times out, what never found a free connection is `unsent`; together they are the schedule."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        target = ("127.0.0.1", silent.getsockname()[1])
        record = OpenLoop().run(lab, client="client", target=target, plan=PLAN, seed=2, folder=tmp_path)
    header, rows = rowfile.decode((tmp_path / "generator" / "rows.bin").read_bytes())

    assert len(rows) == len(intended_times(PLAN, random.Random(2).random))
    assert sorted({row.error for row in rows}) == ["timeout", "unsent"]
    assert sum(row.error == "timeout" for row in rows) == PLAN.connections
    assert header.unsent == len(rows) - PLAN.connections
    assert any("never sent" in note for note in record.notes)


def test_it_is_spawned_as_the_client_in_its_sandbox_with_a_folder_of_its_own(
    lab: LocalLab, web: App, tmp_path: Path
) -> None:
    """What the runtime is asked for: the client's sandbox, the apps' user id, a private folder that holds the plan."""
    OpenLoop().run(lab, client="client", target=("127.0.0.1", web.port), plan=PLAN, seed=1, folder=tmp_path)
    (spawn,) = lab.spawned

    assert (spawn.sandbox, spawn.uid, spawn.folder) == ("client", 2000, tmp_path / "generator")
    assert spawn.folder.stat().st_mode & 0o777 == 0o700
    assert GeneratorPlan.from_json((spawn.folder / "plan.json").read_text()).load == PLAN


def test_unknown_client_names_the_known_sandboxes(lab: LocalLab, tmp_path: Path) -> None:
    """The caller's mistake is answered before anything is started."""
    with pytest.raises(UsageError, match="known: client"):
        OpenLoop().run(lab, client="clint", target=("127.0.0.1", 1), plan=PLAN, seed=1, folder=tmp_path)
    assert not lab.spawned


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "code 3"),
        ("import pathlib; pathlib.Path('{work}/failure.txt').write_text('no route'); raise SystemExit(1)", "no route"),
        ("import pathlib; pathlib.Path('{work}/rows.bin').write_bytes(b'MBROWS1')", "not a MBROWS1 file"),
    ],
)
def test_a_generator_that_fails_is_told_with_its_own_words(tmp_path: Path, program: str, said: str) -> None:
    """A dead generator is a PeerError with what it left behind, never an empty record."""

    class BrokenLab(LocalLab):
        def spawn(self, spawns: Sequence[Spawn]) -> list[LocalProcess]:
            code = program.replace("{work}", str(spawns[0].folder))
            return super().spawn([replace(spawns[0], argv=[sys.executable, "-c", code])])

    with pytest.raises(PeerError, match=said):
        OpenLoop().run(
            BrokenLab(folder=tmp_path), client="client", target=("127.0.0.1", 1), plan=PLAN, seed=1, folder=tmp_path
        )


def test_both_drivers_are_in_the_registry() -> None:
    """An experiment finds them by name."""
    assert registry.load("load", "open") is OpenLoop
    assert registry.load("load", "closed") is ClosedLoop


# The file of rows.

HEADER = rowfile.Header(
    window_start_s=1.0, window_end_s=2.0, cpu_s=0.1, wall_s=1.2, connects=4, max_gap_s=0.0, gaps_over_5ms=0, unsent=0
)
rows_strategy = st.lists(
    st.builds(
        RequestRow,
        intended_s=st.floats(0, 1e9),
        sent_s=st.floats(0, 1e9),
        first_byte_s=st.floats(0, 1e9),
        last_byte_s=st.floats(0, 1e9),
        status=st.integers(0, 999),
        bytes=st.integers(0, 2**60),
        connection=st.integers(0, 65535),
        error=st.sampled_from(["", "reset", "timeout", "status 503", "naïve"]),
    )
)


@given(rows_strategy)
def test_rows_come_back_as_they_were_written(rows: list[RequestRow]) -> None:
    """Bit for bit, errors by name."""
    assert rowfile.decode(rowfile.encode(HEADER, rows)) == (HEADER, rows)


@given(rows_strategy, st.data())
def test_a_cut_file_is_never_taken_for_a_whole_one(rows: list[RequestRow], data: st.DataObject) -> None:
    """Whatever its length: an error of ours, not fewer rows."""
    whole = rowfile.encode(HEADER, rows)
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(PeerError):
        rowfile.decode(whole[:cut])


# One connection against a peer whose bytes are written out.


@pytest.mark.parametrize(
    ("pieces", "status", "size", "error"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"], 200, 3, ""),
        ([b"HTTP/1.1 200 OK\r\nContent-", b"Length: 3\r\n\r", b"\na", b"bc"], 200, 3, ""),
        ([b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno"], 503, 2, "status 503"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, 0, ""),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"1\r\nd\r\n0\r\n", b"\r\n"],
            200,
            4,
            "",
        ),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"], 0, 0, "closed"),
        ([b"HTTP/1.1 200 OK\r\n\r\nabc"], 0, 0, "no-length"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"], 0, 0, "too-many-bytes"),
        ([b"SSH-2.0-x\r\n\r\n"], 0, 0, "not-http"),
        ([], 0, 0, "closed"),
    ],
)
def test_an_answer_is_whole_or_an_error(pieces: list[bytes], status: int, size: int, error: str) -> None:
    """However it is cut; and a short, long or foreign answer has a name, not a status."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.recv(1000)
                for piece in pieces:
                    peer.sendall(piece)
                    time.sleep(0.01)

        peer = threading.Thread(target=answer)
        peer.start()
        connection = Connection(5, *server.getsockname())
        row = connection.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 1.5)
        connection.close()
        peer.join()

    assert (row.status, row.bytes, row.error, row.connection, row.intended_s) == (status, size, error, 5, 1.5)
