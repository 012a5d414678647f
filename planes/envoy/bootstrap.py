"""A proxy's config.json, as the deployer writes it, to Envoy's bootstrap. Pure but for reading the view's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from planes.envoy import pieces, sidecar, waypoint, ztunnel
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import Identity, Json
from planes.l7.view import L7View
from planes.mesh.view import MeshView
from testbed.errors import UsageError

Role = Callable[[Subject, Parts], None]
ROLES: Mapping[str, Role] = {
    "envoy-ztunnel": ztunnel.build,
    "envoy-sidecar": sidecar.build,
    "envoy-waypoint": waypoint.build,
}


def load(file: Path) -> tuple[Json, dict[str, Json], list[str]]:
    """The bootstrap; the files that it wants beside itself, by name; and what of the resources it leaves undone.

    Raises UsageError for a config.json that is not the deployer's.
    """
    try:
        config = json.loads(file.read_text())
        view = json.loads((file.parent / config["view"]).read_text())
        made, undone = build(config, view, renewed=True)
        return made, pieces.secrets(_subject(config, view, renewed=True).identity), undone
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise UsageError(
            f"{file}: {cause!r}; it must be the JSON that the deployer writes, and name its view"
        ) from cause


def build(config: Mapping, view: Mapping, *, renewed: bool = False) -> tuple[Json, list[str]]:
    """`config["options"]["workload"]` is `namespace/name` of the workload (or waypoint) that it acts for."""
    role = ROLES.get(config["role"])
    if role is None:
        raise UsageError(f"no Envoy role is called {config['role']!r}; known: {', '.join(sorted(ROLES))}")
    parts = Parts()
    role(_subject(config, view, renewed=renewed), parts)
    made = pieces.bootstrap(
        node=config["name"],
        listeners=[*parts.listeners, pieces.ready_listener()],
        clusters=list(parts.clusters.values()),
        mark=config["options"].get("mark"),
    )
    return made, parts.undone


def _subject(config: Mapping, view: Mapping, *, renewed: bool) -> Subject:
    options = config["options"]
    namespace, _, name = options["workload"].partition("/")
    mesh = MeshView.parse(view)
    local = mesh.local(namespace, name)
    if local is None:
        raise UsageError(f"workload {namespace}/{name} is not in the view")
    files = config["identities"][str(local.identity)]
    return Subject(
        mesh=mesh,
        local=local,
        identity=Identity(
            uri=str(local.identity), certificate=files["certificate"], key=files["key"], roots=files["roots"],
            renewed=renewed,
        ),
        keylog=config.get("keylog"),
        l7=L7View.parse(options["l7"]) if "l7" in options else None,
        sidecars=frozenset(options.get("sidecars", ())),
        listens_hbone=bool(options.get("listens_hbone")),
    )
