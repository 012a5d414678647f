"""Envoys' configurations written as the deployer would and shown to Envoy itself, without anything being started."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from planes.envoy import binary, bootstrap
from planes.envoy.pieces import Json
from testbed.bench.loopback import write_certificates
from testbed.model.placement import Proxy


def built(proxy: Proxy, view: dict | None = None) -> tuple[Json, list[str]]:
    """Its bootstrap, and what that leaves undone; its files are called after the identity's account."""
    identities = {
        str(i): {"certificate": "leaf.pem", "key": "leaf.key", "roots": "roots.pem"} for i in proxy.identities
    }
    config = {"name": proxy.name, "role": proxy.role, "identities": identities, "options": proxy.options}
    return bootstrap.build(json.loads(json.dumps(config)), view or proxy.view)


def refusal(made: Json, folder: Path) -> str:
    """What Envoy has against it; empty for nothing."""
    if not (folder / "leaf.pem").exists():
        write_certificates(folder, {"leaf": "spiffe://cluster.local/ns/default/sa/leaf"})
    file = folder / "envoy.json"
    file.write_text(json.dumps(made))
    argv = [str(binary.required()), "--mode", "validate", "-c", str(file), "-l", "error", "--concurrency", "1"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else (done.stderr + done.stdout)[-2000:]
