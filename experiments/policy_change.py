"""A policy changes while calls are made: how long until it is enforced, and what becomes of connections that are open.

The client is refused by every workload, at L4 (a namespace's policy, which ztunnels and sidecars enforce) or at L7 (by
method, which takes who reads HTTP: at a waypoint by `targetRefs`); then allowed again. `other` is never refused: what
fails of its calls fails by mistake. The view is pushed, not polled for: the time is that of the plane.
"""

from dataclasses import replace

from experiments.forms import changed, longer, under_load
from testbed.model.event import Stage, Stream
from testbed.model.experiment import Cell, Load

LOAD = Load(warmup_s=0.4, window_s=2.4, response_bytes=256)
_FROM = "- from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]"
_HEAD = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: default}
spec:
  action: DENY
"""
L4 = _HEAD % "not-client" + f"  rules:\n    {_FROM}\n"
_GET = f"  rules:\n    {_FROM}\n      to: [{{operation: {{methods: [GET]}}}}]\n"
L7 = _HEAD % "no-get" + "  selector: {matchLabels: {app: server}}\n" + _GET
AT_WAYPOINT = _HEAD % "no-get-there" + '  targetRefs: [{group: "", kind: Service, name: server}]\n' + _GET


def _cells(load: Load) -> tuple[Cell, ...]:
    found = []
    for what, policy, planes in (
        ("L4", L4, ("sidecar", "ambient-l4")),
        ("L7", L7, ("sidecar",)),
        ("L7 at the waypoint", AT_WAYPOINT, ("ambient",)),
    ):
        free, denied = Stage(), Stage(policies=policy)
        for name, before, after in (("denied", free, denied), ("allowed again", denied, free)):
            found.append(changed(f"{name}, {what}", before, after, load=load, at_s=0.8, planes=planes))
    return tuple(found)


EXPERIMENT = under_load(
    "policy_change",
    "How long until a changed policy is enforced, and what becomes of connections that are open?",
    planes=("sidecar", "ambient-l4", "ambient"),
    load=LOAD,
    streams=(
        Stream(client="client", target="server", interval_s=0.04, meant_to_fail=True),
        Stream(client="client", target="server", held=True, connections=3, interval_s=0.15, meant_to_fail=True),
        Stream(client="client", target="echo", held=True, connections=3, interval_s=0.15, protocol="tcp",
               meant_to_fail=True),
        Stream(client="other", target="server"),
    ),
    cells=_cells(LOAD),
)  # fmt: skip

_LONG = replace(LOAD, warmup_s=1.0, window_s=60.0)
FULL = longer(EXPERIMENT, load=_LONG, cells=_cells(_LONG), rounds=10)
