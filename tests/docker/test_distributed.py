"""Several generator processes as containers of one network namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.runtime.dockerruntime import DockerRuntime
from tests.labs import needs_engine
from tests.test_distributed_lab import deployed, sends_every_request_once

pytestmark = [pytest.mark.root, pytest.mark.docker]


def test_workers_in_containers_share_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They meet their master over the loopback of the client's container, and see its folder."""
    needs_engine()
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    with deployed(DockerRuntime(), tmp_path, "none") as deployment:
        sends_every_request_once(deployment)
