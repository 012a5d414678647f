"""A live workload joins the mesh and leaves it, with connections open: what is restarted, what fails, what breaks.

`other` may not call the server once the server is in the mesh, which shows when it is. In sidecar mode to join is to
get a proxy into the pod, so the pod is made anew (in place here); an ambient workload is entered and captured as it is.
"""

from dataclasses import replace

from experiments.forms import changed, longer, under_load
from testbed.model.event import Stage, Stream
from testbed.model.experiment import Cell, Load

LOAD = Load(warmup_s=0.4, window_s=3.2, response_bytes=256)
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-other, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from:
        - source: {principals: [cluster.local/ns/default/sa/other]}
"""
OUTSIDE = Stage(kinds=(("server", "none"), ("echo", "none")), policies=POLICY)
INSIDE = Stage(policies=POLICY)
JOINS, LEAVES = "joins", "leaves"


def _cells(load: Load) -> tuple[Cell, ...]:
    return changed(JOINS, OUTSIDE, INSIDE, load=load), changed(LEAVES, INSIDE, OUTSIDE, load=load)


EXPERIMENT = under_load(
    "joining",
    "What is restarted, fails or breaks when a workload with open connections joins the mesh, or leaves it?",
    planes=("sidecar", "ambient-l4"),
    load=LOAD,
    streams=(
        Stream(client="client", target="server"),
        Stream(client="client", target="server", held=True, connections=3, interval_s=0.1),
        Stream(client="client", target="echo", held=True, connections=3, interval_s=0.1, protocol="tcp"),
        Stream(client="client", target="ledger"),
        Stream(client="other", target="server", meant_to_fail=True),
    ),
    claims=("join-without-restart",),
    cells=_cells(LOAD),
)

_LONG = replace(LOAD, warmup_s=1.0, window_s=12.0)
FULL = longer(EXPERIMENT, load=_LONG, cells=_cells(_LONG), rounds=20)
