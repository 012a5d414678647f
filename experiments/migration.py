"""The way into ambient mode, a step at a time, under load: no mesh to L4, L4 to L7 for one service, sidecar to ambient.

`other` is refused by a policy at the waypoint, and by no ztunnel, so that its calls tell when L7 is enforced. Beside
it sidecar and ambient workloads call one another while one side has moved and the other has not.
"""

from dataclasses import replace

from experiments.forms import changed, longer, under_load
from testbed.model.event import Stage, Stream
from testbed.model.experiment import Cell, Load

LOAD = Load(warmup_s=0.4, window_s=3.4, response_bytes=256)
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-other-at-waypoint, namespace: default}
spec:
  targetRefs:
    - {group: "", kind: Service, name: server}
  action: DENY
  rules:
    - from:
        - source: {principals: [cluster.local/ns/default/sa/other]}
"""
TO_L4, TO_L7, BACK = "none → L4", "L4 → waypoint", "waypoint → L4"
FROM_SIDECAR, FROM_AMBIENT = "server: sidecar → ambient, client: sidecar", "server: sidecar → ambient, client: ambient"
NONE, L4, L7 = (Stage(plane=plane, policies=POLICY) for plane in ("none", "ambient-l4", "ambient"))


def _mixed(client: str, server: str) -> Stage:
    # Without waypoints: sidecars pass them by, and it is their direct path that is looked at.
    kinds = (("client", client), ("other", client), ("server", server))
    return Stage(plane="hybrid:waypoints=left-out", kinds=kinds)


def _cells(load: Load) -> tuple[Cell, ...]:
    return (
        changed(TO_L4, NONE, L4, load=load, planes=("ambient",)),
        changed(TO_L7, L4, L7, load=load, planes=("ambient",)),
        changed(BACK, L7, L4, load=load, planes=("ambient",)),
        *(
            changed(name, _mixed(client, "sidecar"), _mixed(client, "ambient"), load=load, planes=("hybrid",))
            for name, client in ((FROM_SIDECAR, "sidecar"), (FROM_AMBIENT, "ambient"))
        ),
    )


EXPERIMENT = under_load(
    "migration",
    "What does each step into ambient mode cost those who are served meanwhile?",
    planes=("ambient", "hybrid"),
    load=LOAD,
    streams=(
        Stream(client="client", target="server"),
        Stream(client="client", target="server", held=True, connections=3, interval_s=0.1),
        Stream(client="client", target="echo", held=True, connections=2, interval_s=0.1, protocol="tcp"),
        Stream(client="client", target="ledger"),
        Stream(client="other", target="server", meant_to_fail=True),
    ),
    claims=("gradual", "interop"),
    cells=_cells(LOAD),
)

_LONG = replace(LOAD, warmup_s=1.0, window_s=12.0)
FULL = longer(EXPERIMENT, load=_LONG, cells=_cells(_LONG), rounds=20)
