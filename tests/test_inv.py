"""The bootstrap, in checkouts made of `inv`, a lock that asks for nothing, and a package that says it was started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.program import CHECKOUT

HAS_VENV = [sys.executable, "-c", "import ensurepip; ensurepip.version()"]
pytestmark = pytest.mark.skipif(
    subprocess.run(HAS_VENV, capture_output=True).returncode != 0,
    reason="this Python cannot make virtual environments (Debian: apt-get install python3-venv)",
)
STARTED = "import sys; print('started', *sys.argv[1:])"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Below a folder with spaces, as some have."""
    made = tmp_path / "a folder" / "mesh bed"
    (made / "testbed").mkdir(parents=True)
    (made / "testbed" / "__init__.py").touch()
    (made / "testbed" / "__main__.py").write_text(STARTED)
    shutil.copy(CHECKOUT / "inv", made / "inv")
    (made / "requirements.lock").write_text("# nothing\n")
    return made


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "MESHBED_"))}
    return {**kept, "PIP_NO_INDEX": "1", **more}


def inv(checkout: Path, *words: str, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "inv"), *words], env=environment(**{"MESHBED_PYTHON": python, **env}),
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.fixture
def quick(checkout: Path) -> str:
    """A Python that makes a venv in no time: its Python installs nothing, and starts modules with the real one."""
    inside = checkout / "inside"
    inside.write_text(f'#!/bin/sh\ncase "$2" in pip) ;; testbed) exec {sys.executable} "$@";; esac\n')
    made = checkout / "quick"
    made.write_text(
        f'#!/bin/sh\ncase "$2" in venv) mkdir -p "$3/bin"; : >"$3/pyvenv.cfg"; cp "{inside}" "$3/bin/python";; '
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    for program in (inside, made):
        program.chmod(0o755)
    return str(made)


def test_first_use_makes_the_venv_and_later_uses_only_start(checkout: Path) -> None:
    """Arguments keep their words; only the first use says anything of its own."""
    first, second = inv(checkout, "lab.exec", "a b"), inv(checkout, "doctor")

    assert (first.returncode, first.stdout) == (0, "started lab.exec a b\n"), first.stderr
    assert "making .venv" in first.stderr
    assert (second.stdout, second.stderr) == ("started doctor\n", "")


def test_a_venv_that_is_not_whole_or_not_of_this_lock_is_made_again(checkout: Path, quick: str) -> None:
    """Killed before its last step, another lock, its Python gone, its checkout moved."""

    def makes(place: Path) -> bool:
        done = inv(place, python=quick)
        assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
        return "making .venv" in done.stderr

    assert makes(checkout) and not makes(checkout)
    (checkout / ".venv" / ".lock").unlink()
    assert makes(checkout) and not makes(checkout)
    (checkout / "requirements.lock").write_text("# nothing else\n")
    assert makes(checkout) and not makes(checkout)
    (checkout / ".venv" / "bin" / "python").unlink()
    assert makes(checkout) and not makes(checkout)
    moved = checkout.with_name("moved")
    shutil.copytree(checkout, moved)
    assert makes(moved) and not makes(moved) and not makes(checkout)


def test_what_cannot_be_installed_leaves_nothing(checkout: Path) -> None:
    """As without a network: exit code 5, the mend, no half a venv."""
    (checkout / "requirements.lock").write_text(f"no-such-package-of-ours==1.0 --hash=sha256:{'0' * 64}\n")
    done = inv(checkout)

    assert done.returncode == 5 and "nothing was kept" in done.stderr and "run ./inv again" in done.stderr
    assert not (checkout / ".venv").exists()


def test_interrupted_first_use_leaves_nothing(checkout: Path, quick: str) -> None:
    """Ended while pip works: 130, and the next use begins anew."""
    (checkout / "inside").write_text("#!/bin/sh\nexec sleep 60\n")
    env = environment(MESHBED_PYTHON=quick)
    process = subprocess.Popen([str(checkout / "inv")], env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (checkout / ".venv" / "bin" / "python").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # SIGINT may be ignored here, as in a background job

    assert process.wait(30) == 130
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    """Whether asked for or the only one there."""
    old = checkout / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.1 || exit 1\n')
    old.chmod(0o755)
    asked = inv(checkout, python=str(old))
    tools = checkout / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "readlink", "cat", "cmp", "flock", "id", "ls"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    found = inv(checkout, python="", PATH=f"{checkout}:{tools}")

    assert asked.returncode == found.returncode == 5
    assert "is not Python 3.11" in asked.stderr and "here is Python 3.10.1." in found.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told_its_package(checkout: Path) -> None:
    """An ordinary user is told what to install; nothing is begun."""
    bare = checkout / "bare"
    bare.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac\n')
    bare.chmod(0o755)
    tools = checkout / "tools"  # without apt-get, as for who is not root
    tools.mkdir()
    for tool in ("sh", "dirname", "readlink", "cat", "cmp", "flock", "id", "ls"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    done = inv(checkout, python=str(bare), PATH=str(tools))

    assert done.returncode == 5
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_folder_that_is_no_venv_is_never_removed(checkout: Path, quick: str) -> None:
    """MESHBED_VENV may name a folder with somebody's files."""
    (checkout / "photos").mkdir()
    (checkout / "photos" / "one").touch()
    done = inv(checkout, python=quick, MESHBED_VENV=str(checkout / "photos"))

    assert done.returncode == 5 and "no virtual environment" in done.stderr
    assert (checkout / "photos" / "one").exists()
    assert inv(checkout, "x", python=quick, MESHBED_VENV=str(checkout / "mine")).stdout == "started x\n"


def test_two_first_uses_at_once_make_one_venv(checkout: Path, quick: str) -> None:
    """The second waits for the first."""
    (checkout / "inside").write_text((checkout / "inside").read_text().replace("pip)", "pip) sleep 1"))
    env = environment(MESHBED_PYTHON=quick)
    both = [
        subprocess.Popen([str(checkout / "inv")], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]

    assert [out for out, _ in told] == ["started\n"] * 2
    assert sum("making" in err for _, err in told) == 1
