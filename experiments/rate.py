"""What load costs: the same planes at several rates and over several connections.

Light load measures hops and wake-ups, heavy load queues. Rates are absolute and the same for every plane; with
`--share 70` the middle cell has 70 % of what the slowest plane holds, and the others keep their proportion to it.
"""

from dataclasses import replace

from experiments.full import full
from testbed.model.experiment import Cell, Experiment, Load

LOAD = Load(kind="open", rate_rps=200, arrival="poisson", connections=8, warmup_s=0.8, window_s=2.5, response_bytes=256)

EXPERIMENT = Experiment(
    name="rate",
    question="How does what a plane adds grow with the rate and the number of connections?",
    topology="two-zones",
    planes=("none", "sidecar", "ambient-l4", "ambient"),
    client="client",
    target="server",
    load=LOAD,
    rounds=6,
    cells=tuple(
        Cell(
            name=f"{factor:g} × the rate, {connections} connections",
            load=replace(LOAD, rate_rps=LOAD.rate_rps * factor, connections=connections),
        )
        for factor, connections in ((0.25, 8), (1, 2), (1, 8), (1, 32), (2, 8))
    ),
)

FULL = full(EXPERIMENT)
