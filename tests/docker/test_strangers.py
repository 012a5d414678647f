"""Workloads that are no Python and none of ours, from Debian packages, in a mesh: reached, and proven from packets."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from testbed import labs, livelab, liveproof
from testbed.docker.engine import Engine
from testbed.program import CHECKOUT
from testbed.runtime.enter import in_netns
from tests import debianimages
from tests.labs import needs_engine

pytestmark = [pytest.mark.root, pytest.mark.docker]
TOPOLOGY = "examples/own_programs/own-programs.yml"


def test_nginx_and_redis_are_meshed_like_any_workload(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/docker.md, on one lab whose plane changes: every finding holds under `none`, where all is
    readable, under `sidecar` and under `ambient`. Redis keeps through the changes what a client sets: it is the same
    process."""
    needs_engine()
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(CHECKOUT)
    debianimages.nginx(engine)
    debianimages.redis(engine)
    name = f"s{os.getpid()}"
    said: list[bytes] = []
    try:
        for plane in ("none", "sidecar", "ambient"):
            up = {"plane": plane, "runtime": "docker", "link": "auto", "name": name, "keylog": plane != "none"}
            assert labs.up(TOPOLOGY, **up) in (0, 3)
            capsys.readouterr()
            for service in ("site", "store"):
                code = liveproof.prove(labs.topology_of(TOPOLOGY), "client", service, name=name, json_text=True)
                findings = json.loads(capsys.readouterr().out)
                assert code == 0 and {f["result"] for f in findings} == {"holds"}, findings
                seen = next(f["id"] for f in findings if f["id"].endswith(("/readable", "/hidden")))
                assert seen.endswith("/readable" if plane == "none" else "/hidden")
            client = next(w for w in livelab.about_of(tmp_path / "state" / name)["workloads"] if w["name"] == "client")
            said.append(in_netns(client["netns"], lambda: redis(b"GET k" if said else b"SET k canary")))
    finally:
        labs.down(name)

    assert said == [b"+OK\r\n", b"$6\r\ncanary\r\n", b"$6\r\ncanary\r\n"]


def redis(line: bytes) -> bytes:
    """What redis says to a line, as a client of the service."""
    with socket.create_connection(("10.96.0.11", 6379), 10) as connection:
        connection.sendall(line + b"\r\n")
        answer = b""
        while not answer.endswith(b"\n") or answer == b"$6\r\n":
            part = connection.recv(4096)
            assert part, answer
            answer += part
        return answer
