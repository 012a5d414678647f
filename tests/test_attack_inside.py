"""An attacker's code inside every component of a plane, for real: what it got is what the model says, and no more."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

import pytest

from testbed import planespec, topofile
from testbed.attack import ear, insider, matrix, tried
from testbed.attack.enter import standing
from testbed.attack.insider import Here
from testbed.links.probe import choose
from testbed.model.experiment import Finding, Result
from testbed.pki import KEY_FILE
from testbed.registry import load
from tests.labs import needs_root

KEY = "-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----\n"


@pytest.mark.root
@needs_root
def test_every_attempt_comes_out_as_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plane `ambient`, which has most kinds of components: every row holds, and what is worth most is where it must
    be."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    (tmp_path / "logs").mkdir()
    topology = topofile.load("deny-default")
    findings = tried.try_all(
        planespec.place("ambient", topology), topology, runtime=load("runtime", "netns")(), links=choose("auto"),
        name=f"t{os.getpid()}", logs=tmp_path / "logs", app="web", neighbour="node-m",
    )  # fmt: skip
    scores = {score.role: score.counts for score in matrix.scores(findings)}

    assert [f"{f.id}: {f.value}; {f.evidence}" for f in findings if f.result is not Result.HOLDS] == []
    assert {role: counts["keys"] for role, counts in scores.items()} == {
        "app": 0, "ztunnel": 3, "waypoint": 1, "neighbour": 0,
    }  # fmt: skip
    assert {counts["past policy"] for counts in scores.values()} == {0}
    assert collections.Counter(scores["neighbour"].values()) == {0: len(matrix.COLUMNS)}


# -- the probe's own eyes: that it finds nothing must mean something ---------------------------------------------------


def test_a_key_below_a_folder_is_found_and_told_by_whose_it_is(tmp_path: Path) -> None:
    """Not what it is; and not one of the component's own, where those are spared."""
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / KEY_FILE).write_text(KEY)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / KEY_FILE).write_text(KEY)

    row = insider.keys(Here(files=tmp_path / "none"), roots=[str(tmp_path)], spare=str(tmp_path / "own"))

    assert (row.got, row.found) == (True, ["deep"])
    assert "none" not in json.dumps(row.found)


def test_a_canary_in_written_memory_is_found_and_one_that_is_not_there_is_not() -> None:
    """In this process's own, by the descriptors that a component's memory is handed over with."""
    token = b"canary-" + os.urandom(8).hex().encode()
    held = bytearray(token * 2)  # kept alive until it was looked for
    with open("/proc/self/mem", "rb", buffering=0) as memory, open("/proc/self/maps", "rb", buffering=0) as maps:
        found = ear.in_memory(memory.fileno(), maps.fileno(), {bytes(held[: len(token)]): "there"})

    assert found == {"there"}


def test_an_attempt_that_fails_by_itself_is_no_evidence() -> None:
    """Neither got nor refused: the others are made all the same."""
    rows = insider.make(Here(), [{"name": "a", "what": "nothing of that name"}, {"name": "b", "what": "environment"}])

    assert rows["a"]["seen"].startswith("not tried") and set(rows) == {"a", "b"}


def test_who_it_runs_as_is_read_from_the_process() -> None:
    """User id, capabilities and its number inside."""
    found = standing("Name:\tx\nPid:\t77\nUid:\t1337\t1338\t1\t1\nCapEff:\t0000000000003000\nNSpid:\t77\t5\t1\n")

    assert (found.uid, found.capabilities, found.pid_inside) == (1338, ("net_admin", "net_raw"), 1)


def test_other_processes_are_looked_at_only_in_a_pid_namespace_of_their_own() -> None:
    """On the machine's own /proc nothing is tried."""
    assert insider.processes(Here(own_pid_namespace=False)).seen.startswith("not tried")


# -- counting ----------------------------------------------------------------------------------------------------------


def row(
    name: str, value: str, result: Result = Result.HOLDS, component: str = "ztunnel.n", plane: str = "p"
) -> Finding:
    return Finding(
        id=f"blast.{component}/{name}", plane=plane, segment=component.partition(".")[0], statement="", result=result,
        evidence="", value=value,
    )  # fmt: skip


def test_counts_are_of_what_happened() -> None:
    """Refused attempts, and such without evidence, count for nothing; one pair by two ways is one."""
    (score,) = matrix.scores([
        row("key/a", "got"), row("key/b", "refused"), row("reach/as/a/x", "got"), row("reach/plain/a/x", "got"),
        row("reach/plain/nobody/y", "got past policy"), row("secret/x/pod", "got"), row("secret-key/a>x", "got"),
        row("read/a>x", "got"), row("read/b>x", "got", Result.NO_EVIDENCE), row("lost/a>x", "got", Result.BROKEN),
    ])  # fmt: skip

    assert score.counts == {
        "keys": 1, "identities": 1, "pairs": 2, "past policy": 1, "L7 rules": 1, "read": 1, "lost": 1,
    }  # fmt: skip
    assert (score.attempts, score.as_modelled, score.unproven) == (10, 8, 1)


def test_the_application_comes_first_and_who_lies_on_the_wire_last() -> None:
    """Whatever was tried first."""
    found = matrix.scores([
        row("key/a", "got", component=name, plane=plane)
        for plane in ("p", "q") for name in ("neighbour.n", "ztunnel.n", "app.a")
    ])  # fmt: skip

    assert [(s.plane, s.role) for s in found] == [
        (plane, role) for plane in ("p", "q") for role in ("app", "ztunnel", "neighbour")
    ]
