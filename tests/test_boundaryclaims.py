"""Verdicts on what is said about security, from attempts that came out one way or the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed import claims, table
from testbed.claims import Verdict
from testbed.model.experiment import Finding, Result
from tests.test_attack_inside import row

SUMMARY = table.summarise([])


def judged(id_: str, findings: list[Finding]) -> claims.Judged:
    (one,) = claims.judge([id_], SUMMARY, findings)
    return one


def tried(plane: str, component: str, **values: str) -> list[Finding]:
    """`key__a="got"`: two underscores are a slash, one a dash."""
    names = {name.replace("__", "/").replace("_", "-"): value for name, value in values.items()}
    return [row(name, value, component=component, plane=plane) for name, value in names.items()]


NODE = tried("ambient", "ztunnel.n", key__a="got", key__b="got", reach__as__a__x="got", reach__as__b__x="got",
             keys_others="refused")  # fmt: skip
ONE = tried("sidecar", "sidecar.a", key__a="got", reach__as__a__x="got", keys_others="refused")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], Verdict.NO_EVIDENCE),
        (NODE, Verdict.NO_EVIDENCE),
        (NODE + ONE, Verdict.CONFIRMED),
        (NODE + ONE + tried("sidecar", "sidecar.a", key__b="got"), Verdict.REFUTED),
        (NODE[:1] + NODE[2:3] + ONE, Verdict.REFUTED),
        (NODE + ONE + tried("ambient", "ztunnel.n", keys_uncovered="got"), Verdict.REFUTED),
        ([replace(NODE[0], result=Result.NO_EVIDENCE), *NODE[1:], *ONE], Verdict.UNDECIDED),
    ],
)
def test_identities_exposed(findings: list[Finding], verdict: Verdict) -> None:
    """Several keys at a ztunnel and one at a sidecar, all of them usable, none of others."""
    assert judged("blast-radius-identities", findings).verdict is verdict


@pytest.mark.parametrize(
    ("beside", "ambient", "verdict"),
    [
        ("refused", "refused", Verdict.REFUTED), ("got", "refused", Verdict.CONFIRMED), ("got", "got", Verdict.REFUTED),
    ],
)  # fmt: skip
def test_keys_in_reach_of_an_application(beside: str, ambient: str, verdict: Verdict) -> None:
    """The claim is of two halves: in reach beside a sidecar, and not in ambient."""
    findings = tried("sidecar", "app.a", keys_others=beside) + tried("ambient", "app.a", keys_others=ambient)

    assert judged("app-compromise-keys", findings).verdict is verdict


def test_a_stance_that_is_weaker_here_and_stronger_there_is_undecided() -> None:
    """Confirmed where nothing is stronger, refuted where nothing is weaker."""
    admin = tried("sidecar", "app.a", quit="got")

    assert judged("weaker-stance", NODE + ONE).verdict is Verdict.CONFIRMED
    assert judged("weaker-stance", NODE + ONE + admin).verdict is Verdict.UNDECIDED
    assert judged("weaker-stance", [replace(f, plane="sidecar") for f in NODE] + NODE[:1]).verdict is Verdict.REFUTED
    assert judged("weaker-stance", ONE).verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize(
    ("way", "datagram", "verdict"),
    [
        ("refused", "refused", Verdict.CONFIRMED), ("refused", "got", Verdict.REFUTED),
        ("got", "refused", Verdict.REFUTED),
    ],
)  # fmt: skip
def test_traffic_forced_through_the_proxy(way: str, datagram: str, verdict: Verdict) -> None:
    """Any way past it refutes that traffic is forced, and the text says which."""
    found = judged("forced-through-proxy", tried("sidecar", "app.a", mark=way, udp__x=datagram))

    assert found.verdict is verdict and ("udp/x" in found.measured) is (datagram == "got")


@pytest.mark.parametrize(("pod", "verdict"), [("got", Verdict.CONFIRMED), ("refused", Verdict.REFUTED)])
def test_a_pods_own_address(pod: str, verdict: Verdict) -> None:
    """The same request by the service's address and by the pod's."""
    findings = tried("ambient", "app.a", secret__x__service="refused", secret__x__pod=pod)

    assert judged("pod-ip-bypass", findings).verdict is verdict
    assert judged("pod-ip-bypass", findings[:1]).verdict is Verdict.NO_EVIDENCE


def test_calls_let_past_policy_weigh_in_the_stance() -> None:
    """As predicted, but not what the policies mean: more of them under a plane is weaker."""

    def meant(plane: str, past: int) -> Finding:
        return Finding(
            id="boundary.meant-requests", plane=plane, segment="call", statement="", result=Result.HOLDS, evidence="",
            value=f"{past} let past, 0 refused of 9",
        )  # fmt: skip

    tries = tried("sidecar", "app.a", key__a="got") + tried("ambient", "app.a", key__a="got")
    assert judged("weaker-stance", [*tries, meant("sidecar", 3), meant("ambient", 3)]).verdict is Verdict.REFUTED
    weaker = judged("weaker-stance", [*tries, meant("sidecar", 1), meant("ambient", 3)])
    assert weaker.verdict is Verdict.CONFIRMED and "calls let past policy 1 to 3" in weaker.measured
