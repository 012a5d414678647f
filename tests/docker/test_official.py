"""The official base from a registry: pulled by its own name, built on, and the image runs what a lab runs.

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

from testbed.docker import engine as engines
from testbed.docker import image, inputs, layer, packedbase
from testbed.docker.bases import BaseKind
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


def test_the_official_base_is_pulled_first_and_the_image_on_it_runs(
    mirrored: engines.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks for it by name: it is the first that is tried, and no other is."""
    monkeypatch.delenv("MESHBED_IMAGE_BASE", raising=False)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"

    built = image.build(mirrored)

    assert (built.base_kind, built.base, built.notes) == (BaseKind.OFFICIAL, f"python:{version}-slim-bookworm", ())
    said = mirrored.client.containers.run(
        built.reference,
        [image.PYTHON, "-c", "import sys, planes.sidecar.program; print('%d.%d' % sys.version_info[:2])"],
        network_mode="none", read_only=True, cap_drop=["ALL"], user="65534", remove=True,
    )  # fmt: skip
    assert said.decode().strip() == version
    again = image.find(mirrored)
    assert again is not None and again.reference == built.reference
