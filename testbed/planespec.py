"""A plane as a user names it: `ambient`, or with options of its own `ambient:waypoint_node=node-a:waypoints=ready`.

The whole text is the plane's name in a run, so that one plane placed in two ways makes two columns.
"""

from __future__ import annotations

import dataclasses

from testbed.errors import UsageError
from testbed.model.placement import Placement
from testbed.model.topology import Topology
from testbed.registry import load


def split(spec: str) -> tuple[str, dict[str, str]]:
    """(name, options). Raises UsageError for an option that is not `key=value`, or is given twice."""
    name, *pairs = spec.split(":")
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"plane {spec}: {pair!r} is no option; write {name}:key=value")
        if key in options:
            raise UsageError(f"plane {spec}: option {key!r} is given twice; take one out")
        options[key] = value
    return name, options


def place(spec: str, topology: Topology) -> Placement:
    """Raises UsageError for a plane or option that is not known, naming those that are."""
    name, options = split(spec)
    placement: Placement = load("plane", name).place(topology, options)  # type: ignore[attr-defined]
    return dataclasses.replace(placement, plane=spec) if options else placement
