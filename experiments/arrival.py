"""Whether the way in which load arrives changes the answer as much as the mesh does.

The same mean rate over the same connections: at constant gaps, at random (Poisson), in bursts of one request on every
connection; and a closed loop, which sends as fast as it is answered and hides what it does not wait for.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

LOAD = Load(kind="open", rate_rps=200, arrival="uniform", connections=8, warmup_s=0.8, window_s=2.5, response_bytes=256)

EXPERIMENT = quick(
    "arrival",
    "How much of a plane's latency is the pattern in which requests arrive?",
    load=LOAD,
    claims=("arrival-pattern",),
    cells=(
        Cell(name="constant", load=LOAD),
        Cell(name="Poisson", load=replace(LOAD, arrival="poisson")),
        Cell(name="synchronised", load=replace(LOAD, arrival="synchronised")),
        Cell(name="closed loop", load=replace(LOAD, kind="closed", connections=1)),
    ),
    axis=Axis(name="arrival"),
)

FULL = full(EXPERIMENT)
