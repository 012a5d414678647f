"""How the links of a live lab are told."""

from __future__ import annotations

import json
import math

import pytest

from testbed import livelinks
from testbed.livelab import link_row
from testbed.model.experiment import LinkReading
from testbed.model.topology import Link

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
