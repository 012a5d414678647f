"""The certificate of a trial in which something happens: the part of `fidelity` that an event leaves meaningful.

Links are judged before, during and after, as ever; stolen cores and other programs over all of it. How busy the machine
was, and how late requests were sent, is looked at until the event: from then on both are its doing, a proxy that starts
takes a core for a second. Which proxies counted what, their run queues, and what was sent again are left out: who is
struck on purpose counts nothing, and its peers send again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from testbed import fidelity, fidelityread, trial
from testbed.fidelity import Certificate, Gates, HostReading, LinkWindow, Readings
from testbed.lab import Lab
from testbed.links import gauge
from testbed.linkwatch import LinkWatch
from testbed.model.experiment import LinkReading, RequestRow
from testbed.stats import percentile
from testbed.window import Sampler

MOST_LAG_MS = 50.0
"""Half of the shortest gap without an answer that counts as one (docs/events.md)."""
UNTIL = "until the event: "
STRUCK = "of those who are struck on purpose it proves nothing"


@dataclass(slots=True, kw_only=True)
class Watch:
    """Started before the streams, stopped after them; then `certificate`."""

    lab: Lab
    links: LinkWatch
    sampler: Sampler
    _after: Sequence[LinkReading] = field(default=())

    @classmethod
    def of(cls, lab: Lab) -> Watch:
        links = LinkWatch(lab)
        sampler = Sampler(components={}, readers=(fidelityread.HostReader(), links), slow=(links.rates,))
        return cls(lab=lab, links=links, sampler=sampler)

    def start(self) -> None:
        self.links.start()
        self.sampler.start()

    def stop(self) -> None:
        self.sampler.stop()
        self.links.stop()

    def look_after(self) -> Sequence[LinkReading]:
        """The links at rest again."""
        self._after = gauge.measure(self.lab.running, self.lab.links, probes=trial.probes(self.lab.links))
        return self._after

    def certificate(
        self, gates: Gates, *, start_s: float, event_s: float, end_s: float, before: Sequence[LinkReading],
        rows: Sequence[RequestRow], failures: Sequence[str],
    ) -> tuple[Certificate, Readings]:  # fmt: skip
        early, whole = self._grown(start_s, event_s), self._grown(start_s, end_s)
        read = readings(
            fidelityread.host_reading(early, event_s - start_s),
            fidelityread.host_reading(whole, end_s - start_s),
            before=before,
            during=self.links.windows(start_s, end_s, whole),
            after=self._after,
            lags_ms=[(r.sent_s - r.intended_s) * 1e3 for r in rows if r.intended_s < event_s],
        )
        return judge(read, gates, failures=failures), read

    def _grown(self, start_s: float, end_s: float) -> Mapping[str, float]:
        return self.sampler.counted(start_s, end_s) | {"host.cores": self.sampler.latest("host.cores")}


def readings(
    early: HostReading | None,
    whole: HostReading | None,
    *,
    before: Sequence[LinkReading],
    during: Sequence[LinkWindow],
    after: Sequence[LinkReading],
    lags_ms: Sequence[float],
) -> Readings:
    """Pure. `early`: until the event; `whole`: to the end."""
    host = None if early is None or whole is None else replace(early, steal=whole.steal)
    unread = dict.fromkeys(("path", "run-queue", "retransmits"), STRUCK)
    if host is None:
        unread["busy"] = "this machine has no /proc/stat"
    elif host.psi_cpu is None:
        unread["psi"] = "this kernel has no /proc/pressure"
    return Readings(
        host=host,
        before=before,
        during=during,
        after=after,
        send_lag_p99_ms=percentile(lags_ms, 99) if lags_ms else None,
        unread=unread,
    )


def judge(read: Readings, gates: Gates, *, failures: Sequence[str] = ()) -> Certificate:
    """Pure. A stream is counted, not timed to the millisecond: its lag may be that of a gap's half."""
    easier = replace(
        gates, send_lag_p99_ms=max(gates.send_lag_p99_ms, MOST_LAG_MS), warn_send_lag_p99_ms=gates.send_lag_p99_ms
    )
    checks = fidelity.judge(read, easier, failures=failures).checks
    early = [check.name in ("busy", "psi", "lag") and check.level is not None for check in checks]
    return Certificate(
        checks=tuple(
            replace(check, cause=UNTIL + check.cause) if its else check
            for check, its in zip(checks, early, strict=True)
        )
    )
