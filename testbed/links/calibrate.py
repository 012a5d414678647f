"""The wire's constant error, measured on a scratch link, so that it can be taken off every delay.

A wire is late by a constant of its machine: the wake-up, two system calls, the veth's own way (8 us). Half of the
median RTT error of a 1 ms link is that constant for one direction. It takes about a second, and holds until the
next boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from pathlib import Path

from testbed.links import gauge
from testbed.links.scratch import ScratchLab
from testbed.model.topology import Impairment, Link, link_addresses

DELAY_MS = 1.0
PROBES = 160
MOST_NS = 60_000
"""A larger constant is the noise of a busy moment; taking it off would make every link of a quiet hour too fast."""
CACHE_NAME = ".wire-bias.json"


def cached_bias_ns(folder: Path) -> int:
    """The constant in ns, from the cache in `folder` when it was measured since this boot, else measured now."""
    path, key = folder / CACHE_NAME, boot_key()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(path.read_text())
        if cached["key"] == key:
            return int(cached["bias_ns"])
    bias_ns = measure_bias_ns()
    with contextlib.suppress(OSError):  # a folder that is not ours to write: measured again next time
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "bias_ns": bias_ns}))
        fresh.replace(path)
    return bias_ns


def measure_bias_ns() -> int:
    from testbed.links.wire import WireLinks  # it calls us

    mine, theirs = link_addresses(0)
    delay = Impairment(delay_ms=DELAY_MS)
    link = Link(a="a", b="b", a_address=mine, b_address=theirs, a_to_b=delay, b_to_a=delay)
    maker = WireLinks(calibrated=False)
    with ScratchLab(["a", "b"]) as lab, contextlib.closing(maker):
        maker.join(lab, [link])
        return bias_of(gauge.probe(lab, [link], probes=PROBES)[0].rtts_ns, round(link.rtt_ms * 1e6))


def bias_of(rtts_ns: list[int], asked_rtt_ns: int) -> int:
    """Half the median error, within 0 and the most that is believed; 0 without data."""
    if not rtts_ns:
        return 0
    return max(0, min(MOST_NS, round((statistics.median(rtts_ns) - asked_rtt_ns) / 2)))


def boot_key() -> str:
    """Changes with the boot and the kernel, which a constant must not outlive."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {platform.release()}"
    return platform.release()
