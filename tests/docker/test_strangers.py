"""Workloads that are no Python and none of ours, from Debian packages, in a mesh: reached, and proven from packets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed import deploy, lab, planespec, proof, topofile
from testbed.docker.engine import Engine
from testbed.links.probe import choose
from testbed.model.experiment import Result
from testbed.runtime.dockerruntime import DockerRuntime
from testbed.runtime.enter import in_netns
from testbed.sweep import extra_sandboxes
from tests import debianimages
from tests.labs import needs_engine

pytestmark = [pytest.mark.root, pytest.mark.docker]
TOPOLOGY = """
name: strangers
nodes: {{node-a: {{}}, node-b: {{}}}}
workloads:
  client: {{node: node-a, serviceAccount: client}}
  site: {{node: node-b, serviceAccount: site, app: {{kind: image, image: "{nginx}", ports: [80]}}}}
  store: {{node: node-b, serviceAccount: store, app: {{kind: image, image: "{redis}", ports: [6379]}}}}
services:
  site: {{ports: [{{port: 80, targetPort: 80, protocol: http}}], workloads: [site]}}
  store: {{ports: [{{port: 6379, targetPort: 6379, protocol: tcp}}], workloads: [store]}}
links:
  - {{between: [node-a, node-b], delayMs: 1}}
"""


@contextmanager
def mesh(engine: Engine, plane: str, folder: Path) -> Iterator[deploy.Deployment]:
    text = TOPOLOGY.format(nginx=debianimages.nginx(engine), redis=debianimages.redis(engine))
    topology = topofile.parse(text, "strangers.yml")
    placement = planespec.place(plane, topology)
    with (
        lab.up(
            topology, runtime=DockerRuntime(), links=choose(), name=f"s{os.getpid()}", logs=folder / "logs",
            extra=extra_sandboxes(placement),
        ) as up,
        deploy.deploy(up, placement, keylog=True) as deployment,
    ):  # fmt: skip
        yield deployment


@pytest.mark.parametrize("plane", ["none", "ambient", "sidecar"])
def test_nginx_and_redis_are_meshed_like_any_workload(
    plane: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each packet between them is judged as for our own applications: the plane's claims hold, and `none` has its
    cleartext. Redis keeps what the client sets through the mesh."""
    needs_engine()
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    with mesh(engine, plane, tmp_path) as deployment:
        findings = proof.prove(deployment, client="client", target="site", captures=tmp_path / "captures")
        address = deployment.lab.topology.service("store").address
        with in_netns(deployment.lab.netns("client"), lambda: socket.create_connection((address, 6379), 5)) as redis:
            redis.sendall(b"SET k canary\r\nGET k\r\n")
            answer = b""
            while not answer.endswith(b"canary\r\n"):
                part = redis.recv(4096)
                assert part, answer
                answer += part

        assert answer == b"+OK\r\n$6\r\ncanary\r\n"
        assert findings and {f.result for f in findings} == {Result.HOLDS}
        clear = next(f for f in findings if f.id.endswith(("/readable", "/hidden")))
        assert clear.id.endswith("/readable" if plane == "none" else "/hidden")
        assert deployment.dead() == []
