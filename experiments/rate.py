"""What load costs: the same planes at several rates and over several connections.

Light load measures hops and wake-ups, heavy load queues. Rates are absolute and the same for every plane; with
`--share 70` the middle cell has 70 % of what the slowest plane holds, and the others keep their proportion to it.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

LOAD = Load(kind="open", rate_rps=200, arrival="poisson", connections=8, warmup_s=0.8, window_s=2.5, response_bytes=256)

EXPERIMENT = quick(
    "rate",
    "How does what a plane adds grow with the rate and the number of connections?",
    load=LOAD,
    cells=tuple(
        Cell(
            name=f"{factor:g} × the rate, {connections} connections",
            load=replace(LOAD, rate_rps=LOAD.rate_rps * factor, connections=connections),
            at=LOAD.rate_rps * factor,
            line=f"{connections} connections",
        )
        for factor, connections in ((0.25, 8), (1, 2), (1, 8), (1, 32), (2, 8))
    ),
    axis=Axis(name="throughput", unit="1/s", measured="rate_achieved"),
)

FULL = full(EXPERIMENT)
