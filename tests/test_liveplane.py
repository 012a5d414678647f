"""A lab that is up gets another plane, or other delays: what changes, what stays, and what an unfinished change leaves.

One lab for most cases, in their order: each begins with what the one before left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import deploy, labs, livelab, topofile
from testbed.errors import PeerError
from testbed.livelab import ABOUT, CHANGING
from testbed.observe import pcapng
from testbed.runtime.enter import in_netns
from tests.labs import needs_root

pytestmark = [pytest.mark.root, needs_root]
ROOT = Path(__file__).parent.parent
CALL = "import urllib.request as r; print(r.urlopen('http://10.96.0.10:8080/?size=9', timeout=10).status)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of one lab without a plane."""
    state = tmp_path_factory.mktemp("live") / "state"
    old = os.environ.get("MESHBED_STATE")
    os.environ["MESHBED_STATE"] = str(state)
    try:
        assert up("none") in (0, 3)
        yield state / "two-zones"
        labs.down("two-zones")
    finally:
        os.environ.pop("MESHBED_STATE") if old is None else os.environ.update(MESHBED_STATE=old)


def up(plane: str, topology: str = "two-zones", *, keylog: bool = False) -> int:
    """In this process, which the lab is not tied to."""
    return labs.up(topology, plane=plane, runtime="netns", link="auto", name="two-zones", keylog=keylog)


def kept(about: dict) -> dict[str, object]:
    """What must be the same before and after: programs of workloads, namespaces by their inodes."""
    namespaces = {one["name"]: os.stat(one["netns"]).st_ino for one in (*about["nodes"], *about["workloads"])}
    return {"apps": [w["pids"] for w in about["workloads"]], "namespaces": namespaces}


def status(about: dict) -> str:
    """Of a call from the client to the server's service, as the lab sees it."""
    client = next(w for w in about["workloads"] if w["name"] == "client")
    words = ["nsenter", f"--net={client['netns']}", sys.executable, "-c", CALL]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def rules(about: dict) -> dict[str, tuple]:
    """Packet filter as the kernel gives it back, routes and rules as `ip` shows them, of every sandbox."""
    found = {}
    for one in (*about["nodes"], *about["workloads"]):
        said = [
            subprocess.run(["nsenter", f"--net={one['netns']}", "ip", *words], capture_output=True, text=True).stdout
            for words in (["rule"], ["route", "show", "table", "all"])
        ]
        found[one["name"]] = (*in_netns(one["netns"], filtered), *said)
    return found


def filtered() -> tuple[list, list]:
    """Chains and rules of the namespace: NFT_MSG_GETCHAIN and GETRULE, without handles and use counts."""
    return dumped(4, {1, 3, 4, 5, 7}), dumped(7, {1, 2, 4})


def dumped(kind: int, wanted: set[int]) -> list[tuple[bytes, ...]]:
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as asked:
        asked.send(struct.pack("=IHHIIBBH", 20, 0xA00 | kind, 0x301, 1, 0, socket.AF_INET, 0, 0))
        while True:
            data = asked.recv(1 << 17)
            while data:
                length, answer = struct.unpack_from("=IH", data)
                if answer in (2, 3):  # error, done
                    return found
                row, rest = [], data[20:length]
                while rest:
                    size, number = struct.unpack_from("=HH", rest)
                    if number & 0x3FFF in wanted:
                        row.append(rest[:size])
                    rest = rest[(size + 3) & ~3 :]
                found.append(tuple(row))
                data = data[(length + 3) & ~3 :]


def test_proxies_come_and_all_else_stays(lab: Path) -> None:
    """From no plane to ambient with a waypoint, which gets a sandbox of its own; calls arrive."""
    before = kept(livelab.about_of(lab))

    assert up("ambient", keylog=True) in (0, 3)

    about = livelab.about_of(lab)
    assert (about["plane"], [p["role"] for p in about["proxies"]]) == ("ambient", ["ztunnel", "ztunnel", "waypoint"])
    assert kept(about) == before
    assert status(about) == "200"


def test_packets_after_the_change_are_those_of_the_new_plane(lab: Path, tmp_path: Path) -> None:
    """A capture ends whole with the plane whose keys it has; the next one shows sidecars' mTLS and no HBONE."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, plane in ((first, "sidecar"), (second, "none")):
        begun = _verb("capture.start", "two-zones", "node-a--node-b", "--out", str(folder))
        assert begun.returncode == 0, begun.stderr
        assert status(livelab.about_of(lab)) == "200"
        assert up(plane, keylog=plane == "sidecar") in (0, 3)

    seen = [_verb("capture.verify", str(*folder.glob("*.pcapng"))) for folder in (first, second)]
    assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in pcapng.read(next(first.glob("*.pcapng"))).key_log
    assert ":15008 TLS" in " ".join(seen[0].stdout.split()) and ":15008" not in seen[1].stdout
    assert "spiffe://cluster.local/ns/default/sa/server" in seen[1].stdout


def test_a_connection_of_before_does_not_go_on_past_the_new_rules(lab: Path) -> None:
    """It was opened in the clear, and would stay so for as long as it lives."""
    about = livelab.about_of(lab)
    client = next(w for w in about["workloads"] if w["name"] == "client")
    old = in_netns(client["netns"], lambda: socket.create_connection(("10.96.0.11", 9000), 10))
    with old:
        old.sendall(b"before")
        assert old.recv(16) == b"before"
        assert up("ambient-l4") in (0, 3)
        old.settimeout(10)
        with pytest.raises(ConnectionError):
            old.sendall(b"after")
            if old.recv(16) == b"":
                raise ConnectionResetError("closed by the other side")


@pytest.mark.parametrize("plane", ["hybrid", "node-l7", "none"])
def test_nothing_of_the_old_plane_stays_in_a_namespace(lab: Path, plane: str) -> None:
    """Rules and routes are those of a lab that was brought up with that plane, but for user ids."""
    assert up(plane) in (0, 3)
    changed = livelab.about_of(lab)
    assert status(changed) == "200"
    assert labs.up("two-zones", plane=plane, runtime="netns", link="auto", name="fresh") in (0, 3)
    try:
        fresh = livelab.about_of(lab.parent / "fresh")
        assert rules(changed) == rules(fresh)
        captured = [b"meshbed_capture" in row[0] for chains, *_ in rules(changed).values() for row in chains]
        assert any(captured) == bool(changed["proxies"])
    finally:
        labs.down("fresh")
    assert {p.name for p in (lab / "proxies").glob("*")} == {p["name"] for p in changed["proxies"]}


def test_a_link_of_another_delay_is_set_while_all_goes_on(lab: Path, tmp_path: Path) -> None:
    """By the file alone, from a wire to a plain link and back; proxies are the same processes."""
    assert up("ambient-l4") in (0, 3)
    text = topofile.find("two-zones").read_text()
    policies = "two-zones.policies.yml"
    (tmp_path / policies).write_bytes((topofile.find("two-zones").parent / policies).read_bytes())
    before = livelab.about_of(lab)
    for old, new, rtt_ms in (("delayMs: 1", "delayMs: 20", 40.0), ("delayMs: 1", "delayMs: 0", 0.0)):
        edited = tmp_path / f"{new[-2:].strip()}.yml"
        edited.write_text(text.replace(old, new))
        assert edited.read_text() != text
        assert up("ambient-l4", str(edited)) in (0, 3)

        about = livelab.about_of(lab)
        (link,) = livelab.links_of(about)
        assert link.rtt_ms == rtt_ms
        assert kept(about) == kept(before) and about["proxies"] == before["proxies"]
        assert status(about) == "200"
    assert up("ambient-l4") in (0, 3)


def test_a_plane_that_does_not_come_up_leaves_none_at_all(lab: Path) -> None:
    """Its port is taken; the lab stays, says that it has no plane, and takes the next one."""
    assert up("none") in (0, 3)
    about = livelab.about_of(lab)
    client = next(w for w in about["workloads"] if w["name"] == "client")
    with in_netns(client["netns"], lambda: socket.create_server(("0.0.0.0", 15001))):
        with pytest.raises(PeerError, match="lab two-zones has no plane now, for the one asked for failed: sidecar"):
            up("sidecar")
        bare = livelab.about_of(lab)
        assert (bare["plane"], bare["proxies"]) == ("none", [])
        assert status(bare) == "200"
    assert up("sidecar") in (0, 3)
    assert kept(livelab.about_of(lab)) == kept(about)


def test_an_interrupted_change_says_that_the_lab_is_up(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle: no plane, all else as before, and these are the words; the next change makes it whole."""
    assert up("none") in (0, 3)
    before = kept(livelab.about_of(lab))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as told:
        patched.setattr(deploy, "begin", interrupted)
        up("sidecar")
    assert str(told.value).startswith("lab two-zones is up, without a plane; ")
    bare = livelab.about_of(lab)
    assert (bare["plane"], bare["proxies"], kept(bare)) == ("none", [], before)
    assert up("sidecar") in (0, 3)


def test_a_change_whose_maker_was_killed_is_told_and_made_anew(lab: Path) -> None:
    """Wherever the lab is looked at; the same lab.up completes it, though it asks for what is written down."""
    about = livelab.about_of(lab)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (lab / ABOUT).write_text(json.dumps({**about, CHANGING: {"pid": dead.pid, "started": 1}}))
    os.kill(about["proxies"][0]["pid"], signal.SIGKILL)

    told = _verb("lab.inspect", "two-zones")
    assert told.returncode != 0 and f"process {dead.pid} died while it changed its plane" in told.stderr
    assert _verb("lab.list").returncode == 0
    assert up("sidecar") in (0, 3)
    whole = livelab.about_of(lab)
    assert status(whole) == "200" and kept(whole) == kept(about)
    assert livelab.forget_ended(whole) == []


def _verb(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *argv], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
