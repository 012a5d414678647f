"""Which link maker this machine has: netem is tried on a scratch device, the wire is the answer where it fails."""

from __future__ import annotations

from testbed.errors import MachineError
from testbed.links.netem import NetemLinks
from testbed.links.wire import WireLinks
from testbed.registry import load
from testbed.seams import LinkMaker


def choose(kind: str = "auto") -> LinkMaker:
    """The maker called `kind`; `auto` takes netem where the kernel has it. Its `name` belongs into the run's record.

    Raises UsageError for a name that the registry does not know, MachineError where a maker cannot work here.
    """
    if kind == "auto":
        netem = NetemLinks()
        return WireLinks() if netem.check() else netem
    maker: LinkMaker = load("link", kind)()  # type: ignore[operator]
    lacks = maker.check()
    if lacks:
        raise MachineError(f"link maker {kind}: " + "; ".join(lacks))
    return maker
