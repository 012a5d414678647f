"""A lab's links while load runs over them: ten echoes a second on each, and what their makers counted.

An echo costs the link one small frame each way, and this process nothing until the load is over: both ends are stamped
by kernels (`links.gauge`). The wire's own counters say what it lost on purpose, what unasked, and how late the latest
frame left; a kernel's netem counts nothing that is read here, and so is judged by its echoes.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import TestbedError
from testbed.fidelity import LinkWindow
from testbed.lab import Lab
from testbed.links.delayline import Shape, stationary_loss
from testbed.links.gauge import asked, clumping, echo, open_prober, percentile, replies
from testbed.model.topology import Link
from testbed.runtime.enter import in_netns
from testbed.seams import LiveLink, end_name

MARK = 0x4000
"""Added to the process id: the gauge's own echoes bear others."""
UNASKED = ("overflowed", "stale", "write_errors")
Counters = Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class _Probed:
    link: Link
    sock: socket.socket
    mark: int
    at_s: dict[int, float] = field(default_factory=dict)
    sent_ns: dict[int, int] = field(default_factory=dict)
    rtts_ns: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class LinkWatch:
    """`start`, then call it now and then (`window.Reader`), `stop`, and ask for `windows`."""

    lab: Lab
    _probed: list[_Probed] = field(default_factory=list)
    _before: dict[str, Counters] = field(default_factory=dict)
    _after: dict[str, Counters] = field(default_factory=dict)

    def start(self) -> None:
        for number, live in enumerate(self.lab.links):
            link = live.link
            with contextlib.suppress(TestbedError, OSError):  # a dead link: the trial's own check names it
                sock = in_netns(self.lab.netns(link.a), lambda address=link.b_address: open_prober(address))
                mark = (os.getpid() + MARK + number) & 0xFFFF
                self._probed.append(_Probed(link=link, sock=sock, mark=mark))
        self._before = {live.link.name: counters(live) for live in self.lab.links}

    def __call__(self) -> dict[str, float]:
        for probed in self._probed:
            number = len(probed.at_s)
            probed.at_s[number] = time.monotonic()
            probed.sent_ns[number] = time.time_ns()
            with contextlib.suppress(OSError):
                probed.sock.send(echo(probed.mark, number))
        return {}

    def rates(self) -> dict[str, float]:
        """Bytes that came out of links which a rate was asked of; a second `window.Reader`, asked less often."""
        found: dict[str, float] = {}
        for live in self.lab.links:
            link = live.link
            if not (link.a_to_b.rate_mbit or link.b_to_a.rate_mbit):
                continue
            for way, node in (("a_to_b", link.b), ("b_to_a", link.a)):
                device = end_name(link, node)
                with contextlib.suppress(TestbedError, OSError, ValueError):
                    text = in_netns(self.lab.netns(node), Path("/proc/thread-self/net/dev").read_text)
                    found[f"link.{link.name}.{way}"] = float(received_bytes(text, device))
        return found

    def stop(self) -> None:
        self._after = {live.link.name: counters(live) for live in self.lab.links}
        for probed in self._probed:
            probed.rtts_ns = replies(probed.sock, probed.mark, dict(probed.sent_ns))
            probed.sock.close()

    def windows(self, start_s: float, end_s: float, grown: Mapping[str, float]) -> list[LinkWindow]:
        """`grown` holds what `rates` counted over the window."""
        found = []
        for probed in self._probed:
            inside = [n for n, at_s in probed.at_s.items() if start_s <= at_s < end_s]
            rtts_ns = sorted(probed.rtts_ns[n] for n in inside if n in probed.rtts_ns)
            name = probed.link.name
            carried = [grown.get(f"link.{name}.{way}") for way in ("a_to_b", "b_to_a")]
            mbit = [None if one is None else one * 8 / 1e6 / max(end_s - start_s, 1e-9) for one in carried]
            found.append(window(probed.link, rtts_ns, self._before.get(name, {}), self._after.get(name, {}), mbit))
        return found


def counters(live: LiveLink) -> Counters:
    """By direction; empty where the link's maker does not count, or cannot be asked any more."""
    count = getattr(live, "counters", None)
    if count is None:
        return {}
    try:
        return count()
    except TestbedError:
        return {}


def window(
    link: Link, rtts_ns: Sequence[int], before: Counters, after: Counters, mbit: Sequence[float | None] = (None, None)
) -> LinkWindow:
    """What was seen of a link, beside what was asked; pure. `rtts_ns` ascend."""
    rtt_ms, tolerance_ms = asked(link)
    limited = bool(link.a_to_b.rate_mbit or link.b_to_a.rate_mbit)
    seen: dict[str, float] = {}
    if before and after:
        received = lost = unasked = latest_us = 0
        expected = variance = 0.0
        for way, impairment in (("a_to_b", link.a_to_b), ("b_to_a", link.b_to_a)):
            now, then = after[way], before[way]
            frames, share = now["received"] - then["received"], stationary_loss(Shape.of(impairment))
            received += frames
            lost += now["lost"] - then["lost"]
            unasked += sum(now[name] - then[name] for name in UNASKED)
            if not impairment.rate_mbit:
                unasked += now["tail_dropped"] - then["tail_dropped"]
            expected += frames * share
            variance += frames * share * (1 - share) * clumping(link)
            # The wire keeps the worst one since it began: only a new one is this trial's.
            latest_us = max(latest_us, now["latest_us"] if now["latest_us"] > then["latest_us"] else 0)
        seen = {
            "received": received, "lost": lost, "asked_lost": expected, "deviation": math.sqrt(variance),
            "dropped_unasked": unasked, "late_ms": latest_us / 1000,
        }  # fmt: skip
    carried = None if mbit[0] is None or mbit[1] is None else (mbit[0], mbit[1])
    return LinkWindow(
        link=link.name,
        asked_rtt_ms=rtt_ms,
        tolerance_ms=tolerance_ms,
        rtt_p50_ms=percentile(rtts_ns, 0.5) / 1e6,
        rtt_p90_ms=percentile(rtts_ns, 0.9) / 1e6,
        probes=len(rtts_ns),
        limited=limited,
        carried_mbit=carried,
        asked_mbit=(link.a_to_b.rate_mbit, link.b_to_a.rate_mbit),
        **seen,  # type: ignore[arg-type]
    )


def received_bytes(text: str, device: str) -> int:
    """Of a device in the text of /proc/net/dev. Raises ValueError where it is not there."""
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        if name.strip() == device:
            return int(rest.split()[0])
    raise ValueError(f"no device {device}")
