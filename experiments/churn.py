"""What a new connection costs: from one request on each connection to a thousand.

An L4 plane carries the application's connections as streams of tunnels that are there already; a sidecar pools its own
towards the other side; without a mesh a connection is one round trip. The rate is that of requests in every cell.
"""

from dataclasses import replace

from testbed.model.experiment import Cell, Experiment, Load

LOAD = Load(kind="open", rate_rps=150, arrival="poisson", connections=8, warmup_s=0.8, window_s=2.5, response_bytes=256)


def _cell(requests: int) -> Cell:
    name = "1 request a connection" if requests == 1 else f"{requests} requests a connection"
    return Cell(name=name, load=replace(LOAD, requests_per_connection=requests))


EXPERIMENT = Experiment(
    name="churn",
    question="How does what a plane adds depend on how many requests share a connection?",
    topology="two-zones",
    planes=("none", "sidecar", "ambient-l4", "ambient"),
    client="client",
    target="server",
    load=LOAD,
    rounds=6,
    cells=tuple(_cell(requests) for requests in (1, 10, 100, 1000)),
)
