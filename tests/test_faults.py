"""What the orchestration does when it is interrupted, killed or out of disk; each verb in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.runtime import ownership
from testbed.store import Run
from testbed.store import runs as stored_runs
from tests.labs import needs_root
from tests.tiny import begin, reach

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Results and labs of this test alone."""
    folders = {"MESHBED_RESULTS": str(tmp_path / "results"), "MESHBED_STATE": str(tmp_path / "state")}
    for name, folder in folders.items():
        monkeypatch.setenv(name, folder)
    return folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 384 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def processes_of(state: Path) -> list[str]:
    """Whoever names this test's state folder in its command line or environment, but for ourselves."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if str(state).encode() in told and words:
                found.append(words)
    return found


def nothing_is_left(tmp_path: Path) -> None:
    """No lab, no cgroup, no folder, no process, no half-written file."""
    assert ownership.gc(dry_run=True) == []
    assert ownership.labs() == []
    assert processes_of(tmp_path / "state") == []
    unfinished = [p for p in tmp_path.rglob("results/**/*") if p.suffix in (".raw", ".part", ".tmp")]
    assert unfinished == []


def the_run(tmp_path: Path) -> Run:
    (path,) = stored_runs(tmp_path / "results")
    return Run.open(path)


def eventually(true: object, limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(true())


class TestInterrupted:
    @pytest.mark.parametrize(
        ("phase", "later_s", "plane", "number"),
        [
            ("bring-up", 0.02, "none", signal.SIGINT),
            ("deploy", 0.3, "ambient-l4", signal.SIGTERM),
            ("proof", 0.3, "none", signal.SIGINT),
            ("probing", 0.2, "none", signal.SIGTERM),
            ("load", 0.8, "none", signal.SIGINT),
            ("load", 1.4, "none", signal.SIGTERM),
            ("report", 0.0, "none", signal.SIGINT),
        ],
    )
    def test_every_phase_ends_with_130_and_leaves_nothing(
        self, env: dict[str, str], tmp_path: Path, phase: str, later_s: float, plane: str, number: int
    ) -> None:
        """Pressed a second and a third time out of impatience, too: the clean-up is not cut short."""
        verb = begin("experiment.run", "tiny", "--plane", plane, env=env)
        reach(verb, phase)
        time.sleep(later_s)
        for pause_s in (0.0, 0.05, 0.3):
            time.sleep(pause_s)
            if verb.poll() is None:
                os.killpg(verb.pid, number) if number == signal.SIGINT else verb.send_signal(number)
        _, said = verb.communicate(timeout=30)

        assert verb.returncode == 130, said
        assert "Traceback" not in said
        assert "report.build" in said if phase == "report" else "--resume" in said
        nothing_is_left(tmp_path)

    def test_a_lab_that_is_to_stay_goes_when_its_bring_up_is_interrupted(
        self, env: dict[str, str], tmp_path: Path
    ) -> None:
        """It becomes the machine's only when all of it is up."""
        verb = begin("lab.up", "two-zones", "--plane", "ambient-l4", env=env)
        reach(verb, "deploy")
        time.sleep(0.2)
        verb.send_signal(signal.SIGTERM)
        _, said = verb.communicate(timeout=30)

        assert verb.returncode == 130, said
        nothing_is_left(tmp_path)


class TestKilled:
    def test_a_killed_run_goes_on_and_loses_only_the_trial_in_progress(
        self, env: dict[str, str], tmp_path: Path
    ) -> None:
        """What was half-written is cut off, and never counted."""
        verb = begin("experiment.run", "tiny", "--plane", "none", "--trials", "2", env=env)
        reach(verb, "load")
        reach(verb, "load")
        time.sleep(1.0)
        verb.kill()
        verb.wait()
        assert eventually(lambda: not processes_of(tmp_path / "state"))
        run = the_run(tmp_path)
        (first,) = run.whole_trials()
        rows = [m for m in run.measurements() if m.trial == first]
        findings = run.findings()
        with (run.path / "measurements.csv").open("a") as file:
            file.write("2,torn,half a ro")
        (run.path / "requests" / "0002-torn.parquet").write_bytes(b"PAR1")
        (run.path / "captures" / "none.pcapng.123.raw").write_bytes(b"\x0a\x0d")

        again = begin("experiment.run", "tiny", "--resume", str(run.path), env=env)
        _, said = again.communicate(timeout=60)

        assert again.returncode in (0, 3), said
        assert "proof of" not in said  # it was whole
        run = the_run(tmp_path)
        assert len(run.whole_trials()) == 2 and run.whole_trials()[0] == first
        assert [m for m in run.measurements() if m.trial == first] == rows
        assert run.findings() == findings
        assert len(run.request_files()) == 2 == len(list((run.path / "requests").iterdir()))
        assert len(run.info["resumed"]) == 1 and run.info["ended"]
        ownership.gc()
        nothing_is_left(tmp_path)

    def test_a_lab_whose_maker_was_killed_on_the_way_up_is_gone_and_can_be_made_again(
        self, env: dict[str, str], tmp_path: Path
    ) -> None:
        """A half-made lab that nobody owns would be neither usable nor a leftover."""
        verb = begin("lab.up", "pair", "--plane", "ambient-l4", env=env)
        reach(verb, "deploy")
        time.sleep(0.2)
        verb.kill()
        verb.wait()

        assert eventually(lambda: not processes_of(tmp_path / "state"))
        again = begin("lab.up", "pair", env=env)
        _, said = again.communicate(timeout=60)
        assert again.returncode in (0, 3), said
        begin("lab.down", "pair", env=env).communicate(timeout=30)
        nothing_is_left(tmp_path)


class TestSideBySide:
    def test_two_runs_at_once_share_nothing(self, env: dict[str, str], tmp_path: Path) -> None:
        """Begun in the same second in the same checkout: two folders, two labs."""
        both = [begin("experiment.run", "tiny", "--plane", "none", env=env) for _ in range(2)]
        said = [verb.communicate(timeout=90)[1] for verb in both]

        assert [verb.returncode in (0, 3, 4) for verb in both] == [True, True], said
        made = [Run.open(path) for path in stored_runs(tmp_path / "results")]
        assert len(made) == 2
        assert [run.info["run"] for run in made] == [run.path.name for run in made]
        assert [len(run.whole_trials()) for run in made] == [1, 1]
        nothing_is_left(tmp_path)

    def test_bringing_a_lab_up_twice_at_once_gives_one_lab(self, env: dict[str, str], tmp_path: Path) -> None:
        """The second waits for the first and shows its links."""
        both = [begin("lab.up", "pair", env=env) for _ in range(2)]
        said = [verb.communicate(timeout=60) for verb in both]

        assert {verb.returncode for verb in both} <= {0, 3}, said
        assert len(ownership.labs()) == 1
        assert "node-a--node-b" in said[0][0] and "node-a--node-b" in said[1][0]
        begin("lab.down", "pair", env=env).communicate(timeout=30)
        nothing_is_left(tmp_path)


class TestDiskFull:
    def test_while_a_capture_is_written(self, env: dict[str, str], tmp_path: Path, small_disk: Path) -> None:
        """5, saying which file; nothing that looks like a capture stays."""
        (small_disk / "ballast").write_bytes(bytes(250 * 1024))
        verb = begin("experiment.run", "tiny", "--plane", "none", env=env | {"MESHBED_RESULTS": str(small_disk)})
        _, said = verb.communicate(timeout=60)

        assert verb.returncode == 5, said
        assert "none.pcapng" in said and "No space left on device" in said
        assert not list(small_disk.rglob("*.pcapng*"))
        assert "Traceback" not in said
        nothing_is_left(tmp_path)

    def test_while_a_result_is_written(self, env: dict[str, str], tmp_path: Path, small_disk: Path) -> None:
        """5, and once there is room the run goes on where it was."""
        env = env | {"MESHBED_RESULTS": str(small_disk)}
        verb = begin("experiment.run", "tiny", "--plane", "none", "--trials", "2", env=env)
        reach(verb, "load")
        reach(verb, "load")
        ballast = small_disk / "ballast"
        with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        _, said = verb.communicate(timeout=60)
        assert verb.returncode == 5, said
        assert str(small_disk) in said and "resume" in said
        assert "Traceback" not in said
        nothing_is_left(tmp_path)
        (path,) = stored_runs(small_disk)
        assert len(Run.open(path).whole_trials()) == 1

        ballast.unlink()
        again = begin("experiment.run", "tiny", "--resume", str(path), env=env)
        _, said = again.communicate(timeout=60)
        assert again.returncode in (0, 3, 5), said
        assert len(Run.open(path).whole_trials()) == 2

    def test_before_a_run_begins(self, env: dict[str, str], tmp_path: Path) -> None:
        """A results root that cannot be made is said before anything is built."""
        (tmp_path / "file").write_text("")
        for root in ("/proc/nowhere", str(tmp_path / "file")):
            verb = begin("experiment.run", "tiny", "--plane", "none", env=env | {"MESHBED_RESULTS": root})
            _, said = verb.communicate(timeout=30)

            assert verb.returncode == 5, said
            assert root in said and "PHASE" not in said
        nothing_is_left(tmp_path)


def test_a_run_that_another_process_writes_is_not_resumed(env: dict[str, str], tmp_path: Path) -> None:
    """Two writers would tear each other's rows."""
    verb = begin("experiment.run", "tiny", "--plane", "none", env=env)
    reach(verb, "bring-up")
    other = begin("experiment.run", "tiny", "--resume", str(the_run(tmp_path).path), env=env)
    _, said = other.communicate(timeout=30)
    verb.send_signal(signal.SIGTERM)
    verb.communicate(timeout=30)

    assert other.returncode == 2
    assert "another process is writing to it" in said
    assert json.loads((the_run(tmp_path).path / "run.json").read_text())["resumed"] == []
