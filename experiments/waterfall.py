"""Where does a request's time go? Packets at every edge of a namespace on its way, matched by request, hop by hop.

The same load twice, with the capture and without, each on a deployment of its own: what capturing costs is told beside
what it shows. Nothing is claimed of planes, so there is no A/A pair.
"""

from dataclasses import replace

from experiments.forms import full
from testbed.model.experiment import Axis, Cell, Experiment, Load

LOAD = Load(
    kind="open", rate_rps=100, arrival="poisson", connections=8, warmup_s=0.8, window_s=3.0, response_bytes=256,
    request_ids=True,
)  # fmt: skip

EXPERIMENT = Experiment(
    name="waterfall",
    question="Where does a request's time go, hop by hop, under each data plane?",
    topology="two-zones",
    planes=("none", "sidecar", "ambient-l4", "ambient", "hybrid", "node-l7"),
    client="client",
    target="server",
    load=LOAD,
    rounds=6,
    aa_pair=False,
    cells=(Cell(name="captured", load=LOAD, traced=True), Cell(name="not captured", load=LOAD)),
    axis=Axis(name="capture", metrics=("latency_p50", "latency_p99")),
)

FULL = replace(full(EXPERIMENT), rounds=20)
