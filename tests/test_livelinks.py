"""How the links of a live lab are told."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import livelinks
from testbed.errors import UsageError
from testbed.livelab import link_row
from testbed.model.experiment import LinkReading
from testbed.model.topology import Link
from testbed.runtime import ownership
from tests.labs import needs_root

ROOT = Path(__file__).parent.parent
ONE_NODE = "name: alone\nnodes:\n  n: {}\nworkloads:\n  w: {node: n}\n"
Verb = Callable[..., subprocess.CompletedProcess[str]]

SILENT = LinkReading(
    link="a--b", asked_rtt_ms=21.0, rtt_p50_ms=math.nan, rtt_p90_ms=math.nan, asked_loss=1.0, loss=1.0, probes=20,
    within_tolerance=False,
)  # fmt: skip


def test_a_link_that_answers_nothing_has_no_number_in_json() -> None:
    """NaN is none: what reads JSON elsewhere would stop at it."""
    row = link_row(Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1"), SILENT)

    text = json.dumps(row, allow_nan=False)

    assert json.loads(text)["measured"] == {"rtt_ms": None, "rtt_p90_ms": None, "loss": 1.0}


def test_a_link_that_answers_nothing_is_a_dash_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """And its line is as wide as the others."""
    livelinks.print_readings([SILENT])

    head, line = capsys.readouterr().out.splitlines()
    assert "nan" not in line and line.split() == ["a--b", "21.000", "–", "–", "1.000", "1.000", "OFF"]
    assert len(line) == len(head) + len("  OFF")


@dataclasses.dataclass
class Told:
    """As much of a live link as a verdict asks for."""

    link: Link
    lives: bool

    def alive(self) -> bool:
        return self.lives


@pytest.mark.parametrize(
    ("lives", "loss", "within", "code", "says"),
    [
        (True, 0.0, True, 0, ""),
        (True, 0.0, False, 3, "not as asked: link a--b"),
        (True, 1.0, False, 4, "dead: link a--b"),
        (False, 0.0, True, 4, "dead: link a--b"),  # it died after the last probe
        (True, 1.0, True, 0, ""),  # all was to be lost
    ],
)
def test_a_link_that_carries_nothing_breaks_the_lab_one_that_is_off_is_a_warning(
    capsys: pytest.CaptureFixture[str], lives: bool, loss: float, within: bool, code: int, says: str
) -> None:
    """4 and 3, the name and the mend on stderr."""
    reading = dataclasses.replace(SILENT, loss=loss, within_tolerance=within)
    live = Told(Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1"), lives)

    assert livelinks.verdict("t", [live], [reading]) == code

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(says) and bool(printed.err) == bool(says)
    assert ("lab.down --name t" in printed.err) == (code == 4)


@pytest.mark.parametrize("rate", [1e-6, 0.0199, -1.0, 100_001.0])
def test_a_rate_that_makes_no_line_is_refused_before_any_lab_is_looked_for(rate: float) -> None:
    """With the smallest one and why, or the range."""
    with pytest.raises(UsageError, match=r"below 0\.02, where one frame of 1,514 bytes takes 606 ms|outside 0\.\."):
        livelinks.change("no-such-lab", "a", "b", {"rate_mbit": rate})


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_no_limit_and_the_least_rate_are_rates(rate: float) -> None:
    """What fails then is the lab's name."""
    with pytest.raises(UsageError, match="no lab is called"):
        livelinks.change("no-such-lab", "a", "b", {"rate_mbit": rate})


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verb]:
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    up = []

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        up.extend(["pair", "alone"] if argv[0] == "lab.up" and not up else [])
        command = [sys.executable, "-m", "testbed", *argv]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)

    yield run
    for name in up:
        run("lab.down", "--name", name)


def children(*pids: int) -> list[int]:
    """All below these processes; what a wire calls its pid is one of its own namespace."""
    found = [
        int(child) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]  # fmt: skip
    return found + (children(*found) if found else [])


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.root
@needs_root
def test_a_lab_whose_wire_died_is_told_by_every_look_at_it(verb: Verb, tmp_path: Path) -> None:
    """`link.show`, `lab.inspect` and a second `lab.up` end with 4 and name the link, `--json` as well."""
    assert verb("lab.up", "pair").returncode in (0, 3)
    assert verb("link.set", "node-a", "node-b", "--delay-ms", "2").returncode in (0, 3)
    healthy = verb("link.show").returncode
    keepers = [keeper.pid for keeper in ownership.keepers("pair", tmp_path / "state")]
    (wire,) = {pid for pid in children(*keepers) if b"links.wireproc" in command_line(pid)}
    os.kill(wire, signal.SIGKILL)

    looks = [
        verb(*words) for words in (("link.show",), ("lab.up", "pair"), ("lab.up", "pair", "--json"), ("lab.inspect",))
    ]

    assert healthy in (0, 3)
    assert [look.returncode for look in looks] == [4] * 4
    assert all("dead: link node-a--node-b" in look.stderr for look in looks)
    assert json.loads(looks[2].stdout)["links"][0]["measured"]["loss"] == 1.0


@pytest.mark.root
@needs_root
def test_a_lab_of_one_node_has_no_links(verb: Verb, tmp_path: Path) -> None:
    """No table without rows."""
    topology = tmp_path / "alone.yml"
    topology.write_text(ONE_NODE)

    ups = [verb("lab.up", str(topology)) for _ in range(2)]

    assert [up.returncode for up in ups] == [0, 0], ups[0].stderr
    assert all("no links" in up.stderr and "asked RTT" not in up.stdout for up in ups)
