"""Which link maker this machine has: netem is tried on a scratch device, the wire is the answer where it fails."""

from __future__ import annotations

import os

from testbed.errors import MachineError
from testbed.links.devices import make_pairs
from testbed.links.ends import end
from testbed.links.netem import NetemLinks, shape_device
from testbed.links.scratch import open_new_netns
from testbed.links.wire import WireLinks
from testbed.model.topology import Impairment, Link
from testbed.registry import load
from testbed.seams import LinkMaker


def netem_refusal() -> str:
    """Empty where the kernel takes a netem qdisc; else what it said and the mend."""
    link = Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1")
    try:
        netns = open_new_netns()
    except MachineError as error:
        return str(error)
    try:
        make_pairs([(end(netns, link, "a"), end(netns, link, "b"))])
        shape_device(netns, "to-a", Impairment(), Impairment(delay_ms=1, loss=0.1), "probe for netem")
    except MachineError as error:
        return str(error)
    finally:
        os.close(netns)
    return ""


def choose(kind: str = "auto") -> LinkMaker:
    """The maker called `kind`; `auto` takes netem where the kernel has it. Its `name` belongs into the run's record.

    Raises UsageError for a name that the registry does not know, MachineError where a maker cannot work here.
    """
    if kind == "auto":
        return WireLinks() if netem_refusal() else NetemLinks()
    maker: LinkMaker = load("link", kind)()  # type: ignore[operator]
    lacks = maker.check()
    if lacks:
        raise MachineError(f"link maker {kind}: " + "; ".join(lacks))
    return maker
