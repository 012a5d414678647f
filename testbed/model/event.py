"""What happens during a trial, to whom and when; and who is watched meanwhile. Pure values.

An event is carried by a cell of an experiment, carried out by `testbed.events`, and what it did to each stream is
counted from raw rows (`testbed.outage`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    KILL = "kill"
    """SIGKILL; started again after `for_s`, as a kubelet does."""
    HANG = "hang"
    """SIGSTOP for `for_s`, then SIGCONT."""
    RESTART = "restart"
    """SIGTERM, its drain to the end, then started again: a DaemonSet or Deployment without surge."""
    UPGRADE = "upgrade"
    """The new process beside the old until it is ready, then the old one drains. What lives in a workload's own
    sandbox cannot be exchanged without it: the workload is restarted, its application with it."""
    CRASH = "crash"
    """A marked request meets a plug-in that ends its proxy; started again after `for_s`."""
    CHANGE = "change"
    """The deployment becomes what `stage` says: views, captures, proxies; applications where a sidecar comes or
    goes."""
    RENEW = "renew"
    """Nothing but time, `for_s` of it, in which the CA renews the cell's short-lived certificates."""
    NO_CA = "no CA"
    """All certificates are new, and the CA's process is killed; begun again after `for_s`."""
    NEW_ROOT = "new root"
    """Both roots trusted, then leaves of the new one, then the old one forgotten: `for_s` after each of the first
    two."""
    CLOCK = "clock"
    """Certificates by a CA whose clock is `by_s` ahead; after `for_s` by one that is right. To who holds them it is as
    if the clocks of all their peers were so much behind."""


OF_CERTIFICATES = (Kind.RENEW, Kind.NO_CA, Kind.NEW_ROOT, Kind.CLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A state of the mesh: the experiment's topology with some labels and policies, under a plane."""

    plane: str = ""
    """Empty: that of the block."""
    kinds: tuple[tuple[str, str], ...] = ()
    """(workload, plane label): instead of those of the topology."""
    policies: str = ""
    """Istio resources as YAML, beside those of the topology."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    kind: Kind
    on: str = ""
    """`proxy:<workload>` (whoever takes its traffic: sidecar, node agent, node proxy), `waypoint:<service>`,
    `l7:<service>` (the waypoint if there is one, else as `proxy:` if that reads HTTP), `app:<workload>`; nothing for a
    change; of certificates, those of all proxies where it says nothing."""
    at_s: float = 1.0
    """After the window's start."""
    for_s: float = 0.5
    """How long it is away (kill, crash) or stands still (hang)."""
    stage: Stage | None = None
    """Of a change: what it leads to."""
    by_s: float = 0.0
    """Of a clock: ahead; negative: behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests of one client to one target, at fixed intervals."""

    client: str
    target: str
    """`service` (its first port) or `service:port`."""
    protocol: str = "http1"
    """`http1` or `tcp` (an echo)."""
    held: bool = False
    """On connections that stay open, one request an interval on each; else every request opens its own."""
    connections: int = 1
    interval_s: float = 0.05
    begins_s: float = 0.0
    """So long after the others. Who calls for the first time has to shake hands."""
    meant_to_fail: bool = False
    """A policy is to refuse it, before the event or after: its failures are no loss."""

    @property
    def pair(self) -> str:
        return f"{self.client} → {self.target}"

    @property
    def name(self) -> str:
        later = f" from {self.begins_s:g} s" if self.begins_s else ""
        return f"{self.pair}, {'held' if self.held else 'short'}{' TCP' if self.protocol == 'tcp' else ''}{later}"
