"""What dead labs leave is found and removed; what lives, or is not ours, is not touched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from testbed import labs
from testbed.errors import MachineError
from testbed.runtime import cgroups, dockerplan, dockersocket, enter, ownership
from testbed.runtime.keeper import MARK
from testbed.runtime.netns import PROJECT, NetnsRuntime
from testbed.runtime.ownership import Being, LabState, Left
from testbed.seams import Spawn
from tests.fakeengine import answer, listening
from tests.labs import line, needs_root

NAME = f"g{os.getpid()}"
ORCHESTRATOR = f"""
from tests.labs import line; from testbed.runtime.netns import NetnsRuntime; from testbed.seams import Spawn
print('go', flush=True)
while True:
    lab = NetnsRuntime().up(line(2, 4), name={NAME!r})
    lab.spawn([Spawn(name=f's{{i}}', sandbox=f'w1-{{i}}', argv=['sleep', '600'], uid=4000 + i,
                     folder=lab.folder / f's{{i}}')
               for i in range(4)])
    lab.down()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    return ownership.state_root()


def marked(root: Path) -> list[int]:
    """Processes with our mark and this state root on their command line, or whose cgroup is one of this root's labs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words, groups = (entry / "cmdline").read_bytes(), (entry / "cgroup").read_text()
            except OSError:
                continue
            if (MARK.encode() in words and str(root).encode() in words) or f"/meshbed/{NAME}" in groups:
                found.append(int(entry.name))
    return found


def our_cgroups() -> list[str]:
    return [str(c) for tree in cgroups.trees().all for c in (tree / cgroups.TOP).glob(f"{NAME}*")]


def devices() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("w-", "eth", "to-"))}


def me(**more: object) -> LabState:
    owner = ownership.being(os.getpid())
    assert owner is not None
    return LabState(name=NAME, owner=owner, detached=False, **more)  # type: ignore[arg-type]


def test_a_pid_taken_by_another_process_is_not_the_same_being() -> None:
    """The start time tells them apart."""
    alive = ownership.being(os.getpid())

    assert alive is not None and alive.alive
    assert not Being(pid=alive.pid, started=alive.started + 1).alive


def test_state_is_read_back_as_written(root: Path) -> None:
    """lab.json holds all of it, and the folder is for the owner alone."""
    state = me(keeper=Being(pid=1, started=2), sandboxes=({"name": "a"},))
    folder = ownership.claim(state, root)

    assert ownership.read(folder) == state
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ownership.labs(root) == [state]


def test_folders_without_our_mark_are_left_alone(root: Path) -> None:
    """Neither a stranger's folder, nor one with a stranger's lab.json, nor a half name."""
    (root / "stranger").mkdir()
    (root / "other").mkdir()
    (root / "other" / "lab.json").write_text('{"mark": "someone", "version": 1}')
    (root / ".a.b").mkdir()

    assert ownership.gc(root=root, everything=True) == []
    assert {entry.name for entry in root.iterdir()} == {"stranger", "other", ".a.b"}


def test_dry_run_says_and_keeps(root: Path) -> None:
    """A lab whose owner is dead, and a folder whose maker died while making it."""
    state = LabState(name=NAME, owner=Being(pid=1, started=0), detached=False)
    ownership.claim(state, root)
    (root / f".{NAME}.1.0").mkdir()
    said = ownership.gc(root=root, dry_run=True)

    assert [left.kind for left in said] == ["lab", "folder"]
    assert len(list(root.iterdir())) == 2
    assert ownership.gc(root=root) == said
    assert list(root.iterdir()) == []


@pytest.mark.root
@needs_root
def test_twenty_kills_at_random_points_leave_nothing(root: Path) -> None:
    """SIGKILL of the orchestrator anywhere in up, spawn or down; then gc; then nothing of it is there."""
    draw = random.Random(7)
    before = devices()
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", ORCHESTRATOR],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        time.sleep(draw.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if draw.random() < 0.5:
            ownership.gc(root=root)  # sometimes at once, sometimes on top of the next one's
    ownership.gc(root=root)
    settle(lambda: not marked(root))
    ownership.gc(root=root)

    assert marked(root) == []
    assert our_cgroups() == []
    assert list(root.iterdir()) == []
    assert devices() == before


@pytest.mark.root
@needs_root
def test_killed_keeper_ends_its_lab_and_gc_removes_the_rest_but_not_the_living_neighbour(root: Path) -> None:
    """Of two labs one loses its keeper; a foreign cgroup and network namespace stay as they were."""
    foreign = cgroups.trees().all[0] / f"not-ours-{NAME}"
    foreign.mkdir()
    bystander = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    dead, living = (NetnsRuntime().up(line(1, 1), name=f"{NAME}-{n}") for n in "ab")
    try:
        doomed, fine = (
            lab.spawn([Spawn(name="s", sandbox="w1-0", argv=["sleep", "60"], uid=4000, folder=lab.folder / "s")])[0]
            for lab in (dead, living)
        )
        assert dead.state.keeper is not None
        os.kill(dead.state.keeper.pid, signal.SIGKILL)
        settle(lambda: not os.path.exists(f"/proc/{doomed.pid}") and not dead.state.alive)

        assert Left(kind="lab", name=f"{NAME}-a", why="its keeper or owner is dead") in ownership.gc(root=root)
        assert not dead.folder.exists() and living.folder.exists()
        assert fine.poll() is None and bystander.poll() is None and foreign.is_dir()
        assert len(our_cgroups()) == 1
        assert ownership.gc(root=root) == []
        assert [left.kind for left in ownership.gc(root=root, everything=True)] == ["lab"]
        settle(lambda: fine.poll() is not None)
        assert our_cgroups() == []
    finally:
        dead.down()
        living.down()
        bystander.kill()
        bystander.wait()
        foreign.rmdir()


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("end", ["down", "gc"])
def test_a_detached_lab_with_proxies_and_wires_leaves_nothing(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Brought up by a process that has ended, plane ambient-l4, delayed link by wire; then `lab.down` or gc of all."""
    short = tempfile.TemporaryDirectory(prefix="mb")  # the node agent's socket must fit into 107 bytes
    monkeypatch.setenv("MESHBED_STATE", short.name)
    root = Path(short.name)
    name = f"{NAME}-{end}"
    code = f"from testbed import labs; labs.up('pair', plane='ambient-l4', runtime='netns', link='wire', name={name!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = ownership.read(root / name)
    assert state is not None and state.alive and state.keeper is not None
    inside = {pid for cgroup in our_cgroups() for pid in cgroups.processes(Path(cgroup))} | set(marked(root))
    assert len(inside) > 4
    if end == "down":
        labs.down(name)
    else:
        assert [left.name for left in ownership.gc(root=root, everything=True)] == [name]
    settle(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside))

    assert [pid for pid in inside if Path(f"/proc/{pid}").exists()] == []
    assert marked(root) == [] and our_cgroups() == [] and list(root.iterdir()) == []
    short.cleanup()


def settle(condition: object, timeout_s: float = 10.0) -> None:
    """The kernel ends namespaces behind our back; wait for it, with a bound."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.01)


def test_an_engine_that_never_answers_is_told_once_all_else_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may be there; but neither a lab's name nor other leftovers wait for it."""
    monkeypatch.setattr(dockersocket, "HEARD_WITHIN_S", 0.2)
    half_made = tmp_path / ".half.1.1"
    half_made.mkdir()
    with listening(tmp_path, None) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        with pytest.raises(MachineError, match=r"not looked for: engine .*: it does not answer"):
            ownership.gc(root=tmp_path)
    assert not half_made.exists()
    assert MachineError.exit_code == 5


def test_the_engine_of_a_context_is_the_one_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the docker program finds it, not by DOCKER_HOST alone; one that is not there is told."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    with pytest.raises(MachineError, match="there is no Docker context 'mine'"):
        ownership.gc(root=tmp_path)
    row = {"Id": "c1", "State": "running", "Labels": {
        dockerplan.OWNER: dockerplan.owner(tmp_path, enter.user_id(), ownership.key(tmp_path)), dockerplan.LAB: "gone",
    }}  # fmt: skip
    answers = {"_ping": answer(200, "OK"), "json": answer(200, [row])}
    with listening(tmp_path, answers) as host:
        meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps({"Name": "mine", "Endpoints": {"docker": {"Host": host}}}))
        assert [(left.kind, left.name) for left in ownership.gc(root=tmp_path, dry_run=True)] == [
            ("containers", "1 of gone")
        ]


def test_a_state_root_has_one_key_for_good(tmp_path: Path) -> None:
    """Drawn once; another root's is another, though its path may be the same elsewhere."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert ownership.key(tmp_path / "a") == ownership.key(tmp_path / "a") != ownership.key(tmp_path / "b")
    assert [p.name for p in (tmp_path / "a").iterdir()] == [ownership.KEY]
