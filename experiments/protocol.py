"""What reading a protocol costs: the same bytes as raw TCP, HTTP/1.1, HTTP/2 and gRPC.

An L4 plane forwards all of them alike; whoever reads HTTP pays by protocol. The TCP cell calls another service (an
echo of as many bytes), so its applications differ; within a cell all planes have the same.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

LOAD = Load(
    kind="open", rate_rps=150, arrival="poisson", connections=8, warmup_s=0.8, window_s=2.5, request_bytes=256,
    response_bytes=256,
)  # fmt: skip

EXPERIMENT = quick(
    "protocol",
    "How does what a plane adds depend on the protocol it has to read?",
    load=LOAD,
    cells=(
        Cell(name="TCP", load=replace(LOAD, protocol="tcp"), target="tcp"),
        Cell(name="HTTP/1.1", load=LOAD),
        Cell(name="HTTP/2", load=replace(LOAD, protocol="http2")),
        Cell(name="gRPC", load=replace(LOAD, protocol="grpc")),
    ),
    axis=Axis(name="protocol"),
)

FULL = full(EXPERIMENT)
