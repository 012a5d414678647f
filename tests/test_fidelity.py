"""The certificate of a trial: which readings pass, warn and fail, and that each cause is named with its figure."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import fidelity
from testbed.fidelity import (
    Certificate,
    CpuReading,
    Gates,
    HostReading,
    Level,
    LinkWindow,
    NetReading,
    PathReading,
    ProxyReading,
    Readings,
    judge,
)
from testbed.model.experiment import LinkReading

PASS, WARN, FAIL = Level.PASS, Level.WARN, Level.FAIL
HOST = HostReading(busy=0.4, steal=0.001, psi_cpu=0.1)
LINK = LinkReading(
    link="a--b", asked_rtt_ms=2.0, rtt_p50_ms=2.05, rtt_p90_ms=2.2, asked_loss=0.0, loss=0.0, probes=60,
    within_tolerance=True, backend="wire",
)  # fmt: skip
OFF = dataclasses.replace(LINK, within_tolerance=False, rtt_p50_ms=3.5)
WINDOW = LinkWindow(
    link="a--b", asked_rtt_ms=2.0, tolerance_ms=0.3, rtt_p50_ms=2.1, rtt_p90_ms=2.4, probes=30, received=9000,
    late_ms=0.5,
)  # fmt: skip
PATH = PathReading(proxy="waypoint.w", expected=True, counted=700.0, of=700.0)
NET = NetReading(segments_sent=5000, device_packets=9000)
CPU = CpuReading(machine_s=2.0, cores=2, spent_s={"ztunnel.a": 1.4, "others": 0.5}, window_s=3.0)
CLEAN = Readings(
    host=HOST, queues={"ztunnel.a": ProxyReading(run_s=0.4, wait_s=0.05)}, nets={"client": NET}, before=[LINK],
    during=[WINDOW], after=[LINK], paths=[PATH], cpu=CPU, send_lag_p99_ms=0.4,
)  # fmt: skip


def certified(**changed: object) -> Certificate:
    return judge(dataclasses.replace(CLEAN, **changed), Gates())


def test_a_clean_trial_passes_and_says_what_it_saw() -> None:
    """Every check is there, with its figure, also where nothing is wrong."""
    found = certified()

    assert found.level is PASS and found.text == "PASS"
    assert {c.name for c in found.checks} == {
        "lag", "busy", "steal", "psi", "run-queue", "retransmits", "drops", "link-before", "link-rtt", "link-loss",
        "link-drops", "link-late", "link-after", "path", "explained", "others",
    }  # fmt: skip
    assert all(re.search(r"\d", c.cause) for c in found.checks)


@pytest.mark.parametrize(
    ("changed", "level", "told"),
    [
        ({"send_lag_p99_ms": 2.0}, WARN, "send lag p99 2.00 ms"),
        ({"send_lag_p99_ms": 6.0}, FAIL, "send lag p99 6.00 ms"),
        ({"worker_lags_ms": {"worker 1": 0.4, "worker 2": 6}}, FAIL, "generator, worker 2, late: send lag p99 6.00 ms"),
        ({"host": dataclasses.replace(HOST, busy=0.9)}, WARN, "host 90% busy"),
        ({"host": dataclasses.replace(HOST, busy=0.99)}, FAIL, "host 99% busy"),
        ({"host": dataclasses.replace(HOST, steal=0.05)}, WARN, "stole 5.0% of the cores"),
        ({"host": dataclasses.replace(HOST, steal=0.2)}, FAIL, "stole 20.0%"),
        ({"host": dataclasses.replace(HOST, psi_cpu=1.0)}, WARN, "waited for a core in 100% of the window"),
        ({"queues": {"z": ProxyReading(run_s=0.4, wait_s=0.6)}}, WARN, r"z waited for a core 60% of its time \(600 ms"),
        ({"queues": {"z": ProxyReading(run_s=0.2, wait_s=0.8)}}, FAIL, "z waited for a core 80%"),
        ({"queues": {"z": ProxyReading(run_s=0.001, wait_s=0.009)}}, PASS, ""),
        ({"queues": {"z": ProxyReading(run_s=0.0, wait_s=0.0)}}, PASS, ""),
        ({"nets": {"n": dataclasses.replace(NET, retransmitted=1)}}, WARN, "n: 1 of 5000 TCP segments sent again"),
        ({"nets": {"n": dataclasses.replace(NET, retransmitted=99)}}, FAIL, "99 of 5000"),
        ({"nets": {"n": dataclasses.replace(NET, device_drops=2)}}, WARN, "dropped 2 of 9000 frames"),
        ({"nets": {"n": dataclasses.replace(NET, device_drops=90)}}, FAIL, "dropped 90 of 9000"),
        ({"nets": {"n": dataclasses.replace(NET, listen_drops=3)}}, WARN, "listeners 3 connections"),
        ({"softnet_drops": 4}, WARN, "dropped 4 frames before any device"),
        ({"before": [OFF]}, FAIL, "link a--b before the load: RTT 3.500"),
        ({"after": [OFF]}, FAIL, "link a--b after the load: RTT 3.500 ms for 2 asked"),
        ({"cpu": dataclasses.replace(CPU, spent_s={"z": 1.0})}, WARN, "50.0% of the machine's 2.00 CPU seconds"),
        (
            {"cpu": dataclasses.replace(CPU, spent_s={"z": 1.0, "others": 1.2}, others={"cc": 0.2, "make": 1.0})},
            WARN, r"outside of the lab used 20% of the cores \(make, cc\)",
        ),
        ({"paths": [dataclasses.replace(PATH, counted=650.0)]}, FAIL, "counted 650 requests of 700 .* went past it"),
        ({"paths": [dataclasses.replace(PATH, counted=0.0)]}, FAIL, "waypoint.w counted 0 requests of 700"),
        ({"paths": [dataclasses.replace(PATH, counted=720.0)]}, WARN, "counted 720 requests of 700"),
        ({"paths": [dataclasses.replace(PATH, counted=720.0, exact=False)]}, PASS, ""),
        ({"paths": [dataclasses.replace(PATH, expected=False)]}, FAIL, "700 requests that should not cross it"),
        ({"paths": [dataclasses.replace(PATH, expected=False, counted=0.0)]}, PASS, ""),
    ],
)  # fmt: skip
def test_each_check_warns_and_fails_with_its_cause(changed: dict, level: Level, told: str) -> None:
    """In words and figures, so that the reader can judge the limit."""
    found = certified(**changed)

    assert found.level is level, found.text
    if level:
        assert re.search(told, "; ".join(found.causes(level))), found.text


@pytest.mark.parametrize(
    ("changed", "level", "told"),
    [
        ({"rtt_p50_ms": 2.45}, WARN, "RTT p50 2.450 ms"),
        ({"rtt_p50_ms": 1.2}, FAIL, "for 2 asked"),
        ({"rtt_p50_ms": 3.0}, FAIL, "RTT p50 3.000 ms"),
        ({"rtt_p50_ms": 30.0, "limited": True}, WARN, "RTT p50 30.000 ms"),  # its queue was asked for, too
        ({"lost": 3}, FAIL, "3 of 9000 frames lost on purpose for 0.0 asked"),
        ({"lost": 100, "asked_lost": 90.0, "deviation": 9.4}, PASS, ""),
        ({"lost": 10, "asked_lost": 90.0, "deviation": 9.4}, FAIL, "10 of 9000 frames lost on purpose for 90.0"),
        ({"dropped_unasked": 1}, WARN, "the wire dropped 1 of 9000 frames unasked"),
        ({"dropped_unasked": 90}, FAIL, "dropped 90 of 9000"),
        ({"late_ms": 12.0}, WARN, "left 12.0 ms after it was due"),
        ({"carried_mbit": (9.0, 1.0), "asked_mbit": (10.0, 0.0)}, PASS, ""),
        ({"carried_mbit": (9.9, 1.0), "asked_mbit": (10.0, 0.0)}, WARN, "carried 9.90 Mbit/s of 10 asked"),
        ({"carried_mbit": (1.0, 12.0), "asked_mbit": (10.0, 10.0)}, FAIL, "carried 12.00 Mbit/s of 10 asked"),
    ],
)
def test_a_link_under_load_is_held_to_what_was_asked(changed: dict, level: Level, told: str) -> None:
    """RTT by its echoes, loss and lateness by the wire's own counters, rate by what came through."""
    found = certified(during=[dataclasses.replace(WINDOW, **changed)])

    assert found.level is level, found.text
    if level:
        assert told in "; ".join(found.causes(level))


def test_retransmits_over_a_lossy_link_are_what_was_asked_for() -> None:
    """They are told and held against nobody."""
    found = certified(
        nets={"n": dataclasses.replace(NET, retransmitted=99)},
        during=[dataclasses.replace(WINDOW, lost=90, asked_lost=90.0, deviation=9.4)],
    )

    assert found.level is PASS
    assert any("99 of 5000" in c.cause for c in found.checks)


def test_what_cannot_be_read_is_said_and_not_taken_for_good() -> None:
    """No level, and the words "not available"."""
    found = judge(
        Readings(
            during=[dataclasses.replace(WINDOW, probes=0, rtt_p50_ms=math.nan, received=None)],
            paths=[dataclasses.replace(PATH, counted=None, why_not="its metrics could not be read")],
            unread={"psi": "this kernel has no /proc/pressure"},
        ),
        Gates(),
    )

    assert found.level is PASS
    assert [c.name for c in found.checks if c.level is None] == ["link-rtt", "link-loss", "path", "psi"]
    assert all("not available" in c.cause for c in found.checks)


def test_reasons_of_others_fail_it() -> None:
    """Such as failed requests, or a proxy that died."""
    found = judge(CLEAN, Gates(), failures=["proxy ztunnel.a (exit -9)"])

    assert found.level is FAIL and found.text == "FAIL: proxy ztunnel.a (exit -9)"


def test_every_limit_has_its_reason() -> None:
    """A line each, for the report; a limit of another version of the program is said to be one."""
    assert all(len(fidelity.why(f.name)) > 20 for f in dataclasses.fields(Gates))
    assert "another version" in fidelity.why("gone")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 10), st.floats(0, 10))
def test_worse_readings_never_give_a_better_certificate(
    busy: float, more: float, steal: float, run_s: float, wait_s: float
) -> None:
    """Whatever the figures: more of what is bad is no better."""

    def level(busy: float, wait_s: float) -> Level:
        host = HostReading(busy=busy, steal=steal, psi_cpu=None)
        return certified(host=host, queues={"z": ProxyReading(run_s=run_s, wait_s=wait_s)}).level

    worse = min(1.0, busy + more)
    assert level(busy, wait_s) <= level(worse, wait_s) <= level(worse, wait_s + 1.0)


def test_the_page_has_every_limit_with_its_value_and_reason() -> None:
    """docs/fidelity.md is what a reader judges them by."""
    page = (Path(fidelity.__file__).parent.parent / "docs" / "fidelity.md").read_text()

    for limit in dataclasses.fields(Gates):
        assert f"| `{limit.name}` | {limit.default:g} | {fidelity.why(limit.name)} |" in page
    assert all(f"{check.name}" in page for check in certified().checks)


@pytest.mark.parametrize(
    ("again", "sent", "level"),
    [(0, 90, Level.PASS), (2, 97, Level.WARN), (6, 97, Level.FAIL), (11, 1082, Level.FAIL), (4, 1082, Level.WARN)],
)
def test_a_segment_of_few_is_no_share(again: int, sent: int, level: Level) -> None:
    """A neighbour who sends ninety segments must not spoil a trial by one of them."""
    read = Readings(nets={"far": NetReading(segments_sent=sent, retransmitted=again)})
    (check,) = [c for c in judge(read, Gates()).checks if c.name == "retransmits"]

    assert check.level is level
