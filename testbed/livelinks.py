"""The link verbs: what the links of a lab that stays really do, and changing them while it runs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence

from testbed.errors import UsageError
from testbed.links.ends import dead_links
from testbed.links.gauge import PROBES, measure
from testbed.livelab import ABOUT, about_of, attach, chosen_up, link_row, links_of
from testbed.model.experiment import LinkReading
from testbed.model.topology import LEAST_RATE_MBIT
from testbed.runtime import ownership
from testbed.seams import LiveLink
from testbed.store import as_json, write_whole


def show(name: str, json_text: bool, *, probes: int = PROBES) -> int:
    name = chosen_up(name)
    about = about_of(ownership.state_root() / name)
    maker, attached = attach(name)
    links = links_of(about)
    live = maker.attach(attached, links)
    readings = measure(attached, live, probes=probes)
    if json_text:
        print(json.dumps([link_row(link, reading) for link, reading in zip(links, readings, strict=True)], indent=1))
    else:
        print_readings(readings)
    return verdict(name, live, readings)


def verdict(lab: str, live: Sequence[LiveLink], readings: Sequence[LinkReading]) -> int:
    """The exit code of readings, with the reason on stderr: 4 where a link carries nothing though it should, 3 where
    one is not as asked.
    """
    dead = set(dead_links(live)) | {r.link for r in readings if r.loss == 1.0 and not r.within_tolerance}
    off = [r.link for r in readings if not r.within_tolerance and r.link not in dead]
    if off:
        print(f"not as asked: link {', '.join(off)}; on a busy machine look again: ./inv link.show", file=sys.stderr)
    if dead:
        print(
            f"dead: link {', '.join(sorted(dead))} carries nothing (its wire process has died, or an end is down or "
            f"gone), so what is measured in this lab does not count; ./inv lab.down --name {lab}, then ./inv lab.up",
            file=sys.stderr,
        )
    return 4 if dead else 3 if off else 0


def change(
    name: str, a: str, b: str, fields: dict[str, float], *, dry_run: bool = False, json_text: bool = False
) -> int:
    """The direction a→b. The other one keeps what it has."""
    if not fields:
        raise UsageError("nothing to set; name one of --delay-ms, --jitter-ms, --loss, --rate-mbit")
    limits = {"delay_ms": 10_000.0, "jitter_ms": 10_000.0, "loss": 1.0, "rate_mbit": 100_000.0}
    for key, value in fields.items():
        if not 0 <= value <= limits[key]:
            raise UsageError(f"--{key.replace('_', '-')} {value:g} is outside 0..{limits[key]:g}")
    if 0 < fields.get("rate_mbit", 0) < LEAST_RATE_MBIT:
        raise UsageError(
            f"--rate-mbit {fields['rate_mbit']:g} is below {LEAST_RATE_MBIT:g}, where one frame of 1,514 bytes takes "
            f"{12.112 / LEAST_RATE_MBIT:.0f} ms; on slower lines TCP sends it again before it is there. 0 is no limit"
        )
    name = chosen_up(name)
    folder = ownership.state_root() / name
    about = about_of(folder)
    links = links_of(about)
    found = next((k for k in links if {k.a, k.b} == {a, b}), None)
    if found is None:
        raise UsageError(f"lab {name} has no link {a}–{b}; it has {', '.join(k.name for k in links)}")
    side = "a_to_b" if found.a == a else "b_to_a"
    changed = dataclasses.replace(getattr(found, side), **fields)
    if changed.loss and changed.gilbert_elliott:
        raise UsageError(f"link {found.name} has bursty loss in that direction, which excludes --loss")
    if dry_run:
        now = getattr(found, side)
        told = ", ".join(f"{key} {getattr(now, key):g} → {value:g}" for key, value in fields.items())
        print(f"would set {a} → {b} of lab {name}: {told}")
        return 0
    maker, attached = attach(name)
    live = next(x for x in maker.attach(attached, links) if x.link.name == found.name)
    live.set(**{side: changed})
    links = [dataclasses.replace(k, **{side: changed}) if k is found else k for k in links]
    about["links"] = [as_json(k) for k in links]
    write_whole(folder / ABOUT, json.dumps(about).encode())
    (link,) = [k for k in links if k.name == found.name]
    again = maker.attach(attached, [link])
    readings = measure(attached, again)
    if json_text:
        print(json.dumps(link_row(link, readings[0]), indent=1))
    else:
        print_readings(readings)
    return verdict(name, again, readings)


def print_readings(readings: Sequence[LinkReading]) -> None:
    """Measured beside asked."""
    if not readings:
        print("no links", file=sys.stderr)
        return
    print(f"{'link':<28} {'asked RTT ms':>12} {'measured p50':>12} {'p90':>8} {'asked loss':>10} {'measured':>8}")
    for r in readings:
        mark = "" if r.within_tolerance else "  OFF"
        print(
            f"{r.link:<28} {_shown(r.asked_rtt_ms, 12)} {_shown(r.rtt_p50_ms, 12)} "
            f"{_shown(r.rtt_p90_ms, 8)} {_shown(r.asked_loss, 10)} {_shown(r.loss, 8)}{mark}"
        )


def _shown(value: float, width: int) -> str:
    """A dash where no probe came back."""
    return f"{'–' if math.isnan(value) else f'{value:.3f}':>{width}}"
