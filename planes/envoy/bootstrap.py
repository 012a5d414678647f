"""A proxy's config.json, as the deployer writes it, to Envoy's bootstrap. Pure but for reading the view's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from planes.envoy import pieces, ztunnel
from planes.envoy.pieces import Identity, Json
from planes.mesh.view import MeshView, WorkloadView
from testbed.errors import UsageError

Role = Callable[[MeshView, WorkloadView, Identity, str | None], tuple[list[Json], list[Json]]]
ROLES: Mapping[str, Role] = {"envoy-ztunnel": ztunnel.build}


def load(file: Path) -> Json:
    """Raises UsageError for a config.json that is not the deployer's."""
    try:
        config = json.loads(file.read_text())
        view = json.loads((file.parent / config["view"]).read_text())
        return build(config, view)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise UsageError(
            f"{file}: {cause!r}; it must be the JSON that the deployer writes, and name its view"
        ) from cause


def build(config: Mapping, view: Mapping) -> Json:
    """`config["options"]["workload"]` is `namespace/name` of the workload (or waypoint) that it acts for."""
    role = ROLES.get(config["role"])
    if role is None:
        raise UsageError(f"no Envoy role is called {config['role']!r}; known: {', '.join(sorted(ROLES))}")
    namespace, _, name = config["options"]["workload"].partition("/")
    mesh = MeshView.parse(view)
    local = mesh.local(namespace, name)
    if local is None:
        raise UsageError(f"workload {namespace}/{name} is not in the view")
    files = config["identities"][str(local.identity)]
    identity = Identity(
        uri=str(local.identity), certificate=files["certificate"], key=files["key"], roots=files["roots"]
    )
    listeners, clusters = role(mesh, local, identity, config.get("keylog"))
    return pieces.bootstrap(node=config["name"], listeners=[*listeners, pieces.ready_listener()], clusters=clusters)
