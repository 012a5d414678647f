"""Every pair under every set of policies: the sets leave no field out, and what was observed is judged as it came."""

from __future__ import annotations

import csv
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from testbed import boundarypairs
from testbed.boundarypairs import SETS, Row
from testbed.links.probe import choose
from testbed.model.experiment import Finding, Result
from testbed.model.policy import L4_CONDITIONS, Action, Mode, Operation, Source
from testbed.registry import load
from testbed.verify.oracle import Message
from testbed.verify.ways import Asked, Prediction
from tests.labs import needs_root

HERE = Row(
    asked=Asked(caller="client", endpoint="cart", service="cart", message=Message()), request="GET", intended=True,
    prediction=Prediction(allowed=True, at="ztunnel", why="to-cart"), observed=True, seen="200",
)  # fmt: skip
REFUSED = Prediction(allowed=False, at="ztunnel", why="no-cart")


def judged(*rows: Row) -> tuple[Finding, Finding]:
    meant, verdicts = boundarypairs.judged("ambient", SETS[0], rows, 0)
    return meant, verdicts


def test_what_came_as_predicted_holds() -> None:
    """What passed and what was refused."""
    assert judged(HERE, replace(HERE, prediction=REFUSED, observed=False))[1].result is Result.HOLDS


def test_one_call_that_came_otherwise_breaks_it_and_is_told() -> None:
    """Who called whom, what should have been, by whose word."""
    leak = replace(HERE, prediction=REFUSED)

    (meant, found) = judged(HERE, leak)
    assert found.result is meant.result is Result.BROKEN
    assert found.value == "1 of 2 as predicted"
    assert "client to cart by service, GET: is refused at ztunnel (no-cart), but 200" in found.evidence


def test_a_call_that_nobody_answered_is_no_evidence() -> None:
    """Silence is no refusal; nor do no calls at all prove anything."""
    silent = replace(HERE, prediction=REFUSED, observed=None, seen="timeout")

    assert judged(HERE, silent)[1].result is Result.NO_EVIDENCE
    assert judged()[1].result is Result.NO_EVIDENCE


def test_what_passes_although_policy_means_otherwise_is_counted_though_it_was_predicted() -> None:
    """As is what is refused: the verdict may be right by the rules and not what anybody meant."""
    past, shut = replace(HERE, intended=False), replace(HERE, prediction=REFUSED, observed=False)

    meant, _ = judged(HERE, past, past, shut)
    assert meant.value == "2 let past, 1 refused of 4"
    assert meant.evidence == "let past: cart by service 2; refused although allowed: cart by service 1"


def test_everybody_calls_everybody() -> None:
    """Each workload and node each other's address, each workload each service that it is not behind."""
    topology, _ = boundarypairs.world("ambient", SETS[0])
    found = {(a.caller, a.service or a.endpoint) for _, a in boundarypairs.asked(topology, SETS[0])}
    pods = {w.name for w in topology.workloads if w.app.ports}
    names = {w.name for w in topology.workloads}

    behind = {s.name: set(s.endpoints) for s in topology.services}
    assert found == {
        *((caller, pod) for caller in names | {n.name for n in topology.nodes} for pod in pods - {caller}),
        *((caller, name) for caller in names for name in behind if caller not in behind[name]),
    }


def test_no_field_of_istios_is_left_out() -> None:
    """Of AuthorizationPolicy's sources, operations and conditions and of PeerAuthentication, but what takes a token."""
    documents = [d for s in SETS for d in yaml.safe_load_all(s.path.read_text()) if d]
    rules = [rule for d in documents for rule in (d.get("spec") or {}).get("rules", [])]
    sources = {key for rule in rules for one in rule.get("from", []) for key in one["source"]}
    operations = {key for rule in rules for one in rule.get("to", []) for key in one["operation"]}
    conditions = {one["key"].partition("[")[0] for rule in rules for one in rule.get("when", [])}
    peers = [d["spec"] for d in documents if d["kind"] == "PeerAuthentication"]
    modes = {p["mtls"]["mode"] for p in peers} | {m["mode"] for p in peers for m in p.get("portLevelMtls", {}).values()}

    assert {_camel(f.name) for f in fields(Source)} - sources == {"notRequestPrincipals"}
    assert {_camel(f.name) for f in fields(Operation)} - operations == set()
    assert {*L4_CONDITIONS, "request.headers", "remote.ip", "connection.sni", "request.auth.claims"} == conditions
    assert modes == {str(mode) for mode in Mode}
    actions = {(d.get("spec") or {}).get("action", "ALLOW") for d in documents if d["kind"] == "AuthorizationPolicy"}
    assert actions == {str(action) for action in Action} - {"CUSTOM"}
    attached = {ref["kind"] for d in documents for ref in (d.get("spec") or {}).get("targetRefs", [])}
    assert attached == {"Service", "Gateway", "GatewayClass"}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@pytest.mark.root
@needs_root
def test_observed_verdicts_are_the_predicted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every pair, where all kinds of workloads are mixed and each is called by the others; SNI between sidecars,
    too."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    few = {name: SETS[1].messages[name] for name in ("GET", "GET /secret around")}
    table = tmp_path / "pairs.csv"
    findings = boundarypairs.try_all(
        "hybrid", runtime=load("runtime", "netns")(), links=choose("auto"), name=f"t{os.getpid()}",
        logs=tmp_path / "logs", table=table, sets=[replace(SETS[1], messages=few)],
    )  # fmt: skip

    assert [f"{f.id}: {f.value}; {f.evidence}" for f in findings if f.result is not Result.HOLDS] == []
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert {(row["predicted"], row["observed"]) for row in rows} == {("allowed",) * 2, ("refused",) * 2}
    assert {row["at"] for row in rows} == {"ztunnel", "sidecar", "waypoint", "nobody"}
    assert "by-sni" in {row["why"] for row in rows if row["observed"] == "allowed"}
