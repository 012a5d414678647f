"""Where a waypoint should stand: beside the client, beside the server, or in a third place; over the RTT between them.

In the first two places a request crosses the distance once, as with sidecars; in the third it makes a detour of one
more RTT. What two ztunnels and a waypoint save against two sidecars, if they do, is used up where the detour takes as
long: the break-even RTT.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

LOAD = Load(
    kind="open", rate_rps=200, arrival="poisson", connections=32, warmup_s=0.3, window_s=1.0, response_bytes=256
)
PLACES = tuple(f"ambient:waypoint_node={node}" for node in ("node-a", "node-b", "node-c"))
BETWEEN = (("node-a", "node-b"), ("node-a", "node-c"), ("node-b", "node-c"))


def _cell(rtt_ms: float, load: Load = LOAD) -> Cell:
    links = tuple((a, b, {"delay_ms": rtt_ms / 2}) for a, b in BETWEEN)
    return Cell(name=f"RTT {rtt_ms:g} ms", load=load, at=rtt_ms, links=links)


EXPERIMENT = replace(
    quick(
        "placement",
        "Where does a waypoint pay, and at which RTT does its detour cost more than a second L7 proxy?",
        load=LOAD,
        cells=tuple(_cell(rtt_ms) for rtt_ms in (0.5, 2, 8)),
        claims=("hop-vs-l7", "two-l4-one-l7"),
        axis=Axis(name="RTT between zones", unit="ms"),
    ),
    topology="three-zones",
    planes=("none", "sidecar", *PLACES),
)

_FULL = full(EXPERIMENT)
FULL = replace(_FULL, cells=tuple(_cell(rtt_ms, _FULL.load) for rtt_ms in (0.5, 1, 2, 4, 8, 16, 20)))
