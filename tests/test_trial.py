"""Which trials count, and what their figures are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import topofile, trial
from testbed.fidelity import Certificate, Check, Level
from testbed.model.experiment import LoadRecord, LoadWorker, RequestRow
from testbed.window import Usage


def rows(count: int = 1000, *, lag_s: float = 0.0, latency_s: float = 0.002, **more: object) -> tuple[RequestRow, ...]:
    return tuple(
        RequestRow(
            **{
                "intended_s": 10 + n / 200, "sent_s": 10 + n / 200 + lag_s, "first_byte_s": 10 + n / 200 + latency_s,
                "last_byte_s": 10 + n / 200 + latency_s, "status": 200, "bytes": 256, "connection": 0, **more,
            }
        )
        for n in range(count)
    )  # fmt: skip


def record(
    made: tuple[RequestRow, ...], cpu_s: float = 0.5, workers: Mapping[str, float] | None = None
) -> LoadRecord:
    """`workers`: what each used of a core, in seconds."""
    several = tuple(
        LoadWorker(name=name, requests=500, cpu_s=used_s, send_lag_p99_ms=1.0)
        for name, used_s in (workers or {}).items()
    )
    return LoadRecord(rows=made, started_s=10.0, ended_s=15.0, cpu_s=cpu_s, workers=several)


def reasons(made: LoadRecord) -> str:
    return "; ".join(trial.invalid_reasons(made, EXPERIMENT, trial.Gates()))


def test_a_clean_trial_counts() -> None:
    """No reason against it."""
    assert reasons(record(rows())) == ""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (record(()), "no request was sent"),
        (record(rows(), cpu_s=4.5), "generator used 90% of a core"),
        (record(rows(), workers={"worker 1": 1.0, "worker 2": 4.5}), "generator, worker 2, used 90% of a core"),
        (record(rows(998) + rows(2, status=503)), r"2 of 1000 requests failed \(first: 503\)"),
        (record(rows(998) + rows(2, error="reset", status=0)), "first: reset"),
        (record(rows(950) + rows(50, latency_s=7.0)), "saturated: 950 of 1000"),
        (record(rows(950) + rows(50, error="unsent", status=0)), "saturated: 950 of 1000"),
        (dataclasses.replace(record(rows()), ended_s=10.0), "no length"),
    ],
)
def test_each_gate_says_what_it_saw(made: LoadRecord, said: str) -> None:
    """With the figure, so that the reader can judge the gate."""
    import re

    assert re.search(said, reasons(made))


def test_a_row_for_each_check_with_its_cause() -> None:
    """Levels as numbers; what is not available has none, and says why. Who passed in a trial that does not count bears
    the trial's reason, as its other rows do."""
    checks = (
        Check(name="busy", level=Level.WARN, cause="host 90% busy"),
        Check(name="steal", level=Level.PASS, cause="the hypervisor stole 0.0% of the cores"),
        Check(name="psi", level=None, cause="psi: not available: this kernel has no /proc/pressure"),
    )
    labels = {"round": 1, "trial": "t", "block": 1, "plane": "none", "cell": "", "valid": False}

    found = trial.certificate_rows(Certificate(checks=checks), labels, "link gone")

    assert [(m.metric, m.reason) for m in found] == [
        ("fidelity.busy", "host 90% busy"), ("fidelity.steal", "link gone"), ("fidelity.psi", checks[2].cause)
    ]  # fmt: skip
    assert [m.value for m in found[:2]] == [1.0, 0.0] and math.isnan(found[2].value)


@pytest.mark.parametrize(("topology", "target", "calls"), [("two-zones", "server", 1), ("chain3", "", 3)])
def test_edges_are_all_calls_that_a_request_makes(topology: str, target: str, calls: int) -> None:
    """CPU of all proxies over them is what an edge costs."""
    found = topofile.load(topofile.find(topology))
    first = next(s.name for s in found.services if target in s.name)

    assert trial.edges(found, first) == calls


def test_latency_counts_from_the_intended_time() -> None:
    """A late send is the caller's wait too; failed requests have no latency."""
    values = {
        m: v for _, m, _, v in trial.latency_values(record(rows(lag_s=0.001) + rows(1, error="x", latency_s=9.0)))
    }

    assert values["latency_p50"] == pytest.approx(2.0)
    assert values["latency_p99"] == pytest.approx(2.0)
    assert values["error_share"] == pytest.approx(1 / 1001)
    assert values["rate_achieved"] == pytest.approx(200.0)


def test_two_generators_on_a_core_each_are_not_one_on_two() -> None:
    """The limit is of each process; together they may use more than one core."""
    made = record(rows(), cpu_s=6.0, workers={"worker 1": 3.0, "worker 2": 3.0})

    assert reasons(made) == ""
    values = {(who, metric): value for who, metric, _, value in trial.latency_values(made)}
    assert values["client worker 2", "cpu_share"] == pytest.approx(0.6)
    assert values["client worker 1", "requests_sent"] == 500


def test_nothing_answered_gives_no_latency() -> None:
    """NaN, never 0 ms."""
    values = {m: v for _, m, _, v in trial.latency_values(record(rows(3, status=500)))}

    assert math.isnan(values["latency_p50"])


def test_cpu_is_per_thousand_requests() -> None:
    """0.1 s over 500 requests: 200 ms per thousand; memory that could not be read is no row."""
    values = trial.usage_values(record(rows(500)), {"ztunnel.a": Usage(cpu_s=0.1, pss_mib=None)})

    assert values == [("ztunnel.a", "cpu_per_1000_requests", "ms", pytest.approx(200.0))]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0, 1000, []),
        (50, 1300, []),
        (50, 1049, ["1000 requests answered, the target saw 999"]),
        (None, None, []),
        (5, None, ["the target's own count of requests could not be read"]),
    ],
)
def test_the_target_is_a_second_judge(before: int | None, after: int | None, said: list[str]) -> None:
    """Answers that the target did not give came from elsewhere."""
    assert trial.miscounted(record(rows()), before, after) == said


def test_a_trial_without_a_record_is_one_row_with_its_reason() -> None:
    """Stored under the name by which a resumed run skips it."""
    (row,) = trial.failed("load generator:\n  ended", plane="none", round_number=2, block=5).measurements

    assert (row.trial, row.valid, row.reason) == ("r02-b05-none", False, "load generator: ended")
