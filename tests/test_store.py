"""A run's folder: whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import store
from testbed.errors import MachineError, UsageError
from testbed.model.experiment import Experiment, Finding, Load, Measurement, RequestRow, Result
from testbed.model.topology import Topology

EXPERIMENT = Experiment(
    name="quickstart", question="what?", topology="pair", planes=("none",), client="a", target="echo", load=Load()
)
PLAN = store.Plan(
    topology=Topology(name="pair", nodes=(), workloads=(), services=(), links=()),
    seed=7,
    block_order=(("none", "ambient-l4"),),
    runtime="netns",
    link_kind="wire",
    gate={"error_share": 0.0},
)


def new_run(root: Path, run_id: str = "first") -> store.Run:
    return store.Run.create(root, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z", run_id=run_id)


def rows(trial: str, count: int = 3, value: float = 1.5) -> list[Measurement]:
    return [
        Measurement(
            round=1,
            trial=trial,
            block=0,
            plane="none",
            component=f"c{i}",
            metric="m",
            unit="ms",
            value=value,
            reason='a,"b"\nc',
        )
        for i in range(count)
    ]


def request() -> RequestRow:
    return RequestRow(
        intended_s=1.0, sent_s=1.001, first_byte_s=1.002, last_byte_s=1.003, status=200, bytes=128, connection=0
    )


FINDING = Finding(
    id="packets.tls",
    plane="none",
    segment="a--b",
    statement="s",
    result=Result.HOLDS,
    evidence="x.pcapng",
    packets=(3, 5),
)


def test_what_was_appended_is_read_back_equal(tmp_path: Path) -> None:
    """Measurements, findings and requests survive the disk unchanged, quotes, commas and line ends included."""
    with new_run(tmp_path) as run:
        run.append_trial(rows("t1"), [request()] * 3)
        run.append_findings([FINDING])
        run.finish(ended="2026-01-02T03:05:05Z")
    read = store.Run.open(run.path)

    assert read.measurements() == rows("t1")
    assert read.findings() == [FINDING]
    assert read.whole_trials() == ("t1",)
    assert read.info["ended"] == "2026-01-02T03:05:05Z"
    assert read.info["plan"]["experiment"]["load"]["rate_rps"] == 100.0
    import pyarrow.parquet as pq

    table = pq.read_table(read.request_files()["t1"])
    assert table.num_rows == 3 and table.column("last_byte_s").to_pylist() == [1.003] * 3
    assert set(table.column("trial").to_pylist()) == {"t1"}


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), grow=st.binary(max_size=40), keep=st.integers(0, 3))
def test_a_kill_at_any_byte_costs_only_the_trial_in_progress(
    tmp_path_factory: pytest.TempPathFactory, cut: int, grow: bytes, keep: int
) -> None:
    """Whatever half-written bytes follow the last journal line, and wherever that line is torn, whole trials stay."""
    root = tmp_path_factory.mktemp("runs")
    with new_run(root) as run:
        sizes = [(run.path / "measurements.csv").stat().st_size]
        for number in range(3):
            run.append_trial(rows(f"t{number}"), [request()])
            sizes.append((run.path / "measurements.csv").stat().st_size)
    journal = (run.path / "journal.jsonl").read_bytes()
    whole_lines = journal.splitlines(keepends=True)[: keep + 1]
    torn = b"".join(journal.splitlines(keepends=True)[keep + 1 :])
    (run.path / "journal.jsonl").write_bytes(b"".join(whole_lines) + torn[: cut % (len(torn.split(b"\n")[0]) + 1)])
    with (run.path / "measurements.csv").open("ab") as file:
        file.write(grow)
    expected = tuple(f"t{n}" for n in range(keep))

    assert store.Run.open(run.path).whole_trials() == expected
    with store.Run.resume(run.path, now="2026-01-02T04:00:00Z") as again:
        assert again.whole_trials() == expected
        # Other people's scripts read the CSV without our journal: nothing half written may be left in it.
        assert (run.path / "measurements.csv").stat().st_size == sizes[keep]
        again.append_trial(rows("later"), [request()])
    read = store.Run.open(run.path)
    assert read.measurements() == [m for t in (*expected, "later") for m in rows(t)]
    assert list(read.request_files()) == [*expected, "later"]
    assert sorted(read.request_files().values()) == sorted((run.path / "requests").iterdir())


def test_a_writer_killed_between_trials_loses_nothing_stored(tmp_path: Path) -> None:
    """A real SIGKILL while trials are being appended leaves a run that opens, resumes and holds whole trials only."""
    script = (
        "import sys; from pathlib import Path; from tests.test_store import new_run, rows, request\n"
        "run = new_run(Path(sys.argv[1]))\n"
        "for n in range(10000):\n    run.append_trial(rows(f't{n}', 20), [request()] * 5); print(n, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(8)]
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0].split()
    stored = int(rest[-1]) if rest else seen[-1]

    with store.Run.resume(tmp_path / "quickstart" / "first", now="2026-01-02T04:00:00Z") as run:
        whole = run.whole_trials()
        assert len(whole) >= stored + 1
        assert run.measurements() == [m for t in whole for m in rows(t, 20)]


def test_no_second_process_writes_to_a_run(tmp_path: Path) -> None:
    """Two writers would mix their trials; the second is told so."""
    with new_run(tmp_path) as run, pytest.raises(UsageError, match="another process is writing"):
        store.Run.resume(run.path, now="2026-01-02T04:00:00Z")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """Past the file-size limit the append fails as a whole, says what is safe, and goes on when there is room."""
    with new_run(tmp_path) as run:
        run.append_trial(rows("t1"))
        size = (run.path / "measurements.csv").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            with pytest.raises(MachineError, match=r"1 trials stored before are whole; free some space"):
                run.append_trial(rows("t2", 500))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (run.path / "measurements.csv").stat().st_size == size
        assert store.Run.open(run.path).measurements() == rows("t1")
        run.append_trial(rows("t2", 500))
    assert store.Run.open(run.path).whole_trials() == ("t1", "t2")


@pytest.mark.root
def test_a_really_full_file_system_keeps_every_stored_trial(tmp_path: Path) -> None:
    """A tmpfs of 256 KiB takes trials until it is full; the last one fails aloud and all before it are whole."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a tmpfs in a mount namespace of its own")
    script = (
        "import sys; from pathlib import Path; from testbed import store; from testbed.errors import MachineError\n"
        "from tests.test_store import new_run, rows, request\n"
        "run = new_run(Path(sys.argv[1])); n = 0\n"
        "try:\n"
        "    while n < 5000:\n        run.append_trial(rows(f't{n}', 50), [request()] * 50); n += 1\n"
        "except MachineError as error:\n"
        "    read = store.Run.open(run.path)\n"
        "    assert read.whole_trials() == tuple(f't{i}' for i in range(n)), read.whole_trials()\n"
        "    assert read.measurements() == [m for i in range(n) for m in rows(f't{i}', 50)]\n"
        "    assert not list(run.path.rglob('*.tmp'))\n"
        "    print('full after', n, error)\n"
    )
    mounted = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
    )

    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout and "full after 0 " not in done.stdout


def test_a_run_of_another_format_is_refused_readably(tmp_path: Path) -> None:
    """The reader says which format it found, which it reads, and what to do."""
    with new_run(tmp_path) as run:
        pass
    info = json.loads((run.path / "run.json").read_text()) | {"format": 99}
    (run.path / "run.json").write_text(json.dumps(info))

    with pytest.raises(UsageError, match=r"format 99, this version reads format 1; use the version that wrote it"):
        store.Run.open(run.path)
    with pytest.raises(UsageError, match=r"no run\.json"):
        store.Run.open(tmp_path)


def test_a_measurements_file_cut_after_the_run_is_noticed(tmp_path: Path) -> None:
    """Bytes that the journal vouches for and the file has no more are an error, not a shorter table."""
    with new_run(tmp_path) as run:
        run.append_trial(rows("t1"))
    path = run.path / "measurements.csv"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(UsageError, match="cut or edited"):
        store.Run.open(run.path).measurements()


def finding(statement: str) -> Finding:
    return Finding(
        id="packets.x", plane="none", segment="a--b", statement=statement, result=Result.HOLDS, evidence="x.pcapng"
    )


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("measurements.csv", lambda data: data.replace(b"1.5", b"0.5"), "not those that were written"),
        ("measurements.csv", lambda data: data.replace(b",1.5,", b",a lot,"), "not those that were written"),
        ("findings.jsonl", lambda data: data.replace(b"holds", b"HOLDS"), "not those that were written"),
        ("findings.jsonl", lambda data: data.replace(b'"holds"', b'"broken"'), "not those that were written"),
        ("findings.jsonl", None, "it is gone"),
    ],
)
def test_an_edit_after_the_run_is_noticed(tmp_path: Path, file: str, spoil: object, said: str) -> None:
    """Also one that leaves the file as long as it was; the journal knows what was written."""
    with new_run(tmp_path) as run:
        run.append_trial(rows("t1"))
        run.append_findings([finding("one"), finding("two")])
        path = run.path / file
    path.write_bytes(spoil(path.read_bytes())) if spoil else path.unlink()  # type: ignore[operator]

    read = store.Run.open(path.parent)
    with pytest.raises(UsageError, match=rf"{file}: .*{said}.*restore it from a copy"):
        read.measurements() if file == "measurements.csv" else read.findings()


@pytest.mark.parametrize("spoil", [lambda data: data.replace(b"holds", b"HOLDS"), lambda data: b"\n" + data[1:]])
def test_a_run_from_before_the_checksums_is_read_or_refused_readably(tmp_path: Path, spoil: object) -> None:
    """Its edits of equal length are seen where they no longer read."""
    with new_run(tmp_path) as run:
        run.append_findings([finding("a line break\u2028of its own")])
        journal, findings = run.path / "journal.jsonl", run.path / "findings.jsonl"
    old = [{k: v for k, v in json.loads(line).items() if k != "crc32"} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in old))

    assert [f.statement for f in store.Run.open(run.path).findings()] == ["a line break\u2028of its own"]
    findings.write_bytes(spoil(findings.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UsageError, match="line 1 does not read"):
        store.Run.open(run.path).findings()


def test_a_run_from_before_cells_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table has no such column: every row is of the one cell there was."""
    with monkeypatch.context() as before:
        before.setattr(store, "COLUMNS", tuple(c for c in store.COLUMNS if c != "cell"))
        with new_run(tmp_path) as run:
            run.append_trial(rows("t1"))
    header = (run.path / "measurements.csv").read_text().splitlines()[0]

    assert "cell" not in header.split(",")
    assert store.Run.open(run.path).measurements() == rows("t1")


def test_a_run_without_its_plan_is_refused_readably(tmp_path: Path) -> None:
    """Something named run.json with our format number is not yet a run."""
    with new_run(tmp_path) as run:
        path = run.path
    (path / "run.json").write_text('{"format": 1}')

    with pytest.raises(UsageError, match="lacks experiment, plan"):
        store.Run.open(path)


def test_captures_are_private_and_their_secrets_are_seen(tmp_path: Path) -> None:
    """Key material is readable by its owner only, and a capture with TLS secrets inside is named."""
    header = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    secrets = struct.pack("<IIIII", 0x0000000A, 20, 0x544C534B, 0, 20)
    with new_run(tmp_path) as run:
        plain, keyed = run.capture_path("plain.pcapng"), run.capture_path("keyed.pcapng")
        assert keyed.stat().st_mode & 0o777 == 0o600
        plain.write_bytes(header)
        keyed.write_bytes(header + secrets)
        keyed.chmod(0o644)
        run.finish(ended="2026-01-02T03:05:05Z")

    assert keyed.stat().st_mode & 0o777 == 0o600
    assert keyed.parent.stat().st_mode & 0o777 == 0o700
    assert run.captures_with_secrets() == ["keyed.pcapng"]


def test_a_second_run_of_the_same_second_gets_its_own_folder(tmp_path: Path) -> None:
    """Runs never share a folder; a name chosen by the caller is never taken twice."""
    a = store.Run.create(tmp_path, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z")
    b = store.Run.create(tmp_path, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z")

    assert (a.path.name, b.path.name) == ("20260102T030405Z", "20260102T030405Z-2")
    with pytest.raises(UsageError, match="exists"):
        store.Run.create(tmp_path, EXPERIMENT, PLAN, started="x", run_id=a.path.name)
    with pytest.raises(UsageError, match="cannot name"):
        store.Run.create(tmp_path, EXPERIMENT, PLAN, started="x", run_id="../up")
    assert store.runs(tmp_path) == [a.path, b.path]


def test_rows_of_two_trials_are_not_taken_as_one(tmp_path: Path) -> None:
    """A trial is the unit of wholeness; a stored one is not stored again."""
    with new_run(tmp_path) as run:
        with pytest.raises(UsageError, match="one trial"):
            run.append_trial([*rows("t1"), *rows("t2")])
        run.append_trial(rows("t1"))
        with pytest.raises(UsageError, match="stored already"):
            run.append_trial(rows("t1"))
    with pytest.raises(UsageError, match="reading only"):
        store.Run.open(run.path).append_trial(rows("t9"))


def test_runs_begun_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    """Whichever renames second takes the next name, and says it in its run.json."""
    made = [store.Run.create(tmp_path, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z") for _ in range(2)]
    names = [run.path.name for run in made]
    for run in made:
        run.close()

    assert names == ["20260102T030405Z", "20260102T030405Z-2"]
    assert [store.Run.open(tmp_path / "quickstart" / name).info["run"] for name in names] == names


def test_a_draft_whose_maker_was_killed_goes_with_the_next_run(tmp_path: Path) -> None:
    """One whose maker lives is left alone: it is about to be renamed."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    home = tmp_path / "quickstart"
    for pid in (dead.pid, os.getpid()):
        (home / f".new-other-{pid}").mkdir(parents=True)

    new_run(tmp_path).close()

    assert [p.name for p in home.glob(".new-*")] == [f".new-other-{os.getpid()}"]


def test_what_a_killed_capture_left_goes_on_resume(tmp_path: Path) -> None:
    """A capture under its final name is whole and stays."""
    new_run(tmp_path).close()
    folder = tmp_path / "quickstart" / "first" / "captures"
    for name in ("none.pcapng", "none.pcapng.77.raw", "none.pcapng.part"):
        (folder / name).write_bytes(b"x")

    store.Run.resume(folder.parent, now="2026-01-02T04:00:00Z").close()

    assert [p.name for p in folder.iterdir()] == ["none.pcapng"]
