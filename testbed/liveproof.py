"""What packets prove of a lab that stays: canary requests under capture, judged by the claims of its plane."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from testbed import declared, deploy, planespec, proof
from testbed.errors import UsageError
from testbed.lab import Lab
from testbed.livelab import about_of, attach, chosen_up, known_names
from testbed.model.experiment import Finding, Result
from testbed.model.topology import Topology
from testbed.pki import CertificateAuthority
from testbed.runnames import results_root
from testbed.runtime import ownership
from testbed.store import as_json


def prove(topology: Topology, client: str, target: str, *, name: str, json_text: bool = False) -> int:
    """0 where every claim holds, 4 where one is broken, 3 where some could not be judged."""
    name = chosen_up(name or topology.name)
    about = about_of(ownership.state_root() / name)
    plane = about["declared"]["plane"]
    _same(about, topology, name)
    for what, given, known in (
        ("workload", client, [w.name for w in topology.workloads]),
        ("service", target.partition(":")[0], [s.name for s in topology.services]),
    ):
        if given not in known:
            raise UsageError(f"lab {name} has no {what} {given!r}; {known_names(given, known)}")
    if about["proxies"] and not about["keylog"]:
        raise UsageError(
            f"lab {name}: its proxies keep their TLS secrets, so what is inside cannot be judged; "
            f"./inv lab.up with --plane {plane} --keylog changes that in place"
        )
    _, attached = attach(name)
    lab = Lab(topology=topology, running=attached, links=[], link_kind=about["link_kind"])
    deployment = deploy.Deployment(
        lab=lab,
        placement=planespec.place(plane, topology),
        authority=CertificateAuthority(now=0.0, trust_domain=topology.trust_domain),
    )
    folder = results_root() / "captures" / name / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    findings = proof.prove(deployment, client=client, target=target, captures=folder)
    if json_text:
        print(json.dumps(as_json(findings), indent=1))
    else:
        print("\n".join(_line(finding) for finding in findings))
    _sum_up(findings, folder)
    results = {finding.result for finding in findings}
    return 4 if Result.BROKEN in results else 3 if Result.NO_EVIDENCE in results or not findings else 0


def _same(about: dict, topology: Topology, name: str) -> None:
    """Raises UsageError where the lab is not of this topology, links apart: those are as `link.set` made them."""
    was = about["declared"]
    asked = {key: was[key] for key in ("plane", "runtime", "keylog")}
    wanted = declared.declaration(topology, link=was["link kind"], **asked)
    needed = declared.change(was, wanted)
    if needed.rest or needed.plane:
        lines = declared.told(declared.differences(was, wanted))
        raise UsageError(f"lab {name} is not what that topology says (it → now asked):\n{lines}\n./inv lab.up it first")


def _line(finding: Finding) -> str:
    return f"{finding.result.value:<12} {finding.segment:<28} {finding.statement}: {finding.value}"


def _sum_up(findings: list[Finding], folder: Path) -> None:
    holding = sum(finding.result is Result.HOLDS for finding in findings)
    print(f"{holding} of {len(findings)} findings hold; packets: {folder}", file=sys.stderr)
