"""What goes into an image: all that programs of a lab import, and nothing that only those outside need."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from testbed import program
from testbed.docker import inputs, layer
from testbed.errors import MachineError


@pytest.fixture(scope="module")
def packed() -> set[str]:
    return {entry.path for entry in inputs.packages()}


def test_required_packages_come_with_those_that_require_them() -> None:
    """Locust brings gevent and what that needs; what only other platforms or extras want does not matter."""
    found = inputs.closure(["locust", "uvloop"])

    assert {"locust", "uvloop", "gevent", "greenlet", "requests"} <= set(found)
    assert not {"pandas", "docker", "scapy", "matplotlib", "ruff"} & set(found)
    assert found == sorted(set(found))


def test_a_needed_package_that_is_missing_is_an_error_and_an_optional_one_is_not() -> None:
    assert inputs.closure(["uvloop"], ["no-such-package"]) == ["uvloop"]
    with pytest.raises(MachineError, match="needs the package no-such-package, which is not installed"):
        inputs.closure(["no-such-package"])


def test_packages_bring_sources_and_libraries_but_no_traces_of_this_machine(packed: set[str]) -> None:
    """Neither scripts with this machine's paths, nor byte code of its folders, nor how a package came here."""
    inside = {path.removeprefix(f"{inputs.PACKAGES}/") for path in packed}

    assert {"uvloop/__init__.py", "h2/connection.py", "aiofastnet/__init__.py"} <= inside
    assert any(path.startswith("gevent.libs/") or path.endswith(".so") for path in inside)
    assert not [
        p for p in inside if ".." in p or "__pycache__" in p or p.endswith(("RECORD", "direct_url.json", ".pth"))
    ]
    assert any(path.endswith(".dist-info/METADATA") for path in inside), "locust asks for its own version"


def test_code_is_the_checkouts_and_nothing_else() -> None:
    found = {entry.path for entry in inputs.code()}

    assert {f"{inputs.CODE}/planes/ztunnel/__main__.py", f"{inputs.CODE}/planes/mesh/openssl.cnf"} <= found
    assert not [path for path in found if "/tests/" in path or "/results/" in path or path.endswith(".pyc")]


def test_an_edit_changes_the_key_and_taking_it_back_restores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the image is built again when the code changes, and found again when it was built before."""
    monkeypatch.setattr(program, "CHECKOUT", tmp_path)
    file = tmp_path / "planes" / "x.py"
    file.parent.mkdir()
    keys = []
    for text in ("a = 1", "a = 2", "a = 1"):
        file.write_text(text)
        (tmp_path / "planes" / "notes.txt").write_text(str(len(keys)))
        keys.append(layer.key(inputs.code()))

    assert keys[0] == keys[2] != keys[1]


def test_the_packages_key_is_of_their_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays while the packages do, and changes with any file that a record names."""
    key = inputs.packages_key()
    assert inputs.packages_key() == key

    read = metadata.PathDistribution.read_text
    changed = functools.partialmethod(lambda self, name: (read(self, name) or "").replace("sha256=", "sha256=x"))
    monkeypatch.setattr(metadata.PathDistribution, "read_text", changed)
    assert inputs.packages_key() != key


def test_a_package_with_a_plane_of_its_own_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point: its programs run in the lab, though it is none of our packages; with what it requires.
    """
    (tmp_path / "ownplane").mkdir()
    (tmp_path / "ownplane" / "__init__.py").write_text("def place(topology, options): ...\n")
    info = tmp_path / "ownplane-1.dist-info"
    info.mkdir()
    requires = "Requires-Dist: invoke>=1\nRequires-Dist: nowhere; extra == 'x'\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ownplane\nVersion: 1\n{requires}")
    (info / "entry_points.txt").write_text("[testbed.plane]\nown = ownplane\n")
    before = inputs.packages_key()
    assert not inputs.has("ownplane.proxy") and not inputs.has("invoke")
    monkeypatch.syspath_prepend(tmp_path)

    paths = set(_paths())
    assert {f"{inputs.PACKAGES}/ownplane/__init__.py", f"{inputs.PACKAGES}/invoke/__init__.py"} <= paths
    assert all(map(inputs.has, ("ownplane.proxy", "invoke", "planes.ztunnel", "http.server", "locust")))
    assert inputs.packages_key() != before


def _paths() -> Iterator[str]:
    return (entry.path for entry in inputs.packages())
