"""The bench of bring-up: what it says when its peer is missing, and what it builds."""

from __future__ import annotations

import sys

import pytest

from testbed import doctor
from testbed.bench import bringup


def test_a_missing_peer_is_named_with_its_mend() -> None:
    """A Python that has no Mininet, and one that is not there; the mend names both packages."""
    for python in ("/no/such/python", sys.executable):
        said = bringup.mininet_lacks(python)
        assert said is not None and "mininet" in said and said.endswith(bringup.MEND)
    assert "mininet bridge-utils" in bringup.MEND


def test_a_missing_brctl_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mininet alone is not enough: its Linux bridge is made by brctl."""
    monkeypatch.setattr(bringup.shutil, "which", lambda *_, **__: None)

    assert "bridge-utils (brctl)" in str(bringup.mininet_lacks())


def test_doctor_lists_the_peers_packages_as_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, not a lack: only benches miss them."""
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    state, what, mend = doctor.CHECKS["Debian programs"]()

    assert state == doctor.WARN
    assert "benches" in what and "bridge-utils" in mend and "mininet" in mend


@pytest.mark.parametrize("count", [1, 250, 251, 1000])
def test_hosts_are_spread_over_nodes_without_an_address_twice(count: int) -> None:
    """As many workloads as asked for, no more on a node than its network holds."""
    topology = bringup.hosts(count)

    assert len({w.address for w in topology.workloads} | {n.address for n in topology.nodes}) == count + len(
        topology.nodes
    )
    assert max(sum(w.node == n.name for w in topology.workloads) for n in topology.nodes) <= bringup.PER_NODE


def test_a_row_of_the_table_is_in_milliseconds() -> None:
    """Seconds in, milliseconds out."""
    row = bringup.Row(who="meshbed", hosts=100, wired_s=0.15, up_s=0.25, down_s=0.04, rounds=5)
    peer = bringup.Row(who="mininet", hosts=100, wired_s=None, up_s=2.5, down_s=2.0, rounds=5)

    assert bringup.table([row, peer]).splitlines()[-2:] == [
        "| 100 | meshbed | 150 | 250 | 40 | 5 |",
        "| 100 | mininet | – | 2500 | 2000 | 5 |",
    ]


MOUNTS = """
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:21 / /run rw,nosuid - tmpfs tmpfs rw
24 22 0:22 / /dev/shm rw - tmpfs shm rw
""".strip()


def test_the_innermost_mount_says_what_a_folder_is_on() -> None:
    """/running is not below /run."""
    assert [bringup.filesystem(path, MOUNTS) for path in ("/run", "/run/labs", "/running", "/")] == [
        "tmpfs",
        "tmpfs",
        "ext4",
        "ext4",
    ]


def test_a_state_folder_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench looks for memory only where nobody has said anything, and leaves the environment as it was."""
    monkeypatch.setenv("MESHBED_STATE", "/asked/for")
    with bringup.state_in_memory() as said:
        assert (said, bringup.os.environ["MESHBED_STATE"]) == ("", "/asked/for")
    monkeypatch.delenv("MESHBED_STATE")
    with bringup.state_in_memory() as said:
        assert bool(said) is ("MESHBED_STATE" in bringup.os.environ)
    assert "MESHBED_STATE" not in bringup.os.environ
