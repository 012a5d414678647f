"""Does a data plane outlive its certificates: renewed under load, of a new root, without a CA, by a wrong clock?

Certificates live for seconds, so that a window has several lives of them. A tunnel between proxies that is open does
not ask again who its peer is, and new connections of applications go through it; so a client also calls, one after
another, three services of nodes that it has not called before. Without a CA they show that certificates are looked at:
what is lost then is what renewals save.
"""

from __future__ import annotations

from dataclasses import replace

from testbed.model.event import Event, Kind, Stream
from testbed.model.experiment import Cell, Experiment, Load

AT_S = 0.5


def _load(window_s: float) -> Load:
    return Load(warmup_s=0.4, window_s=window_s, response_bytes=256)


def _cells(life_s: float) -> tuple[Cell, ...]:
    def clock(name: str, by_s: float) -> Cell:
        event = Event(kind=Kind.CLOCK, at_s=AT_S, for_s=0.75 * life_s, by_s=by_s)
        return Cell(name=f"the CA's clock {name}", load=_load(1.3 * life_s), events=(event,))

    renewed, gone = 2.25 * life_s, 1.7 * life_s
    return (
        Cell(
            name=f"renewed, lives of {life_s:g} s", load=_load(renewed + 1.4), leaf_lifetime_s=life_s,
            events=(Event(kind=Kind.RENEW, at_s=AT_S, for_s=renewed),),
        ),
        Cell(
            name="no CA for longer than a life", load=_load(gone + 2.5), leaf_lifetime_s=life_s,
            events=(Event(kind=Kind.NO_CA, at_s=AT_S, for_s=gone),),
        ),
        Cell(
            name="a new root", load=_load(1.6 * life_s),
            events=(Event(kind=Kind.NEW_ROOT, at_s=AT_S, for_s=0.4 * life_s),),
        ),
        clock("5 min ahead", 300.0),
        clock("30 s ahead", 30.0),
        clock("25 h behind", -25 * 3600.0),
    )  # fmt: skip


def _streams(life_s: float) -> tuple[Stream, ...]:
    return (
        Stream(client="client", target="server"),
        Stream(client="client", target="server", held=True, connections=2, interval_s=0.1),
        Stream(client="client", target="echo", protocol="tcp"),
        Stream(client="client", target="echo", held=True, connections=2, interval_s=0.1, protocol="tcp"),
        Stream(client="client", target="first", begins_s=0.6 * life_s),
        Stream(client="client", target="second", begins_s=1.45 * life_s),
        Stream(client="client", target="third", begins_s=2.1 * life_s),
    )


LIFE_S, LONG_LIFE_S = 4.0, 30.0
EXPERIMENT = Experiment(
    name="certificates",
    question="Does a data plane outlive its certificates: renewed under load, of a new root, without a CA?",
    topology="certificates",
    planes=("sidecar", "ambient", "node-l7"),
    client="client",
    target="server",
    load=_load(4.0),
    rounds=3,
    aa_pair=False,
    streams=_streams(LIFE_S),
    drain_s=1.0,
    cells=_cells(LIFE_S)[:4],
)
FULL = replace(
    EXPERIMENT,
    name="certificates-full",
    planes=("sidecar", "ambient-l4", "ambient", "node-l7"),
    rounds=10,
    drain_s=5.0,
    streams=_streams(LONG_LIFE_S),
    cells=_cells(LONG_LIFE_S),
)
