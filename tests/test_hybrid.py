"""Kinds, proxies and views of the hybrid plane, and its table: the page, the claims and the data say the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from planes import catalog
from planes.claims import wire
from planes.hybrid.matrix import MATRIX, markdown
from planes.hybrid.place import Kind, kinds
from testbed.errors import UsageError
from testbed.model.placement import CaptureKind
from testbed.topofile import load

TWO_ZONES, HYBRID = load("two-zones"), load("hybrid")


def test_unlabelled_servers_are_ambient_and_their_clients_have_sidecars() -> None:
    """What the quickstart shows of this plane is the mixed path."""
    assert {name: kind for name, kind in kinds(TWO_ZONES).items() if name in ("client", "intruder", "server")} == {
        "client": Kind.SIDECAR, "intruder": Kind.SIDECAR, "server": Kind.AMBIENT,
    }  # fmt: skip


def test_a_label_decides() -> None:
    """Also against what stands behind a service."""
    workloads = tuple(dataclasses.replace(w, plane="none") if w.name == "server" else w for w in TWO_ZONES.workloads)
    assert kinds(dataclasses.replace(TWO_ZONES, workloads=workloads))["server"] is Kind.NONE


def test_each_kind_is_captured_by_its_own_proxy() -> None:
    """One capture a workload: sidecars win nothing from ztunnels and the reverse; none is left alone."""
    placement = catalog.hybrid.place(HYBRID, {})
    assert {c.workload: c.kind for c in placement.captures} == {
        "from-sidecar": CaptureKind.SIDECAR, "to-sidecar": CaptureKind.SIDECAR,
        "from-ambient": CaptureKind.IN_POD, "to-ambient": CaptureKind.IN_POD,
    }  # fmt: skip
    held = {p.name: {i.service_account for i in p.identities} for p in placement.proxies}
    assert held == {
        "ztunnel.node-a": {"from-ambient"}, "ztunnel.node-b": {"to-ambient"}, "waypoint.waypoint": {"waypoint"},
        "sidecar.from-sidecar": {"from-sidecar"}, "sidecar.to-sidecar": {"to-sidecar"},
    }  # fmt: skip


@pytest.mark.parametrize("listens", [False, True])
def test_sidecars_are_published_as_they_listen(listens: bool) -> None:
    """HBONE with nativeTunnel in every proxy's view, and 15008 in the sidecars' own options; else neither."""
    placement = catalog.hybrid.place(HYBRID, {"listens_hbone": "yes"} if listens else {})
    for proxy in placement.proxies:
        entry = next(w for w in proxy.view["workloads"] if w["name"] == "to-sidecar")
        assert (entry["protocol"], entry.get("nativeTunnel", False)) == (("HBONE", True) if listens else ("TCP", False))
        if proxy.role == "sidecar":
            assert proxy.options.get("listens_hbone", False) is listens


def test_an_option_of_no_meaning_is_an_error() -> None:
    """Neither a guess nor silence."""
    with pytest.raises(UsageError, match="yes or no"):
        catalog.hybrid.place(HYBRID, {"listens_hbone": "maybe"})


def test_the_table_holds_every_pair_once() -> None:
    """Three kinds of client, and of server those and the sidecar that listens."""
    pairs = [(cell.client, cell.server) for cell in MATRIX]
    assert sorted(pairs) == sorted(
        (c, s) for c in ("sidecar", "ambient", "none") for s in ("sidecar", "sidecar*", "ambient", "none")
    )


@pytest.mark.parametrize("cell", MATRIX, ids=lambda cell: f"{cell.client}-{cell.server}")
def test_claims_follow_the_table(cell) -> None:
    """What the judge is told to expect on the wire is what the table says."""
    assert wire(cell.client, cell.server.rstrip("*"), listens_hbone=cell.server.endswith("*")) == cell.wire


def test_the_page_prints_the_table() -> None:
    """docs/hybrid.md, between its marks."""
    page = (Path(__file__).parent.parent / "docs" / "hybrid.md").read_text()
    found = re.search(r"<!-- matrix -->\n(.*?)<!-- end -->", page, re.S)
    assert found is not None
    assert found[1] == markdown()
