"""The official base from a registry: pulled by its own name, before any other base is tried.

The registry is the test's own, as the mirror of an engine of the test's own, and serves a Python that works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.docker import bases, inputs, layer, packedbase
from testbed.docker import engine as engines
from testbed.program import CHECKOUT
from tests.docker.registry import serving

pytestmark = [pytest.mark.docker, pytest.mark.root]


@pytest.fixture
def mirrored() -> Iterator[engines.Engine]:
    """An engine without images that takes docker.io for a registry on loopback."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and dockerd (apt-get install docker.io)")
    cache = layer.cache_folder()
    native = [entry.source for entry in inputs.packages() if entry.source is not None]
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short, for a socket lies in it
    words = [str(CHECKOUT / ".ci" / "engine"), "start", str(folder)]
    with serving(packedbase.entries(native=native, cache=cache)) as name:
        mirror = f"--registry-mirror=http://{name.partition('/')[0]}"
        try:
            started = subprocess.run([*words, mirror], capture_output=True, text=True, timeout=120)
            if started.returncode != 0:
                pytest.skip(f"needs a machine where dockerd starts: {started.stderr[-300:]}")
            connected = engines.connect(started.stdout.strip())
            yield connected
            connected.close()
        finally:
            subprocess.run([words[0], "stop", str(folder)], capture_output=True, timeout=120)


def test_the_official_base_is_pulled_before_any_other_is_made(mirrored: engines.Engine) -> None:
    """Nobody asks for it by name: it is the first that is tried. Its Python runs, and the second time nothing is
    fetched.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    told: list[str] = []

    base, notes = bases.obtain(mirrored, bases.AUTO, progress=told.append)

    assert (base.kind, base.reference, notes) == (bases.BaseKind.OFFICIAL, f"python:{version}-slim-bookworm", [])
    said = mirrored.client.containers.run(
        base.reference, [base.python, "-c", "import asyncio, ssl, sys; print('%d.%d' % sys.version_info[:2])"],
        network_mode="none", read_only=True, cap_drop=["ALL"], user="65534", remove=True,
    )  # fmt: skip
    assert said.decode().strip() == version
    assert bases.obtain(mirrored, bases.AUTO, progress=told.append) == (base, [])
    assert [line.rpartition(" ")[2] for line in told] == ["(pull)", "(use)"]
