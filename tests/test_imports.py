"""The import directions of ARCHITECTURE.md, each as a test: read from the sources, and tried in a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = (
    *sorted((ROOT / "testbed" / "model").glob("*.py")),
    *(ROOT / "planes" / "mesh" / f"{name}.py" for name in (
        "fields", "local", "view", "route", "accesslog", "metrics", "baggage", "frames", "hbone", "hbone_stream",
        "hbone_output", "hbone_input", "headers", "keepalive")),
    *(ROOT / "planes" / "l7" / f"{name}.py" for name in (
        "message", "codec", "view", "place", "route", "decision", "rewrite", "match", "balance", "retry", "circuit",
        "edit", "detect", "clienthello", "http1", "http1_fields", "http1_write", "http1_chunks", "http1_connection",
        "http1_server", "http1_client", "hpack_tables", "hpack", "http2_head", "http2_stream", "http2_connection",
        "http2")),
    ROOT / "testbed" / "links" / "delayline.py",
    ROOT / "testbed" / "links" / "pacing.py",
    ROOT / "testbed" / "nftmessages.py",
    ROOT / "testbed" / "schemadefs.py",
    *(ROOT / "testbed" / "hops" / f"{name}.py" for name in (
        "messages", "route", "sightings", "waterfall", "readback", "shown", "drawn")),
    ROOT / "planes" / "catalog.py",
    ROOT / "planes" / "ztunnel" / "place.py",
)  # fmt: skip
IMPURE = {"asyncio", "socket", "time", "random", "os", "ssl", "subprocess", "threading", "select"}
HEAVY = {"docker", "pandas", "scapy", "locust", "pyarrow", "matplotlib", "gevent", "yaml"}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a module imports, wherever in it the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import; write it out"
    return names


def offenders(paths: list[Path], forbidden: tuple[str, ...]) -> dict[str, list[str]]:
    found = {}
    for path in paths:
        bad = sorted(n for n in imported(path) if any(n == f or n.startswith(f"{f}.") for f in forbidden))
        if bad:
            found[str(path.relative_to(ROOT))] = bad
    return found


def sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no modules under {folders}: the layout has changed and this test with it"
    return found


def test_the_testbed_imports_no_planes() -> None:
    """Planes are plugged in by name (registry); the judge must not depend on the judged."""
    assert offenders(sources("testbed"), ("planes", "experiments")) == {}


def test_the_model_imports_the_standard_library_and_itself_only() -> None:
    """Values cross every seam, so they may drag nothing along."""
    foreign = {}
    for path in sources("testbed/model"):
        roots = {n.split(".")[0] for n in imported(path)}
        own = [n for n in imported(path) if n.startswith("testbed.") and not n.startswith("testbed.model")]
        bad = sorted(roots - set(sys.stdlib_module_names) - {"testbed"}) + own
        if bad:
            foreign[path.name] = bad

    assert foreign == {}


def test_what_every_proxy_is_made_of_imports_only_the_model() -> None:
    """`planes.mesh` knows neither the planes built from it nor how a lab is brought up."""
    paths = sources("planes/mesh")
    found = {
        str(p.relative_to(ROOT)): bad
        for p in paths
        if (bad := sorted(n for n in imported(p) if n.startswith("testbed") and not n.startswith(
            ("testbed.model", "testbed.errors"))))
    }  # fmt: skip

    assert found == {}
    assert offenders(paths, ("planes.ztunnel", "planes.sidecar", "planes.waypoint", "planes.catalog")) == {}


def test_what_l7_proxies_are_made_of_knows_no_proxy() -> None:
    """`planes.l7` builds on `planes.mesh` alone; its sidecars and waypoints are built on it."""
    others = ("ztunnel", "sidecar", "waypoint", "hybrid", "envoy", "catalog", "claims")

    assert offenders(sources("planes/l7"), tuple(f"planes.{name}" for name in others)) == {}


def test_a_plane_from_outside_needs_the_model_alone() -> None:
    """What the page shows must not lean on the insides of the checkout."""
    names = {name for path in sources("examples/own_plane/own_plane") for name in imported(path)}
    ours = {name for name in names if name.split(".")[0] in ("testbed", "planes", "experiments", "topologies")}

    assert {".".join(name.split(".")[:2]) for name in ours} <= {"testbed.model", "testbed.errors"}


@pytest.mark.parametrize("path", [p for p in PURE if p.exists()], ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_modules_import_nothing_that_acts(path: Path) -> None:
    """No socket, clock, chance or process: these come in as arguments."""
    assert sorted(n for n in imported(path) if n.split(".")[0] in IMPURE) == []


def test_starting_a_proxy_loads_nothing_heavy() -> None:
    """An idle proxy's memory is a result of this testbed; a stray import would be in it."""
    proxies = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in sources("planes/mesh", "planes/ztunnel")
        if p.name not in ("__init__.py", "__main__.py", "place.py")
    ]
    program = "import importlib, json, sys\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    program += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps(proxies)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    assert "planes" in json.loads(ran.stdout)
    assert sorted(HEAVY & set(json.loads(ran.stdout))) == []
