"""name -> "module:attribute" for each seam: one place to see everything that exists.

An installed package adds to it by an entry point in the group `testbed.<seam>`. An unknown name answers with the known
ones.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points

from testbed.errors import UsageError

BUILT_IN: dict[str, dict[str, str]] = {
    "runtime": {"netns": "testbed.runtime.netns:NetnsRuntime"},
    "link": {"netem": "testbed.links.netem:NetemLinks", "wire": "testbed.links.wire:WireLinks"},
    "plane": {
        "none": "planes.catalog:none",
        "ambient-l4": "planes.catalog:ambient_l4",
        "ambient": "planes.catalog:ambient",
        "sidecar": "planes.catalog:sidecar",
        "hybrid": "planes.catalog:hybrid",
        "envoy-ambient-l4": "planes.catalog:envoy_ambient_l4",
        "envoy-ambient": "planes.catalog:envoy_ambient",
        "envoy-sidecar": "planes.catalog:envoy_sidecar",
    },
    "load": {"open": "testbed.load.locust:OpenLoop", "closed": "testbed.load.locust:ClosedLoop"},
    "app": {"http-echo": "testbed.apps.web", "tcp-echo": "testbed.apps.echo"},
    "experiment": {"quickstart": "experiments.quickstart:EXPERIMENT"},
}


def names(seam: str) -> list[str]:
    return sorted({*BUILT_IN[seam], *(e.name for e in entry_points(group=f"testbed.{seam}"))})


def load(seam: str, name: str) -> object:
    """The implementation called `name`. Raises UsageError naming the known ones."""
    target = BUILT_IN[seam].get(name)
    if target is None:
        for entry in entry_points(group=f"testbed.{seam}"):
            if entry.name == name:
                return entry.load()
        known = names(seam)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"no {seam} is called {name!r}; {hint}known: {', '.join(known)}")
    module, _, attribute = target.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
