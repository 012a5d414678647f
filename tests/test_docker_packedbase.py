"""The running Python, packed: whole, and the same every time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from testbed.docker import layer, packedbase
from testbed.errors import MachineError

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[layer.Entry]:
    return packedbase.entries(cache=tmp_path_factory.mktemp("cache"))


def test_interpreter_library_and_loader_are_there(entries: list[layer.Entry]) -> None:
    """At a place of our own, whatever folder the interpreter runs from here; byte code beside each source."""
    found = {entry.path: entry for entry in entries}

    assert found[f"{packedbase.PLACE}/bin/{VERSION}"].source == Path(os.path.realpath(sys.executable))
    assert f"{packedbase.PLACE}/lib/{VERSION}/os.py" in found
    assert (
        f"{packedbase.PLACE}/lib/{VERSION}/asyncio/__pycache__/base_events.{sys.implementation.cache_tag}.pyc" in found
    )
    assert [path for path in found if path.endswith("/libc.so.6") and path.startswith("usr/lib")]
    assert not [path for path in found if str(Path.home()).lstrip("/") + "/" in path or "/site-packages/" in path]


def test_no_path_stands_behind_a_link(entries: list[layer.Entry]) -> None:
    """/lib is a link in the image; a file packed at lib/x would replace it."""
    links = {entry.path for entry in entries if entry.link is not None and "/" not in entry.path}

    assert "lib" in links
    assert not [entry.path for entry in entries if entry.path.partition("/")[0] in links and "/" in entry.path]


def test_twice_is_the_same(entries: list[layer.Entry], tmp_path: Path) -> None:
    assert layer.key(packedbase.entries(cache=tmp_path)) == layer.key(entries)


def test_without_ldd_it_says_which_package_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(MachineError, match="ldd is missing"):
        packedbase.linked([Path(sys.executable)])
