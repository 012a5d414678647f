"""What a run's exit code says, and which runs may be gone on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.quickstart import EXPERIMENT
from testbed import runs, sweep
from testbed.errors import UsageError
from testbed.model.experiment import Finding, Measurement, Result
from testbed.store import as_json


def measured(plane: str, valid: bool = True) -> Measurement:
    return Measurement(
        round=1, trial=f"r01-{plane}-{valid}", block=1, plane=plane, component="client", metric="latency_p50",
        unit="ms",
        value=1.0, valid=valid,
    )  # fmt: skip


def found(result: Result) -> Finding:
    return Finding(id="x", plane="none", segment="wire", statement="s", result=result, evidence="e")


@pytest.mark.parametrize(
    ("measurements", "findings", "code"),
    [
        ([measured("none")], [found(Result.HOLDS)], 0),
        ([measured("none"), measured("none", valid=False)], [], 3),
        ([measured("none")], [found(Result.NO_EVIDENCE)], 3),
        ([measured("none"), measured("ambient-l4", valid=False)], [], 4),
        ([measured("none")], [found(Result.HOLDS), found(Result.BROKEN)], 1),
        ([measured("none", valid=False)], [found(Result.BROKEN)], 1),
    ],
)
def test_the_exit_code_says_whether_the_result_is_valid(measurements: list, findings: list, code: int) -> None:
    """A plane that breaks its claims was not the plane that the table names."""
    assert runs.verdict(measurements, findings) == code


def planned(**changes: object) -> dict:
    topology = as_json(sweep.resolve(EXPERIMENT))
    return {"experiment": "quickstart", "plan": {"experiment": as_json(EXPERIMENT) | changes, "topology": topology}}


def test_a_run_of_the_same_plan_may_go_on() -> None:
    """Nothing is raised."""
    runs.must_be_the_same(Path("r"), planned(), EXPERIMENT, sweep.resolve(EXPERIMENT))


def test_a_run_of_another_question_may_not() -> None:
    """Rows of two loads or topologies must not meet in one table."""
    topology = sweep.resolve(EXPERIMENT)
    with pytest.raises(UsageError, match="another target"):
        runs.must_be_the_same(Path("r"), planned(target="tcp"), EXPERIMENT, topology)
    with pytest.raises(UsageError, match="another topology file"):
        runs.must_be_the_same(Path("r"), planned(), EXPERIMENT, dataclasses.replace(topology, name="other"))
