"""Our netem links on a real kernel that has netem: a small guest, booted once, its measurements judged here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu import machine

pytestmark = pytest.mark.qemu
ROOT = Path(__file__).resolve().parents[1]
PATIENCE_MS = 2.5
"""Without KVM a wake-up is late by 0.2 ms on a quiet host, more on a busy one, and a round trip has two."""


@pytest.fixture(scope="module")
def verdict() -> Iterator[dict]:
    try:
        guest = machine.prepare()
    except machine.Unavailable as reason:
        pytest.skip(f"no guest with netem: {reason}")
    program = (ROOT / "tests/qemu/netem_guest.py").read_text()
    found, console = machine.run(guest, ROOT, ("testbed",), program)
    if found is None:
        pytest.fail(f"the guest gave no verdict; its console:\n{console[-4000:]}")
    yield found


def test_the_probe_finds_netem_there(verdict: dict) -> None:
    """Debian's kernel has netem: `auto` takes it, and every link lives."""
    assert verdict["maker"] == "netem"
    assert verdict["alive"] == [True] * len(verdict["readings"])


@pytest.mark.parametrize(("link", "rtt_ms"), [("plain", 0), ("delay", 20), ("loss", 1), ("bursty", 0)])
def test_each_direction_delays_as_asked(verdict: dict, link: str, rtt_ms: float) -> None:
    """The median round trip is the sum of both directions."""
    assert rtt_ms <= verdict["readings"][link]["rtt_p50_ms"] < rtt_ms + PATIENCE_MS


@pytest.mark.parametrize(("link", "low", "high"), [("loss", 0.10, 0.30), ("bursty", 0.05, 0.45), ("delay", 0, 0)])
def test_loss_is_what_was_asked(verdict: dict, link: str, low: float, high: float) -> None:
    """20 % independent, 25 % in bursts of 3.3 (which doubles sigma), none: within four sigma of 300 probes."""
    assert low <= verdict["readings"][link]["loss"] <= high


def test_the_rate_holds_back_a_burst(verdict: dict) -> None:
    """100 frames of 1042 bytes at 2 Mbit/s take 417 ms, and not much longer."""
    assert 0.41 <= verdict["rate_s"] < 1.0


def test_jitter_does_not_reorder(verdict: dict) -> None:
    """5 ms of jitter on frames 1 ms apart, in order all the same."""
    assert verdict["jitter_order"] == sorted(verdict["jitter_order"])


def test_jitter_spreads(verdict: dict) -> None:
    """The table is taken: p90 lies well above the median, by about 1.28 sigma less what order takes away."""
    reading = verdict["readings"]["jitter"]
    assert 1.5 < reading["rtt_p90_ms"] - reading["rtt_p50_ms"] < 15


@pytest.mark.parametrize(("link", "rtt_ms"), [("rate", 10), ("delay", 0), ("plain", 30)])
def test_links_change_live(verdict: dict, link: str, rtt_ms: float) -> None:
    """A rate becomes a delay, a delay nothing, nothing a delay."""
    assert rtt_ms <= verdict["changed"][link]["rtt_p50_ms"] < rtt_ms + PATIENCE_MS


def test_a_removed_rate_is_gone(verdict: dict) -> None:
    """The kernel keeps a rate that a change does not mention, so ours does."""
    assert verdict["changed_rate_s"] < 0.3
