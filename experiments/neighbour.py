"""Who suffers from a noisy neighbour: a victim's p99 beside an aggressor that shares nodes, nothing, or the waypoint.

The aggressor sends the same bursts in every cell, so what it takes of the machine is the same; where it shares nothing
with the victim is the measure for where it does. Bursts, because a proxy that serves one after the other makes a late
request of every one that meets them.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Beside, Cell, Load

LOAD = Load(
    kind="open", rate_rps=200, arrival="poisson", connections=32, warmup_s=0.3, window_s=1.5, response_bytes=256
)
WITH_WAYPOINTS = ("ambient", "envoy-ambient")
BURSTS = Load(kind="open", rate_rps=120, arrival="synchronised", connections=40, response_bytes=256)
BULK = Load(kind="open", rate_rps=8, arrival="uniform", connections=4, response_bytes=1_000_000)


def _cells(load: Load, aggressor: Load, line: str = "") -> tuple[Cell, ...]:
    kind = f", {line}" if line else ""
    return tuple(
        Cell(
            name=f"{what}{kind}",
            load=load,
            line=line,
            beside=Beside(client=client, target=target, load=aggressor),
            planes=planes,
        )
        for what, client, target, planes in (
            ("on other nodes", "far", "far-server", ()),
            ("on the same nodes", "near", "near-server", ()),
            ("at the same waypoint", "far", "guest-server", WITH_WAYPOINTS),
        )
    )


EXPERIMENT = replace(
    quick(
        "neighbour",
        "How much later are a victim's requests when a neighbour is noisy, and what must they share for it?",
        load=LOAD,
        cells=(Cell(name="alone", load=LOAD), *_cells(LOAD, BURSTS)),
        claims=("noisy-l7-shared", "noisy-l4-is-tolerable"),
        axis=Axis(name="the neighbour", metrics=("latency_p50", "latency_p99")),
    ),
    topology="neighbours",
    planes=("sidecar", "ambient-l4", "ambient", "node-l7"),
)

_FULL = full(EXPERIMENT)
FULL = replace(
    _FULL,
    cells=(*_FULL.cells, *_cells(_FULL.load, BULK, "bulk")),
)
