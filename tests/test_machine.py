"""What machine this is, from made-up /proc trees and from this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed import machine


@pytest.mark.parametrize(
    ("mounts", "mode"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "v2"),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0", "v1"),
        ("cgroup /a cgroup rw 0 0\ncgroup2 /b cgroup2 rw 0 0", "hybrid"),
        ("tmpfs /sys/fs/cgroup tmpfs rw 0 0", ""),
        ("", ""),
    ],
)
def test_cgroup_mode_is_read_from_what_is_mounted(mounts: str, mode: str) -> None:
    """By file-system type, not by path: the paths differ between distributions."""
    assert machine.cgroup_mode(mounts) == mode


def test_an_empty_machine_is_described_without_guessing(tmp_path: Path) -> None:
    """Nothing readable: empty texts, no exception."""
    told = machine.describe(tmp_path, packages=["no-such-package"])

    assert told["clock_source"] == told["cgroup"] == told["virtualisation"] == ""
    assert told["memory_mib"] == 0 and told["packages"] == {"no-such-package": ""}


def test_what_proc_says_is_passed_on(tmp_path: Path) -> None:
    """CPU model, memory and hypervisor come from the tree given."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nmodel name\t: Fast CPU\nflags\t: fpu hypervisor\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       2048 kB\n")
    told = machine.describe(tmp_path, packages=())

    assert (told["cpu"], told["memory_mib"], told["virtualisation"]) == ("Fast CPU", 2, "virtual")


def test_this_machine_is_plain_json() -> None:
    """It goes into run.json as it is."""
    told = machine.describe()

    assert json.loads(json.dumps(told)) == told
    assert told["cores"] >= 1 and told["packages"]["h2"]
