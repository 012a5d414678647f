"""Real Envoys as containers: each of their planes holds on Docker what it claims, by packets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed import lab, planespec, proof, swap, topofile
from testbed.lab import Lab
from testbed.links.probe import choose
from testbed.model.experiment import Result
from testbed.runtime.dockerruntime import DockerRuntime
from tests.labs import needs_engine, needs_envoy

pytestmark = [
    pytest.mark.root,
    pytest.mark.docker,
    pytest.mark.envoy,
    needs_envoy,
]
TOPOLOGY = topofile.load(topofile.find("two-zones"))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all planes, which are exchanged in it."""
    needs_engine()
    folder = tmp_path_factory.mktemp("envoy")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MESHBED_STATE", str(folder / "state"))
        with lab.up(
            TOPOLOGY, runtime=DockerRuntime(), links=choose(), name=f"e{os.getpid()}", logs=folder / "logs"
        ) as made:
            yield made


@pytest.mark.parametrize(
    ("plane", "target"),
    [
        ("envoy-ambient-l4", "tcp"),
        ("envoy-ambient", "server"),
        ("envoy-sidecar", "server"),
        ("envoy-hybrid", "server"),
    ],
)
def test_an_envoy_plane_holds_what_it_claims(up: Lab, plane: str, target: str, tmp_path: Path) -> None:
    """All canaries arrive, and every claim of every segment is seen to hold."""
    with ExitStack() as stack:
        deployment = swap.swap(up, planespec.place(plane, TOPOLOGY), stack=stack, keylog=True)
        findings = proof.prove(deployment, client="client", target=target, captures=tmp_path)

    assert deployment.dead() == []
    assert len(findings) > 10
    assert [f for f in findings if f.result is not Result.HOLDS] == []
