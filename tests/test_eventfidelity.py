"""What the certificate of a trial with an event judges, and what it leaves to the event."""

from __future__ import annotations

import dataclasses

import pytest

from testbed import cells
from testbed.eventfidelity import judge, readings
from testbed.fidelity import Gates, HostReading, Level, LinkWindow
from testbed.model.experiment import LinkReading, Measurement

CALM = HostReading(busy=0.4, steal=0.0, psi_cpu=0.1)
LINK = LinkReading(
    link="a--b", asked_rtt_ms=2.0, rtt_p50_ms=2.01, rtt_p90_ms=2.1, asked_loss=0.0, loss=0.0, probes=40,
    within_tolerance=True,
)  # fmt: skip
WINDOW = LinkWindow(
    link="a--b", asked_rtt_ms=2.0, tolerance_ms=0.3, rtt_p50_ms=2.02, rtt_p90_ms=2.2, probes=30, received=500,
    late_ms=0.4,
)  # fmt: skip
OFF = dataclasses.replace(LINK, within_tolerance=False, rtt_p50_ms=9.0)


def judged(
    *, early: HostReading | None = CALM, whole: HostReading | None = CALM, lags_ms: tuple[float, ...] = (0.3, 0.4),
    before: LinkReading = LINK, during: LinkWindow = WINDOW, after: LinkReading = LINK, failures: tuple[str, ...] = (),
) -> tuple[Level, str]:  # fmt: skip
    read = readings(early, whole, before=[before], during=[during], after=[after], lags_ms=lags_ms)
    certificate = judge(read, Gates(), failures=failures)
    return certificate.level, certificate.text


def test_a_calm_machine_passes_whatever_the_event_does_to_it() -> None:
    """A proxy that starts takes a core for a second: that is the event, and no reason against the trial."""
    busy_after = dataclasses.replace(CALM, busy=0.99, psi_cpu=0.9)

    assert judged() == (Level.PASS, "PASS")
    assert judged(whole=busy_after) == (Level.PASS, "PASS")


@pytest.mark.parametrize(
    ("changed", "level", "cause"),
    [
        ({"early": dataclasses.replace(CALM, busy=0.99)}, Level.FAIL, "until the event: host 99% busy"),
        ({"early": dataclasses.replace(CALM, psi_cpu=0.6)}, Level.WARN, "until the event: pressure"),
        ({"whole": dataclasses.replace(CALM, steal=0.2)}, Level.FAIL, "the hypervisor stole 20.0%"),
        ({"lags_ms": (0.1, 20.0)}, Level.WARN, "until the event: generator late"),
        ({"lags_ms": (60.0, 60.0)}, Level.FAIL, "send lag p99 60.00 ms"),
        ({"before": OFF}, Level.FAIL, "link a--b before the load: RTT 9.000"),
        ({"after": OFF}, Level.FAIL, "link a--b after the load: RTT 9.000"),
        ({"during": dataclasses.replace(WINDOW, rtt_p50_ms=5.0)}, Level.FAIL, "link a--b under load: RTT p50 5.000"),
        ({"failures": ("kill came 0.40 s late",)}, Level.FAIL, "kill came 0.40 s late"),
    ],
)
def test_each_thing_that_is_the_machines_is_judged_by_name(changed: dict, level: Level, cause: str) -> None:
    """And nothing else is."""
    found, text = judged(**changed)

    assert found is level and cause in text


def test_what_the_event_makes_meaningless_is_said_to_be_missing() -> None:
    """Not passed over: a reader of other certificates looks for the path proof."""
    read = readings(None, None, before=[], during=[], after=[], lags_ms=[])
    checks = judge(read, Gates()).checks

    assert {c.name for c in checks} == {"path", "run-queue", "retransmits", "busy"}
    assert all(c.level is None and "not available" in c.cause for c in checks)


def test_the_table_of_events_shows_the_certificates() -> None:
    """A FAIL is counted, named with its cause, and its trial is in no row above."""
    label = {"round": 1, "block": 1, "plane": "ambient", "cell": "kill", "unit": ""}
    good = {"trial": "a", "valid": True}
    bad = {"trial": "b", "valid": False, "reason": "until the event: host 99% busy"}
    rows = [
        Measurement(component="c to s", metric=metric, value=value, **label, **which)
        for which in (good, bad)
        for metric, value in (("requests_since", 9.0), ("failed", 7.0 if which is bad else 1.0))
    ]
    rows += [Measurement(component="host", metric="fidelity.busy", value=0.0, **label, **good)]
    rows += [Measurement(component="host", metric="fidelity.busy", value=2.0, **label, **bad)]
    experiment = {"planes": ["ambient"], "cells": [{"name": "kill"}], "streams": [{}]}
    table = cells.table_of({"plan": {"experiment": experiment}}, rows, [])

    shown = table.blocks[-1]
    assert shown.title.startswith("Was the testbed good enough?")
    assert [cell.lines[0] for cell in shown.rows[0]] == ["ambient", "1", "0", "1", "busy FAIL"]
    assert any("host 99% busy" in note for note in table.notes)
    streams = next(block for block in table.blocks if block.title == "kill")
    assert streams.rows[0][1].lines[0].startswith("failed 1 of 9")
