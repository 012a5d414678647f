"""Runs inside the guest: our netem links, measured, told as one line."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time

from testbed.links import gauge, probe
from testbed.links.devices import in_netns
from testbed.links.scratch import ScratchLab
from testbed.model.topology import GilbertElliott, Impairment, Link, link_addresses
from testbed.seams import LiveLink

ASKED = {
    "plain": (Impairment(), Impairment()),
    "delay": (Impairment(delay_ms=5), Impairment(delay_ms=15)),
    "loss": (Impairment(delay_ms=1, loss=0.2), Impairment()),
    "bursty": (Impairment(gilbert_elliott=GilbertElliott(p=0.1, r=0.3)), Impairment()),
    "rate": (Impairment(rate_mbit=2, queue_ms=1000), Impairment()),
    "jitter": (Impairment(delay_ms=20, jitter_ms=5), Impairment()),
}
FRAMES = 100
GOES = 6
AGREE_MS = 0.5
SO_RCVBUFFORCE = 33  # socket(7); Python does not name it


def main() -> None:
    nodes = [f"{name}{side}" for name in ASKED for side in "ab"]
    links = []
    for number, (name, (forward, backward)) in enumerate(ASKED.items()):
        mine, theirs = link_addresses(number)
        link = Link(a=f"{name}a", b=f"{name}b", a_address=mine, b_address=theirs)
        links.append(dataclasses.replace(link, a_to_b=forward, b_to_a=backward))
    with ScratchLab(nodes) as lab:
        maker = probe.choose("auto")
        live = maker.join(lab, links)
        by_name = dict(zip(ASKED, live, strict=True))
        verdict: dict[str, object] = {
            "maker": maker.name,
            "kernel": os.uname().release,
            "readings": _readings(lab, by_name),
            "rate_s": _send(lab, by_name["rate"], 0.0)[0],
            "jitter_order": _send(lab, by_name["jitter"], 0.001)[1],
        }
        by_name["rate"].set(a_to_b=Impairment(delay_ms=10))  # the old rate must go
        by_name["delay"].set(a_to_b=Impairment(), b_to_a=Impairment())
        by_name["plain"].set(b_to_a=Impairment(delay_ms=30))
        changed = {name: by_name[name] for name in ("rate", "delay", "plain")}
        verdict["changed"] = _readings(lab, changed)
        verdict["changed_rate_s"] = _send(lab, by_name["rate"], 0.0)[0]
        verdict["alive"] = [one.alive() for one in live]
        print("VERDICT " + json.dumps(verdict), flush=True)


def _readings(lab: ScratchLab, live: dict[str, LiveLink]) -> dict[str, dict]:
    """The quieter of two goes that agree, per link: the guest's clock stands still whenever the host is busy elsewhere,
    which makes a go slow and none quick. Of losses, which that does not touch, the mean.
    """
    goes = [gauge.measure(lab, list(live.values()), probes=150)]
    while len(goes) < GOES:
        goes.append(gauge.measure(lab, list(live.values()), probes=150))
        best = [sorted(reading.rtt_p50_ms for reading in link)[:2] for link in zip(*goes, strict=True)]
        if all(second - first < AGREE_MS for first, second in best):
            break
    quieter = [min(link, key=lambda reading: reading.rtt_p50_ms) for link in zip(*goes, strict=True)]
    losses = [sum(reading.loss for reading in link) / len(goes) for link in zip(*goes, strict=True)]
    return {
        name: dataclasses.asdict(reading) | {"loss": loss}
        for name, reading, loss in zip(live, quieter, losses, strict=True)
    }


def _send(lab: ScratchLab, live: LiveLink, gap_s: float) -> tuple[float, list[int]]:
    """Sends numbered datagrams of 1042 bytes on the wire; how long until the last came, and in which order.

    All on one processor, or frames that two of them take off the queue at once overtake one another behind it.
    """
    os.sched_setaffinity(0, {0})
    receiver = _socket(lab, live.link.b)
    sender = _socket(lab, live.link.a)
    with receiver, sender:
        receiver.bind((live.link.b_address, 7000))
        receiver.settimeout(3)
        # All of them: a slow guest reads the first only after the last was sent, and what has no room is lost.
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
        start_s = time.monotonic()
        for number in range(FRAMES):
            sender.sendto(number.to_bytes(2, "big") + bytes(998), (live.link.b_address, 7000))
            time.sleep(gap_s)
        order = [int.from_bytes(receiver.recv(2000)[:2], "big") for _ in range(FRAMES)]
        return time.monotonic() - start_s, order


def _socket(lab: ScratchLab, node: str) -> socket.socket:
    netns = lab.open_netns(node)
    try:
        return in_netns(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    finally:
        os.close(netns)


if __name__ == "__main__":
    main()
