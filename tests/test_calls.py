"""What must come of each call, by who stands at both ends; and that a refusal without its control proves nothing."""

from __future__ import annotations

import dataclasses

import pytest

from planes import catalog
from testbed import calls, topofile
from testbed.model.experiment import DOCUMENTED, Result
from testbed.model.placement import Placement
from testbed.verify.attempt import Try

TWO_ZONES = topofile.load(topofile.find("two-zones"))


@dataclasses.dataclass
class Deployed:
    """As much of a deployment as the judging of outcomes asks for."""

    placement: Placement
    lab: object = None


def outcome(**fields: object) -> dict:
    return dataclasses.asdict(Try(**fields))  # type: ignore[arg-type]


PASSED = outcome(connected=True, status=200, answered_by="vault")
BOUNDARY = calls.Boundary(name="x", what="a call", tried="tried", stopped=True, control="control")
SOME = Deployed(placement=Placement(plane="p"))


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (outcome(connected=True, status=403), "refused (403)"),
        (outcome(connected=True, status=200), "refused (200)"),
        (outcome(connected=True, error="reset"), "refused (reset)"),
        (outcome(connected=True, error="tls: tlsv1_alert_unknown_ca"), "refused (unknown ca)"),
        (outcome(connected=True, connect_status=401), "refused (401)"),
        (outcome(connected=True, connect_status=200, error="closed"), "refused (closed)"),
        (outcome(connected=True, connect_status=200, status=403), "refused (403)"),
    ],
)
def test_any_answer_that_is_not_the_applications_is_a_refusal(refusal: dict, told: str) -> None:
    """A proxy may refuse by status, by reset or by silence; even by a 200 of its own it would not be the call."""
    found = calls._found(SOME, BOUNDARY, {"tried": refusal, "control": PASSED})

    assert (found.result, found.value) == (Result.HOLDS, told)


def test_the_applications_own_error_is_a_pass() -> None:
    """It was reached: whatever it answers."""
    reached = outcome(connected=True, status=500, answered_by="vault")

    assert calls._found(SOME, BOUNDARY, {"tried": reached, "control": PASSED}).result is Result.BROKEN


def test_a_refusal_without_its_control_is_no_evidence() -> None:
    """A dead route refuses everybody."""
    dead = outcome(error="timeout")
    found = calls._found(SOME, BOUNDARY, {"tried": dead, "control": dead})

    assert found.result is Result.NO_EVIDENCE and "FAILED too" in found.evidence


def test_a_refusal_where_a_pass_is_documented_is_broken_too() -> None:
    """The documented hole must be there, or the documents are wrong: either is news."""
    hole = dataclasses.replace(BOUNDARY, stopped=False, because="nobody reads HTTP")

    assert calls._found(SOME, hole, {"tried": PASSED, "control": PASSED}).result is Result.HOLDS
    closed = calls._found(SOME, hole, {"tried": outcome(status=403), "control": PASSED})
    assert closed.result is Result.BROKEN and DOCUMENTED in closed.statement


@pytest.mark.parametrize(
    ("plane", "kind", "l7", "by_pod"),
    [
        ("none", "none", False, False),
        ("sidecar", "sidecar", True, True),
        ("ambient_l4", "ambient", False, False),
        ("ambient", "ambient", True, False),
        ("hybrid", "ambient", False, False),
        ("envoy_sidecar", "sidecar", True, True),
        ("envoy_ambient_l4", "ambient", False, False),
        ("envoy_ambient", "ambient", True, False),
        ("envoy_hybrid", "ambient", False, False),
    ],
)
def test_who_reads_http_on_the_way_decides(plane: str, kind: str, l7: bool, by_pod: bool) -> None:
    """A sidecar always; a waypoint for who is sent through it; a ztunnel never (facts/hbone 7, rows 1, 2, 5, 6)."""
    placement = getattr(catalog, plane).place(TWO_ZONES, {})
    lab = type("Lab", (), {"topology": TWO_ZONES})()
    trial = calls._Trial(Deployed(placement=placement, lab=lab), "client")  # type: ignore[arg-type]

    assert calls.stand(placement.proxies, "server").kind == kind
    assert {b.name: b.stopped for b in trial.l7_boundaries()} == {"l7-denied": l7, "l7-denied-pod-ip": by_pod}
    tried = {a["name"]: a["kind"] for a in trial._outside()}
    assert tried["right"] == ("mtls" if kind == "sidecar" else "hbone")
    assert ("waypoint-wrong" in tried) == (plane in ("ambient", "hybrid", "envoy_ambient", "envoy_hybrid"))
