"""What a new connection costs: from one request on each connection to hundreds (in the full form, to a thousand).

An L4 plane carries the application's connections as streams of tunnels that are there already; a sidecar pools its own
towards the other side; without a mesh a connection is one round trip. The rate is that of requests in every cell.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

LOAD = Load(kind="open", rate_rps=100, arrival="poisson", connections=2, warmup_s=0.8, window_s=4, response_bytes=256)


def _cell(requests: int, load: Load = LOAD) -> Cell:
    name = f"{requests} request{'s' * (requests > 1)} a connection" if requests else "kept alive"
    most = load.rate_rps * load.window_s / load.connections
    return Cell(name=name, load=replace(load, requests_per_connection=requests), at=requests or most)


EXPERIMENT = quick(
    "churn",
    "How does what a plane adds depend on how many requests share a connection?",
    load=LOAD,
    cells=tuple(_cell(requests) for requests in (1, 10, 100, 0)),
    axis=Axis(name="requests a connection", logarithmic=True),
)

# Few connections and a low rate, so that requests seldom wait for one: the thousandth comes after 20 s.
_LONG = full(EXPERIMENT).load
FULL = replace(
    full(EXPERIMENT),
    cells=tuple(_cell(requests, replace(_LONG, window_s=20.0)) for requests in (1, 3, 10, 30, 100, 300, 1000, 0)),
)
