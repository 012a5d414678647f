"""Who fails, how long, and which connections break when a part of the mesh is killed, hangs, restarts, is upgraded, or
is crashed by a plug-in.

A client sends short requests (a connection each) to four services, and keeps connections open to three, all the while.
What is killed is started again after half a second, as by a kubelet; what hangs is stopped (SIGSTOP) and goes on. An
upgrade puts the new process beside the old one until it is ready, then the old one drains. A sidecar's image cannot be
exchanged under a running application so: its workload is restarted, here in place, so that the gap is that of a
Deployment with one replica and no surge; the connections that break are the same with surge.
"""

from dataclasses import replace

from experiments.forms import longer, under_load
from testbed.model.event import Event, Kind, Stream
from testbed.model.experiment import Cell, Load

LOAD = Load(warmup_s=0.4, window_s=2.6, response_bytes=256)
AT_S, HANG_S = 0.7, 1.5
STREAMS = (
    Stream(client="client", target="server"),
    Stream(client="client", target="server", held=True, connections=2, interval_s=0.1),
    Stream(client="client", target="ledger"),
    Stream(client="client", target="ledger", held=True, connections=2, interval_s=0.1),
    Stream(client="client", target="echo", held=True, connections=2, interval_s=0.1, protocol="tcp"),
    Stream(client="client", target="home"),
)


def cell(kind: Kind, what: str, on: str, planes: tuple[str, ...] = (), load: Load = LOAD) -> Cell:
    for_s = HANG_S if kind is Kind.HANG else 0.5
    event = Event(kind=kind, on=on, at_s=AT_S, for_s=for_s)
    return Cell(name=f"{kind} {what}", load=load, events=(event,), planes=planes)


PROXY, WAYPOINT, CLIENTS = "the server's proxy", "the waypoint", "the client's proxy"
STRUCK = (Kind.KILL, Kind.HANG, Kind.RESTART, Kind.UPGRADE)
CRASH = cell(Kind.CRASH, "what reads HTTP for the server", "l7:server")

EXPERIMENT = under_load(
    "disruption",
    "Who fails, how long, and which connections break when a part of the mesh fails or is renewed?",
    planes=("sidecar", "ambient", "node-l7"),
    load=LOAD,
    rounds=3,
    streams=STREAMS,
    claims=("upgrade-restarts-pods", "shared-l4-shared-fate", "plugin-crash-contained"),
    cells=(
        *(cell(kind, PROXY, "proxy:server") for kind in STRUCK),
        *(cell(kind, WAYPOINT, "waypoint:server", ("ambient",)) for kind in (Kind.KILL, Kind.UPGRADE)),
        CRASH,
    ),
)

_LONG = replace(LOAD, warmup_s=1.0, window_s=14.0)
FULL = longer(
    replace(EXPERIMENT, planes=("none", "sidecar", "ambient-l4", "ambient", "node-l7")),
    load=_LONG,
    rounds=10,
    cells=(
        *(cell(kind, PROXY, "proxy:server", ("sidecar", "ambient-l4", "ambient", "node-l7"), _LONG) for kind in STRUCK),
        *(cell(kind, CLIENTS, "proxy:client", ("sidecar", "ambient-l4", "node-l7"), _LONG) for kind in STRUCK[:3]),
        *(cell(kind, WAYPOINT, "waypoint:server", ("ambient",), _LONG) for kind in STRUCK),
        cell(Kind.CRASH, "what reads HTTP for the server", "l7:server", ("sidecar", "ambient", "node-l7"), _LONG),
        *(cell(kind, "the server itself", "app:server", (), _LONG) for kind in STRUCK[:3]),
    ),
)
