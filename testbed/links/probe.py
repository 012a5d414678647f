"""Which link maker this machine has: netem is tried on a scratch device, the wire is the answer where it fails."""

from __future__ import annotations

import os

from testbed.errors import MachineError, UsageError
from testbed.links.devices import make_pairs
from testbed.links.ends import end
from testbed.links.netem import NetemLinks, shape_device
from testbed.links.scratch import open_new_netns
from testbed.links.wire import WireLinks
from testbed.model.topology import Impairment, Link
from testbed.seams import LinkMaker

KINDS = ("auto", "netem", "wire")


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

    Raises MachineError where the maker asked for by name cannot work here.
    """
    if kind not in KINDS:
        raise UsageError(f"no link maker is called {kind!r}; known: {', '.join(KINDS)}")
    if kind == "auto":
        return WireLinks() if netem_refusal() else NetemLinks()
    maker: LinkMaker = NetemLinks() if kind == "netem" else WireLinks()
    lacks = maker.check()
    if lacks:
        raise MachineError(f"link maker {kind}: " + "; ".join(lacks))
    return maker
