"""That a lab of containers ends: with its maker, by its verbs, after kill -9; and that a death in it is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import labs, livelab
from testbed.errors import MachineError, UsageError
from testbed.runtime import dockerplan, ownership
from testbed.runtime.dockerlab import DockerLab
from testbed.runtime.dockerruntime import DockerRuntime
from testbed.runtime.netns import PROJECT
from tests.docker.containers import docker, of_lab, python, until
from tests.fakeengine import listening
from tests.labs import line, needs_engine

pytestmark = [pytest.mark.root, pytest.mark.docker]
NAME = f"e{os.getpid()}"
MAKER = f"""
import sys
from tests.labs import line; from testbed.runtime.dockerruntime import DockerRuntime
lab = DockerRuntime().up(line(1, 1), name={NAME!r}, detached=len(sys.argv) > 1)
print(lab.state.keeper.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state root for each case; whatever a case leaves in the engine under it is a failure, and is removed."""
    needs_engine()
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    yield tmp_path / "state"
    left = of_lab(NAME, tmp_path / "state")
    ownership.gc(everything=True)
    assert left == []


def made(*words: str) -> tuple[subprocess.Popen[str], int]:
    """A process with a lab, and the lab's keeper."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, *words], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    return maker, int(maker.stdout.readline())


def test_down_leaves_nothing_and_may_be_called_twice(root: Path) -> None:
    """Containers and folder are gone; the second call does nothing."""
    lab = DockerRuntime().up(line(1, 1), name=NAME)
    assert isinstance(lab, DockerLab)
    process = python(lab, "s", "import time; time.sleep(60)")
    assert len(of_lab(NAME)) == 3
    lab.down()
    lab.down()

    assert of_lab(NAME) == [] and not lab.folder.exists()
    assert process.poll() == -9


def test_a_lab_ends_with_its_maker_even_by_sigkill(root: Path) -> None:
    """The keeper sees the end and removes the containers."""
    maker, _ = made()
    assert len(of_lab(NAME)) == 2
    maker.kill()
    maker.wait()

    until(lambda: not (root / NAME).exists(), "the lab's folder is gone")
    assert of_lab(NAME) == []


def test_gc_removes_what_a_killed_keeper_left_and_nothing_else(root: Path, tmp_path: Path) -> None:
    """Maker and keeper die by SIGKILL. Of the engine's other containers none is touched: a stranger's, and that of a
    lab of the same name whose state folder is at the same path of another machine."""
    maker, keeper = made()
    other = dockerplan.of(lab=NAME, root=root, key="other", default_root=root, uid=0, topology="line")
    image = ownership.read(root / NAME).engine["ground"]["image"]  # type: ignore[union-attr]
    labels = [f"--label={k}={v}" for k, v in other.labels(role="sandbox.node", name="n1", node="n1").items()]
    strangers = [
        docker("run", "-d", "--network=none", image, "sleep", "60"),
        docker("run", "-d", "--network=none", *labels, image, "sleep", "60"),
    ]
    try:
        for pid in (keeper, maker.pid):
            os.kill(pid, signal.SIGKILL)
        maker.wait()
        assert len(of_lab(NAME)) == 2
        dry = ownership.gc(dry_run=True)
        removed = ownership.gc()

        assert [(left.kind, left.name) for left in removed] == [("lab", NAME)] == [(x.kind, x.name) for x in dry]
        assert of_lab(NAME) == [] and not (root / NAME).exists()
        assert docker("ps", "-q", "--no-trunc", *(f"--filter=id={s}" for s in strangers)).split()
        for stranger in strangers:
            assert docker("inspect", "-f", "{{.State.Running}}", stranger) == "true"
    finally:
        docker("rm", "-f", *strangers)


def test_gc_removes_containers_whose_lab_has_no_folder(root: Path) -> None:
    """As when the state folder was wiped at a reboot's end and the engine kept its containers."""
    ownership.state_root()
    of = dockerplan.of(
        lab=NAME, root=root, key=ownership.key(root), default_root=Path("/run/meshbed"), uid=0, topology="line"
    )
    labels = [f"--label={k}={v}" for k, v in of.labels(role="sandbox.node", name="n1", node="n1").items()]
    docker("run", "-d", "--network=none", *labels, DockerRuntime().ground().image, "sleep", "60")

    assert [(left.kind, left.name) for left in ownership.gc()] == [("containers", f"1 of {NAME}")]
    assert of_lab(NAME) == []


def test_a_detached_lab_outlives_its_maker_until_it_is_taken_down(root: Path) -> None:
    """Found again by its name from another process."""
    maker, _ = made("detached")
    maker.communicate("end\n", timeout=30)
    lab = DockerRuntime().attach(NAME)
    assert isinstance(lab, DockerLab)

    assert python(lab, "t", "pass").wait(15.0) == 0
    ownership.bury(lab.state, root)
    assert of_lab(NAME) == []
    with pytest.raises(UsageError, match="no lab called"):
        DockerRuntime().attach(NAME)


def test_labs_of_two_clones_have_the_same_name_side_by_side(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two state folders, one engine, one name: each goes down alone."""
    first = DockerRuntime().up(line(1, 1), name=NAME)
    monkeypatch.setenv("MESHBED_STATE", f"{root}-other")
    second = DockerRuntime().up(line(1, 1), name=NAME)
    try:
        assert len(of_lab(NAME, root)) == len(of_lab(NAME, Path(f"{root}-other"))) == 2
        first.down()
        assert (len(of_lab(NAME, root)), len(of_lab(NAME, Path(f"{root}-other")))) == (0, 2)
        assert second.dead() == []
    finally:
        first.down()
        second.down()
        monkeypatch.setenv("MESHBED_STATE", str(root))


def test_a_container_that_ends_or_is_begun_again_is_told(root: Path) -> None:
    """A program's, a sandbox's: by whatever happened to it."""
    with DockerRuntime().up(line(1, 2), name=NAME) as lab:
        assert isinstance(lab, DockerLab)
        killed, restarted, removed = (
            python(lab, name, "import time; time.sleep(60)") for name in ("killed", "again", "removed")
        )
        assert lab.dead() == [] and killed.poll() is None
        docker("kill", killed.container)
        docker("restart", "-t", "0", restarted.container)
        docker("rm", "-f", removed.container)
        docker("restart", "-t", "0", lab.watched["w1-0"].container)
        docker("kill", lab.watched["w1-1"].container)

        assert [p.wait(10.0) for p in (killed, restarted, removed)] == [-9, -9, -9]
        told = lab.dead()
        assert len(told) == 2
        assert told[0].startswith("sandbox w1-0: its container was begun again (pid ")
        assert told[1] == "sandbox w1-1: its container ended"


def test_the_verbs_bring_up_find_and_take_down(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second lab.up changes nothing; inspect says the runtime and where everything is."""
    up = {"plane": "ambient-l4", "runtime": "docker", "link": "auto", "name": NAME}
    assert labs.up("pair", **up, json_text=True) == 0
    before = of_lab(NAME)
    assert labs.up("pair", **up) == 0

    assert of_lab(NAME) == before and len(before) == 9
    about = livelab.about_of(root / NAME)
    assert about["runtime"] == "docker"
    assert all(os.path.exists(w["netns"]) for w in (*about["nodes"], *about["workloads"]))
    assert {w["container"] for w in about["workloads"]} | {n["container"] for n in about["nodes"]} < set(before)
    assert "up already" in capsys.readouterr().err
    assert labs.down(NAME) == 0
    assert of_lab(NAME) == []


def test_another_plane_keeps_the_containers_of_sandboxes_and_applications(root: Path) -> None:
    """A waypoint's place comes and goes with the plane that has one; no ended proxy stays in the engine."""
    up = {"runtime": "docker", "link": "auto", "name": NAME}

    def ids() -> dict[str, str]:
        rows = docker("ps", "-a", "--filter", f"label={dockerplan.LAB}={NAME}", "--format", "{{.Names}} {{.ID}}")
        return {name.partition("-")[2].split("-", 1)[1]: found for name, found in map(str.split, rows.splitlines())}

    assert labs.up("two-zones", plane="sidecar", **up) == 0
    try:
        first = ids()
        assert labs.up("two-zones", plane="ambient", **up) == 0
        second = ids()
        assert labs.up("two-zones", plane="none", **up) == 0
        third = ids()
    finally:
        labs.down(NAME)

    assert {name: found for name, found in first.items() if not name.startswith("sidecar.")} == third
    proxies = {"ztunnel.node-a", "ztunnel.node-b", "waypoint", "waypoint.waypoint"}
    assert second.keys() - third.keys() == proxies and third.items() <= second.items()


def test_an_engine_that_is_gone_is_said_with_the_mend(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a lab is to be made, and when one is to be removed: its folder then stays, to find the containers by. Also
    where one listens and never answers, whose silence nobody has to bear for long: a lock is held meanwhile."""
    lab = DockerRuntime().up(line(1, 1), name=NAME)
    state = lab.state
    monkeypatch.setenv("DOCKER_HOST", f"unix://{root}/none.sock")
    assert any("none runs there" in lack for lack in DockerRuntime().check())
    monkeypatch.undo()
    monkeypatch.setenv("MESHBED_STATE", str(root))
    with listening(root, None) as silent:
        for socket, said in ((f"{root}/none.sock", "No such file"), (silent.removeprefix("unix://"), "nothing within")):
            cut = {**state.engine, "socket": socket}
            ownership.write(ownership.LabState(**{**_fields(state), "engine": cut}), lab.folder)
            with pytest.raises(MachineError, match=rf"cannot be removed \(.*{said}.*\); start the engine at"):
                ownership.bury(state, root)
    assert (lab.folder / ownership.STATE).exists()
    ownership.write(state, lab.folder)
    ownership.bury(state, root)


def _fields(state: ownership.LabState) -> dict:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}
