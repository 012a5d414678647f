"""A policy changes while calls are made: how long until it is enforced, and what becomes of connections that are open.

The client is refused by every workload, at L4 (a namespace's policy, which ztunnels and sidecars enforce) or at L7 (by
method, which takes who reads HTTP: at a waypoint by `targetRefs`); then allowed again. `other` is never refused: what
fails of its calls fails by mistake. The view is pushed, not polled for: the time is that of the plane.
"""

from dataclasses import replace

from testbed.model.event import Event, Kind, Stage, Stream
from testbed.model.experiment import Cell, Experiment, Load

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
            event = Event(kind=Kind.CHANGE, at_s=0.8, stage=after)
            found.append(Cell(name=f"{name}, {what}", load=load, before=before, events=(event,), planes=planes))
    return tuple(found)


EXPERIMENT = Experiment(
    name="policy_change",
    question="How long until a changed policy is enforced, and what becomes of connections that are open?",
    topology="disruption",
    planes=("sidecar", "ambient-l4", "ambient"),
    client="client",
    target="server",
    load=LOAD,
    rounds=5,
    aa_pair=False,
    streams=(
        Stream(client="client", target="server", interval_s=0.04, meant_to_fail=True),
        Stream(client="client", target="server", held=True, connections=3, interval_s=0.15, meant_to_fail=True),
        Stream(client="client", target="echo", held=True, connections=3, interval_s=0.15, protocol="tcp",
               meant_to_fail=True),
        Stream(client="other", target="server"),
    ),
    drain_s=1.0,
    cells=_cells(LOAD),
)  # fmt: skip

_LONG = replace(LOAD, warmup_s=1.0, window_s=60.0)
FULL = replace(EXPERIMENT, name="policy_change-full", load=_LONG, rounds=10, drain_s=5.0, cells=_cells(_LONG))
