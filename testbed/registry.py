"""name -> "module:attribute" for each seam: one place to see everything that exists.

An installed package adds to it by an entry point in the group `testbed.<seam>`; a name that is here already stays what
it is here. An unknown name answers with the known ones.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from testbed.errors import UsageError

_SWEPT = ("arrival", "churn", "footprint", "neighbour", "payload", "placement", "policies", "protocol", "rate",
          "waterfall")
_EVENTFUL = ("certificates", "disruption", "joining", "migration", "policy_change")

BUILT_IN: dict[str, dict[str, str]] = {
    "runtime": {
        "netns": "testbed.runtime.netns:NetnsRuntime",
        "docker": "testbed.runtime.dockerruntime:DockerRuntime",
    },
    "link": {"netem": "testbed.links.netem:NetemLinks", "wire": "testbed.links.wire:WireLinks"},
    "plane": {
        "none": "planes.catalog:none",
        "ambient-l4": "planes.catalog:ambient_l4",
        "ambient": "planes.catalog:ambient",
        "sidecar": "planes.catalog:sidecar",
        "hybrid": "planes.catalog:hybrid",
        "hybrid-hbone": "planes.catalog:hybrid_hbone",
        "node-l7": "planes.node_l7.place:PLANE",
        "envoy-ambient-l4": "planes.catalog:envoy_ambient_l4",
        "envoy-ambient": "planes.catalog:envoy_ambient",
        "envoy-sidecar": "planes.catalog:envoy_sidecar",
        "envoy-hybrid": "planes.catalog:envoy_hybrid",
        "envoy-hybrid-hbone": "planes.catalog:envoy_hybrid_hbone",
    },
    "load": {"open": "testbed.load.locust:OpenLoop", "closed": "testbed.load.locust:ClosedLoop"},
    "app": {"http-echo": "testbed.apps.web", "tcp-echo": "testbed.apps.echo"},
    "experiment": {
        "quickstart": "experiments.quickstart:EXPERIMENT",
        "blast_radius": "experiments.blast_radius:EXPERIMENT",
        "boundaries": "experiments.boundaries:EXPERIMENT",
        "runtime_parity": "experiments.runtime_parity:EXPERIMENT",
        **{name: f"experiments.{name}:EXPERIMENT" for name in (*_SWEPT, *_EVENTFUL)},
        **{f"{name}-full": f"experiments.{name}:FULL" for name in (*_SWEPT, *_EVENTFUL)},
        "policies-l7": "experiments.policies:L7",
        "policies-l7-full": "experiments.policies:L7_FULL",
    },
}

WANTED = {"runtime": "up", "link": "join", "plane": "place", "load": "run", "experiment": "planes"}
"""Of each seam an attribute without which a thing is surely no such thing."""


def names(seam: str) -> list[str]:
    """All that `load` knows, those of installed packages among them."""
    return sorted({*BUILT_IN[seam], *(entry.name for entry in entry_points(group=f"testbed.{seam}"))})


def load(seam: str, name: str) -> object:
    """The implementation called `name`.

    Raises UsageError for an unknown name, naming the known ones, and for an entry point that cannot be used.
    """
    target = BUILT_IN[seam].get(name)
    if target is None:
        return _installed(seam, name)
    module, _, attribute = target.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def _installed(seam: str, name: str) -> object:
    found = {entry.value: entry for entry in entry_points(group=f"testbed.{seam}") if entry.name == name}
    if not found:
        known = names(seam)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"no {seam} is called {name!r}; {hint}known: {', '.join(known)}")
    if len(found) > 1:
        owners = " and ".join(map(_owner, found.values()))
        raise UsageError(f"{seam} {name!r} is an entry point of {owners}; uninstall all but one, or rename it")
    (entry,) = found.values()
    try:
        loaded = entry.load()
    except Exception as error:  # a stranger's code: whatever it raises while it is imported is its owner's to mend
        raise UsageError(
            f"{seam} {name!r}: the entry point {entry.value!r} of {_owner(entry)} cannot be loaded "
            f"({type(error).__name__}: {error}); mend its module or its [project.entry-points], then install it again"
        ) from error
    if seam in WANTED and not hasattr(loaded, WANTED[seam]):
        raise UsageError(
            f"{seam} {name!r}: the entry point {entry.value!r} of {_owner(entry)} is {loaded!r}, which has no "
            f"{WANTED[seam]!r}; name what testbed/seams.py asks of a {seam}"
        )
    return loaded


def _owner(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist is not None else "a package"
