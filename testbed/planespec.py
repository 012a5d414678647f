"""A plane as a user names it: `ambient`, or with options of its own `ambient:waypoint_node=node-a:waypoints=ready`.

`@docker` at its end says on which runtime it is deployed, where that is not the run's. The whole text is the plane's
name in a run, so that one plane placed in two ways, or on two runtimes, makes two columns.
"""

from __future__ import annotations

import dataclasses

from testbed.errors import UsageError
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.registry import load


def split(spec: str) -> tuple[str, dict[str, str]]:
    """(name, options). Raises UsageError for an option that is not `key=value`, or is given twice."""
    name, *pairs = spec.partition("@")[0].split(":")
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"plane {spec}: {pair!r} is no option; write {name}:key=value")
        if key in options:
            raise UsageError(f"plane {spec}: option {key!r} is given twice; take one out")
        options[key] = value
    return name, options


def runtime_of(spec: str) -> str:
    """Name of the runtime that it asks for; empty where that is the run's own."""
    return spec.partition("@")[2]


def without_runtime(spec: str) -> str:
    return spec.partition("@")[0]


def place(spec: str, topology: Topology) -> Placement:
    """Raises UsageError for a plane or option that is not known, naming those that are."""
    name, options = split(spec)
    placement: Placement = load("plane", name).place(topology, options)  # type: ignore[attr-defined]
    return dataclasses.replace(placement, plane=spec) if options or runtime_of(spec) else placement
