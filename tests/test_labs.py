"""The lab verbs on one live lab: looking changes nothing, a dry run changes nothing, captures outlive their verb."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import captures, labs, topofile
from testbed.errors import UsageError
from testbed.model.topology import Link
from testbed.observe import pcapng
from testbed.runtime import ownership
from testbed.runtime.ownership import being
from tests.labs import needs_root

ROOT = Path(__file__).parent.parent
PAIR = topofile.load(topofile.find("pair"))
ENDS = {"links": PAIR.links, "nodes": ["node-a", "node-b"]}
WORKLOADS = {w.name: w.node for w in PAIR.workloads}

Verb = Callable[..., subprocess.CompletedProcess[str]]


def places(*names: str) -> list[tuple[str, str | None]]:
    return captures.places(names, workloads=WORKLOADS, **ENDS)


class TestPlaces:
    def test_a_workload_is_its_veth_and_a_link_both_its_ends(self) -> None:
        """As its node sees it; a link may be named from either side."""
        assert places("client", "node-b--node-a") == [
            ("node-a", "w-client"),
            ("node-a", "to-node-b"),
            ("node-b", "to-node-a"),
        ]

    def test_no_name_is_every_workload_and_every_link(self) -> None:
        """Each once."""
        assert len(places()) == len(set(places())) == 5

    def test_a_node_swallows_what_is_on_it(self) -> None:
        """All its devices are listened at already; else each packet would be there twice."""
        assert places("client", "node-a", "node-a--node-b") == [("node-a", None), ("node-b", "to-node-a")]

    def test_an_unknown_place_is_answered_with_the_nearest(self) -> None:
        """And with all there are."""
        with pytest.raises(UsageError, match="did you mean 'client'\\? known: client, node-a, node-a--node-b"):
            places("cleint")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labs") / "state"


@pytest.fixture(scope="module")
def verb(state: Path) -> Verb:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "MESHBED_STATE": str(state), "MESHBED_RESULTS": str(state.parent / "results")}
        return subprocess.run(
            [sys.executable, "-m", "testbed", *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=90
        )

    return run


@pytest.fixture(scope="module")
def lab(verb: Verb, state: Path) -> Iterator[Path]:
    """Its state folder."""
    up = verb("lab.up", "pair", "--plane", "ambient-l4", "--keylog", "--json")
    assert up.returncode in (0, 3), up.stderr
    assert json.loads(up.stdout)["lab"] == "pair"
    yield state / "pair"
    verb("lab.down", "pair")


def call(verb: Verb) -> None:
    """A request from the client to the server's service."""
    answered = verb(
        "lab.exec", "client", "--", sys.executable, "-c",
        "import urllib.request as r; print(r.urlopen('http://10.96.0.10:8080/?size=9', timeout=5).status)",
    )  # fmt: skip
    assert answered.stdout == "200\n", answered.stderr


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.glob("*.json")}


@pytest.mark.root
@needs_root
class TestLiveLab:
    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (("lab.up", "chain3", "--plane", "ambient-l4"), "would bring up lab chain3: 3 nodes"),
            (("lab.down", "pair"), "would take down lab pair: 5 sandboxes"),
            (("lab.up", "pair", "--plane", "sidecar"), "would change lab pair in place:\n  plane: "),
            (("link.set", "node-a", "node-b", "--delay-ms", "7"), "would set node-a → node-b of lab pair: delay_ms"),
            (("capture.start", "pair", "client"), "would capture at node-a:w-client into"),
            (("lab.gc", "--all"), "would remove lab pair"),
        ],
    )
    def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
        self, verb: Verb, lab: Path, state: Path, argv: tuple[str, ...], says: str
    ) -> None:
        """Labs, processes, files and the link are as before."""
        before = files_below(lab), sorted(state.iterdir()), ownership.keepers("pair", state)

        dry = verb(*argv, "--dry-run")

        assert dry.returncode == 0, dry.stderr
        assert says in dry.stdout
        assert (files_below(lab), sorted(state.iterdir()), ownership.keepers("pair", state)) == before
        assert before[2] and captures.of_lab(lab) == []
        assert not (state.parent / "results").exists()

    def test_up_again_shows_the_same_lab(self, verb: Verb, lab: Path) -> None:
        """And another topology under that name is refused with the mend, another plane or not."""
        before = ownership.read(lab)

        again = verb("lab.up", "pair", "--plane", "ambient-l4", "--keylog")
        other = verb("lab.up", "chain3", "--name", "pair")

        assert again.returncode in (0, 3) and "is up already" in again.stderr and "node-a--node-b" in again.stdout
        assert other.returncode == 2 and "lab.down --name pair" in other.stderr
        assert "plane: ambient-l4 → none" in other.stderr and "keylog: True → False" in other.stderr
        assert ownership.read(lab) == before

    def test_an_edited_file_does_not_show_the_old_lab(self, verb: Verb, lab: Path, tmp_path: Path) -> None:
        """Refused with the part that differs and the mend; a file of the same content is the same lab."""
        text = topofile.find("pair").read_text()
        same, other = tmp_path / "same.yml", tmp_path / "other.yml"
        same.write_text(f"# nothing but a comment\n{text}")
        other.write_text(text.replace("kind: tcp-echo", "kind: http-echo"))
        assert other.read_text() != text
        before = ownership.read(lab), files_below(lab)

        again = verb("lab.up", str(same), "--plane", "ambient-l4", "--keylog")
        refused = verb("lab.up", str(other), "--plane", "ambient-l4", "--keylog")

        assert again.returncode in (0, 3) and "is up already" in again.stderr
        assert refused.returncode == 2
        assert "workloads default/tcp: app: kind: tcp-echo → http-echo" in refused.stderr
        assert "./inv lab.down --name pair first" in refused.stderr
        assert (ownership.read(lab), files_below(lab)) == before

    def test_inspect_shows_who_renews_the_certificates(self, verb: Verb, lab: Path) -> None:
        """A process of the lab; programs read until when they are good."""
        told = json.loads(verb("lab.inspect", "--json").stdout)["certificates"]
        assert told["lifetime_s"] == 24 * 3600 and told["good_until"].endswith("Z")
        assert being(told["renewed_by"]) is not None
        assert f"renewed at half life by pid {told['renewed_by']}" in verb("lab.inspect").stdout

    def test_what_runs_inside_ends_with_its_own_code_and_signals(self, verb: Verb) -> None:
        """lab.exec becomes the program; a shell would say the same."""
        assert verb("lab.exec", "client", "--", "sh", "-c", "exit 7").returncode == 7
        assert verb("lab.exec", "client", "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
        unknown = verb("lab.exec", "clint", "--", "true")
        assert unknown.returncode == 2 and "did you mean 'client'?" in unknown.stderr

    def test_a_capture_outlives_its_verb_and_holds_the_packets_and_keys(
        self, verb: Verb, lab: Path, tmp_path: Path
    ) -> None:
        """What was sent between the two verbs, at the ends that were named, losses told, secrets inside."""
        started = verb("capture.start", "pair", "client", "node-a--node-b", "--out", str(tmp_path), "--json")
        assert started.returncode == 0, started.stderr
        assert list(tmp_path.glob("*.pcapng")) == []  # under its final name only when it is whole
        call(verb)
        stopped = verb("capture.stop", "pair", "--json")

        assert stopped.returncode == 0, stopped.stderr
        (row,) = json.loads(stopped.stdout)
        recording = pcapng.read(Path(row["file"]))
        assert row["file"] == json.loads(started.stdout)["file"]
        assert len(recording.packets) == row["packets"] > 10
        assert {i.name for i in recording.interfaces} == {"node-a:w-client", "node-a:to-node-b", "node-b:to-node-a"}
        assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in recording.key_log
        assert row["drops"] == 0 and not recording.cut
        seen = verb("capture.verify", row["file"])
        assert "CONNECT 10.0.2.2:8080 → 200" in seen.stdout
        assert captures.of_lab(lab) == []
        assert verb("capture.stop", "pair").returncode == 2

    def test_a_capture_on_a_full_disk_ends_with_5(self, verb: Verb, lab: Path, tmp_path: Path) -> None:
        """The verb that stops it says so; nothing that looks like a capture stays."""
        disk = tmp_path / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True)
        try:
            assert verb("capture.start", "pair", "--out", str(disk)).returncode == 0
            for _ in range(3):
                call(verb)
            stopped = verb("capture.stop", "pair")

            assert stopped.returncode == 5, stopped.stdout + stopped.stderr
            assert "No space left on device" in stopped.stdout and str(disk) in stopped.stdout
            assert list(disk.iterdir()) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_a_capture_whose_process_was_killed_is_no_capture(self, verb: Verb, lab: Path, tmp_path: Path) -> None:
        """What it left does not bear a capture's name."""
        assert verb("capture.start", "pair", "--out", str(tmp_path)).returncode == 0
        (capture,) = captures.of_lab(lab)
        os.kill(capture.process.pid, signal.SIGKILL)
        stopped = verb("capture.stop", "pair")

        assert stopped.returncode == 1 and "killed" in stopped.stdout
        assert list(tmp_path.glob("*.pcapng")) == []


@pytest.mark.root
@needs_root
def test_a_lab_whose_program_was_killed_says_so(verb: Verb) -> None:
    """Wherever it is shown; a number that another process may get by now is no longer told."""
    assert verb("lab.up", "pair", "--name", "orphan", "--plane", "ambient-l4").returncode in (0, 3)
    try:
        told = json.loads(verb("lab.inspect", "orphan", "--json").stdout)
        server = next(w for w in told["workloads"] if w["name"] == "server")
        os.kill(server["pids"][0], signal.SIGKILL)
        os.kill(told["proxies"][0]["pid"], signal.SIGKILL)
        again = verb("lab.up", "pair", "--name", "orphan", "--plane", "ambient-l4")
        shown = verb("lab.inspect", "orphan")
        read = verb("lab.inspect", "orphan", "--json")

        for done in (again, shown, read):
            assert done.returncode == 4
            assert f"dead: app of server, {told['proxies'][0]['name']} of lab orphan ended" in done.stderr
        assert "ztunnel has ended for" in shown.stdout
        now = json.loads(read.stdout)
        assert next(w for w in now["workloads"] if w["name"] == "server")["pids"] == []
        assert [p["pid"] for p in now["proxies"]] == [None, told["proxies"][1]["pid"]]
        assert "begun" not in now and "declared" not in now
    finally:
        verb("lab.down", "orphan")


@pytest.mark.root
@needs_root
def test_a_lab_whose_ca_was_killed_says_so(verb: Verb) -> None:
    """Wherever it is shown, with the time that is left and the mend; the lab itself goes on."""
    assert verb("lab.up", "pair", "--name", "widow", "--plane", "ambient-l4").returncode in (0, 3)
    try:
        ca = json.loads(verb("lab.inspect", "widow", "--json").stdout)["certificates"]["renewed_by"]
        os.kill(ca, signal.SIGKILL)
        again = verb("lab.up", "pair", "--name", "widow", "--plane", "ambient-l4")
        shown = verb("lab.inspect", "widow")
        read = verb("lab.inspect", "widow", "--json")

        for done in (again, shown, read):
            assert done.returncode == 3
            assert done.stderr.count("its CA has ended, so nothing renews the certificates") == 1
            assert "./inv lab.down widow, then lab.up again" in done.stderr
        assert "no longer renewed" in shown.stdout
        assert json.loads(read.stdout)["certificates"]["renewed_by"] is None
    finally:
        verb("lab.down", "widow")


@pytest.mark.root
@needs_root
def test_a_lab_goes_down_with_its_captures_whole(verb: Verb, state: Path, tmp_path: Path) -> None:
    """By lab.down, and also when its keeper is killed."""
    for name, end in (("one", "down"), ("two", "kill")):
        assert verb("lab.up", "pair", "--name", name).returncode in (0, 3)
        assert verb("capture.start", name, "--out", str(tmp_path / name)).returncode == 0
        (capture,) = captures.of_lab(state / name)
        if end == "down":
            assert verb("lab.down", name).returncode == 0
        else:
            os.kill(ownership.read(state / name).keeper.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while capture.process.alive and time.monotonic() < deadline:
                time.sleep(0.05)
            stale = verb("lab.inspect", name)
            assert stale.returncode == 2 and "is dead" in stale.stderr
            assert verb("lab.gc").returncode == 0

        assert not capture.process.alive
        assert not pcapng.read(capture.out).cut
        assert not (state / name).exists()


def test_words_behind_a_verb_become_its_options() -> None:
    """invoke knows no optional positionals."""
    from testbed.verbs import with_options_for_words as made

    assert made(["inv", "capture.start", "pair", "a", "b"]) == ["inv", "capture.start", "pair", "--where=a,b"]
    assert made(["inv", "capture.start", "pair", "--json", "a", "--out", "x"]) == [
        "inv", "capture.start", "pair", "--where=a", "--json", "--out", "x",
    ]  # fmt: skip
    assert made(["inv", "lab.down", "--dry-run", "pair"]) == ["inv", "lab.down", "--name=pair", "--dry-run"]
    assert made(["inv", "lab.down"]) == ["inv", "lab.down"]
    assert made(["inv", "lab.exec", "w", "--", "lab.down", "x"])[:4] == ["inv", "lab.exec", "w", "--"]


def test_a_link_may_be_named_from_either_side() -> None:
    """Packets have no first end."""
    link = Link(a="x", b="y", a_address="172.16.0.0", b_address="172.16.0.1")
    ways = [captures.places([name], links=[link], workloads={}, nodes=["x", "y"]) for name in ("x--y", "y--x")]
    assert ways[0] == ways[1]


def test_every_proxy_is_shown_below_whatever_has_its_network() -> None:
    """A ztunnel below its node, a sidecar below its workload, a waypoint in a place of its own."""

    def proxy(role: str, netns: str, pid: int) -> dict:
        return {"name": role, "role": role, "for": ["server"], "pid": pid, "netns": netns, "identities": []}

    about = {
        "lab": "l", "topology": "t", "plane": "hybrid", "runtime": "docker", "link_kind": "wire", "services": [],
        "nodes": [{"name": "n", "zone": "z", "netns": "/n", "address": "10.0.0.1"}],
        "workloads": [
            {"name": "server", "node": "n", "netns": "/w", "address": "10.0.0.2", "namespace": "default",
             "service_account": "s", "pids": [9]},
        ],
        "proxies": [proxy("waypoint", "/own", 3), proxy("sidecar", "/w", 2), proxy("ztunnel", "/n", 1)],
    }  # fmt: skip

    assert labs.as_text(about).splitlines() == [
        "lab l: t with plane hybrid on docker, links by wire",
        "  node n (z) 10.0.0.1",
        "    ztunnel pid 1 for server",
        "    server           10.0.0.2       default/s pid 9",
        "      sidecar pid 2 for server",
        "  waypoint pid 3 for server",
    ]
