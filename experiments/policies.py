"""What authorization policies cost: none, ten, and on to ten thousand of them, all of which have to be looked at.

Each forbids some who never call. They are looked at when a connection opens, so every request opens one. The first
cell is measured twice: how far its two halves are apart is what no difference looks like here. `policies-l7` asks the
same of a waypoint, with policies by path, which are looked at for every request.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Experiment, Load

LOAD = Load(
    kind="open", rate_rps=20, arrival="poisson", connections=16, warmup_s=0.3, window_s=2.0, response_bytes=256,
    requests_per_connection=1,
)  # fmt: skip
AGAIN = "0 policies (A/A)"


def _cell(count: int, kind: str, load: Load, name: str = "") -> Cell:
    topology = f"two-zones:{kind}_policies={count}"
    if name:  # under another name, and so on a deployment of its own
        topology = "two-zones:l4_policies=0:l7_policies=0"
    return Cell(name=name or f"{count:,} policies", load=load, at=count, topology=topology, line="A/A" if name else "")


def _experiment(name: str, kind: str, plane: str, load: Load, counts: tuple[int, ...], who: str) -> Experiment:
    return replace(
        quick(
            name,
            f"What do {kind.upper()} policies cost {who} in latency, CPU, memory and configuration, and to load?",
            load=load,
            cells=(*(_cell(count, kind, load) for count in counts), _cell(0, kind, load, AGAIN)),
            axis=Axis(
                name="policies",
                metrics=("latency_p50", "cpu_per_1000_requests", "memory_pss", "config", "cpu_to_ready",
                         "deploy_time"),
                logarithmic=True,
            ),
        ),
        planes=(plane,),
    )  # fmt: skip


EXPERIMENT = _experiment("policies", "l4", "ambient-l4", LOAD, (0, 10, 100, 1000, 10_000), "ztunnels")
FULL = full(EXPERIMENT)
_KEPT = replace(LOAD, requests_per_connection=0)
L7 = _experiment("policies-l7", "l7", "ambient", _KEPT, (0, 10, 100, 1000), "waypoints")
L7_FULL = full(L7)
