"""Another plane on a lab that is up: proxies, captures, certificates replaced; sandboxes, links, applications kept.

Between the planes what was captured goes nowhere rather than in the clear: the old rules stay, their proxies gone,
until each namespace gets its new ones in one transaction. Connections of before are ended at the end, for capture rules
look at the beginning of a connection only (`connections`). Whatever a kill leaves is cleared away by the next swap.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import cast

from testbed import connections, deploy, nftables
from testbed.errors import UsageError
from testbed.lab import Lab
from testbed.model.placement import CaptureKind, Placement
from testbed.seams import Progress, Refitted, RunningLab

STAYING = ("app.", "wire.")
"""Programs whose names begin so belong to the lab, all others to its plane."""


def check(running: RunningLab) -> None:
    """Raises UsageError where the runtime of that lab cannot change its plane."""
    if not all(hasattr(running, verb) for verb in ("programs", "refit")):
        raise UsageError(
            f"lab {running.name}: runtime {running.runtime} cannot change the plane of a lab that is up; "
            f"./inv lab.down --name {running.name} first"
        )


def swap(
    lab: Lab, placement: Placement, *, stack: ExitStack, keylog: bool, progress: Progress = lambda _line: None
) -> deploy.Deployment:
    """The lab with this placement in place of whatever plane it had. After an error on the way `bare` makes it whole.
    """
    clear(lab, placement)
    deployment = deploy.start(
        lab, placement, keylog=keylog, renewed=True, replacing=True, progress=progress, stack=stack
    )
    uncapture(lab, placement)
    end_connections(lab, placement)
    return deployment


def clear(lab: Lab, placement: Placement | None = None) -> None:
    """No proxies and no secrets of theirs; their sandboxes are those of `placement`. Capture rules stay."""
    running = cast(Refitted, lab.running)
    leaving = [name for name in running.programs() if not name.startswith(STAYING)]
    running.refit(ended=leaving, extra=deploy.extra_sandboxes(placement) if placement else [])
    for folder in ("proxies", deploy.CA):
        shutil.rmtree(lab.folder / folder, ignore_errors=True)
    lab.running.route(lab.topology)


def bare(lab: Lab) -> None:
    """Without any plane, as after `--plane none`."""
    clear(lab)
    uncapture(lab)
    end_connections(lab)


def uncapture(lab: Lab, placement: Placement | None = None) -> None:
    """No capture rules where `placement` has none."""
    captures = placement.captures if placement else ()
    inside = {c.workload for c in captures if c.kind is CaptureKind.IN_POD}
    at_nodes = {lab.topology.workload(c.workload).node for c in captures if c.kind is CaptureKind.NODE}
    captured = inside | at_nodes | {c.workload for c in captures if c.kind is CaptureKind.SIDECAR}
    for sandbox in (*(n.name for n in lab.topology.nodes), *(w.name for w in lab.topology.workloads)):
        batch = nftables.Batch()
        if sandbox not in captured:
            batch += nftables.removal(nftables.CAPTURE_TABLE)
        if sandbox not in inside:
            batch += nftables.no_mark_routes()
        nftables.apply(lab.netns(sandbox), batch)


def end_connections(lab: Lab, placement: Placement | None = None) -> int:
    """Of all workloads, but not those of their new proxies; how many."""
    first = deploy.PROXY_UID
    proxies = range(first, first + len(placement.proxies) if placement else first)
    return sum(connections.end(lab.netns(w.name), spared=lambda uid: uid in proxies) for w in lab.topology.workloads)
