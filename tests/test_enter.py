"""Ordinary users: who they are in a user namespace, and that a lab of theirs is a lab."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import deploy, planespec, runs, topofile
from testbed.errors import MachineError
from testbed.runtime import enter
from tests.ordinary import FIRST_SUBORDINATE_ID, UID, OrdinaryUser

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes an ordinary user")


@pytest.fixture
def user() -> Iterator[OrdinaryUser]:
    # Not below pytest's own folder, which an ordinary user may not pass.
    with tempfile.TemporaryDirectory(prefix="meshbed-user-") as folder:
        Path(folder).chmod(0o755)
        user = OrdinaryUser(Path(folder) / "home")
        yield user
        user.inv("lab.gc", "--all")


def test_the_first_range_that_is_large_enough_is_taken() -> None:
    """By name or number; a small range, another's line and nonsense are passed over."""
    table = "# comment\nother:1000:65536\nme:5:10\nme:nonsense\n1001:300000:65536\n"

    assert enter.subordinate(table, ("1001", "me")) == (300000, 65536)
    assert enter.subordinate(table, ("1002", "you")) is None
    assert enter.subordinate("", ("me",)) is None


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("own_ids", [False, True], ids=["one user id", "user ids of its own"])
def test_ordinary_user_runs_a_lab_with_a_plane_and_leaves_nothing(user: OrdinaryUser, own_ids: bool) -> None:
    """`pair` under ambient-l4 stays up between commands, a request crosses both ztunnels, and down removes it all."""
    user.may_have_a_lab(own_ids=own_ids)
    up = user.inv("lab.up", "pair", "--plane", "ambient-l4", own_ids=own_ids)
    assert up.returncode == 0, up.stderr
    assert "warning: not root" in up.stderr
    assert ("one user id for all" in up.stderr) is not own_ids

    owners = {path.stat().st_uid for path in (user.state / "pair" / "proxies").iterdir()}
    assert (len(owners) == 2 and min(owners) > FIRST_SUBORDINATE_ID) if own_ids else owners == {UID}

    get = (
        "from urllib.request import urlopen; a = urlopen('http://10.96.0.10:8080/');"
        "print(a.status, a.headers['x-workload'])"
    )
    done = user.inv("lab.exec", "client", "--", sys.executable, "-c", get)
    assert (done.returncode, done.stdout.strip()) == (0, "200 server"), done.stderr
    logs = user.state / "pair" / "logs"
    assert "server" in (logs / "ztunnel.node-a.log").read_text() + (logs / "ztunnel.node-b.log").read_text()
    assert user.inv("lab.exec", "client", "--", "sh", "-c", "exit 7").returncode == 7
    shown = user.inv("lab.inspect")
    assert shown.returncode in (0, 3) and "renewed at half life by pid" in shown.stdout, shown.stderr
    assert "node-a--node-b" in user.inv("link.set", "node-a", "node-b", "--delay-ms", "5").stdout

    # The same lab with another plane; where a sidecar has no user id of its own, a mark keeps its traffic out of it.
    other = user.inv("lab.up", "pair", "--plane", "sidecar", "--keylog", own_ids=own_ids)
    assert "plane: ambient-l4 → sidecar" in other.stderr
    assert other.returncode in (0, 3), other.stderr
    proven = user.inv("lab.prove", "pair", "client", "server", own_ids=own_ids)
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert "16 of 16 findings hold" in proven.stderr

    down = user.inv("lab.down", own_ids=own_ids)
    assert down.returncode == 0, down.stderr
    assert [path.name for path in user.state.iterdir() if not path.name.startswith(".")] == []


def test_a_proxy_that_marks_nothing_is_refused_where_it_has_no_user_id_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would capture its own connections without end. The run goes on without that plane only if nobody named it."""
    topology = topofile.load("pair")
    ours = planespec.place("sidecar", topology)
    foreign = dataclasses.replace(ours, proxies=tuple(dataclasses.replace(p, role="mine") for p in ours.proxies))
    monkeypatch.setattr(deploy, "single_uid", lambda: True)

    deploy.refuse_shared_id(ours)
    with pytest.raises(MachineError, match=r"sidecar\.client is told .* by its user id.* install uidmap"):
        deploy.refuse_shared_id(foreign)
    monkeypatch.setattr(planespec, "place", lambda plane, _: foreign if plane == "mine" else ours)
    assert list(runs.not_placeable(("none", "mine"), topology, by_one_user=True)) == ["mine"]
    assert runs.not_placeable(("none", "mine"), topology, by_one_user=False) == {}


RENEWS = """
from testbed.runtime import enter
enter.become_root()
import time
from tests.namespaced import test_renewal as renewal
with renewal.world(renewal.SHOP, leaf_lifetime_s=4.0, renewed=True) as made:
    first = max(map(renewal.not_after, renewal.certificates(made)))
    renewal.wait_for(lambda: time.time() > first + 1, "the first life is over")
    ends = min(map(renewal.not_after, renewal.certificates(made)))
    print(ends > time.time(), b"x-workload: web" in renewal.asked(made, "late").lower())
    files = list(made.lab.folder.glob("proxies/*/identities/*/key.pem"))
    print({(file.stat().st_uid, oct(file.stat().st_mode & 0o777)) for file in files})
"""


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("own_ids", [False, True], ids=["one user id", "user ids of its own"])
def test_certificates_of_an_ordinary_user_are_renewed(user: OrdinaryUser, own_ids: bool) -> None:
    """The first handshake after the first life succeeds; with ids to give, the CA has its own."""
    user.may_have_a_lab(own_ids=own_ids)
    done = user.run(sys.executable, "-c", RENEWS, own_ids=own_ids)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", f"{{({1336 if own_ids else 0}, '0o640')}}"]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("own_ids", [False, True], ids=["one user id", "user ids of its own"])
def test_gc_of_an_ordinary_user_removes_a_killed_lab(user: OrdinaryUser, own_ids: bool) -> None:
    """Files of its programs' own user ids, too, though the namespace that gave them is gone."""
    user.may_have_a_lab(own_ids=own_ids)
    assert user.inv("lab.up", "pair", "--plane", "ambient-l4", own_ids=own_ids).returncode == 0
    code = (
        "import os, json; from pathlib import Path\n"
        "os.kill(json.loads(Path(os.environ['MESHBED_STATE'], 'pair', 'lab.json').read_text())['keeper']['pid'], 9)"
    )
    assert user.run(sys.executable, "-c", code).returncode == 0
    done = user.inv("lab.gc", own_ids=own_ids)

    assert "removed lab pair" in done.stdout, done.stderr
    assert not (user.state / "pair").exists()


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("verb", [("lab.up", "pair"), ("quickstart", "--rounds", "1")], ids=["lab.up", "quickstart"])
def test_without_user_namespaces_the_mend_is_named(user: OrdinaryUser, verb: tuple[str, ...]) -> None:
    """Exit code 5, one line with the limit that forbids it, no traceback and nothing left behind."""
    done = user.inv(*verb, limit="0")

    assert done.returncode == 5, done.stderr
    assert "may not make a user namespace" in done.stderr and "run as root" in done.stderr
    assert "max_user_namespaces" in done.stderr and "Traceback" not in done.stderr
    assert list(user.state.iterdir()) == [] and list((user.folder / "results").iterdir()) == []


@pytest.mark.root
@needs_root
def test_doctor_of_an_ordinary_user_says_how_far_it_goes(user: OrdinaryUser) -> None:
    """One user id, or none of it; never a traceback."""
    user.may_have_a_lab(own_ids=False)

    assert "all programs with one user id" in user.inv("doctor").stdout
    assert "neither root nor user namespaces" in user.inv("doctor", limit="0").stdout
