"""The line that a run says after each round."""

from __future__ import annotations

from dataclasses import replace

from testbed.running import Running
from tests.synthetic import row


def test_each_plane_has_its_medians_and_what_does_not_count_is_in_neither() -> None:
    """Two rounds of which one is left out under one plane."""
    seen = Running()
    assert seen.told() == ""
    for number in (1, 2, 3):
        for plane, ms in (("none", 2.0), ("sidecar", 4.0)):
            bad = (plane, number) == ("sidecar", 3)
            value = 90.0 if bad else ms + number
            rows = [row(plane, number, metric, value * f) for metric, f in (("latency_p50", 1), ("latency_p99", 3))]
            seen.add([replace(m, valid=not bad) for m in rows])

    assert seen.told() == "p50/p99 ms so far: none 4.00/12.0, sidecar 5.50/16.5 (2 of 3 trials count)"


def test_of_a_sweep_it_is_one_cell_and_of_events_the_trials_alone() -> None:
    """Medians over cells would be of nothing; streams have no such latency."""
    seen = Running(cell="near")
    seen.add([replace(row("none", 1, metric, 2.0), cell="near") for metric in ("latency_p50", "latency_p99")])
    seen.add([replace(row("none", 2, metric, 50.0), cell="far") for metric in ("latency_p50", "latency_p99")])
    assert seen.told() == "p50/p99 ms so far in near: none 2.00/2.00"

    struck = Running(cell="kill")
    struck.add([replace(row("ambient", 1, "failed", 3.0, component="a to b"), cell="kill")])
    assert struck.told() == "so far: ambient 1 trials count"
