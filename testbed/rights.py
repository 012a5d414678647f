"""As whom a verb runs when an ordinary user calls it: as root of a user namespace, a new one or that of a lab.

Before the verb itself, for what it imports starts threads, and a process with threads cannot change namespaces.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable

NEW = {"quickstart", "experiment_run", "lab_up", "lab_down", "lab_gc", "bench"}
"""They make labs, or remove files of labs, whose user ids a new namespace has, too."""
OF_A_LAB = {"lab_exec", "lab_inspect", "lab_prove", "link_show", "link_set", "capture_start", "capture_stop"}
NAMED_BY_TOPOLOGY = {"lab_up", "lab_prove"}
"""Their lab may be up already; where no name is given, it has the topology's."""


def take(verb: Callable[..., object], *args: object, **options: object) -> None:
    """Nothing for root, for a dry run, and for a verb that needs no rights."""
    if os.geteuid() == 0 or verb.__name__ not in NEW | OF_A_LAB:
        return
    from testbed.runtime import enter, ownership

    given = inspect.signature(verb).bind(*args, **options).arguments
    if given.get("dry_run"):
        return
    name = str(given.get("name") or given.get("lab") or "")
    if verb.__name__ in NAMED_BY_TOPOLOGY:
        name = name or _name_of(str(given["topology"]))
    if verb.__name__ in OF_A_LAB or (verb.__name__ == "lab_up" and name):
        ownership.join(name)
    if verb.__name__ in NEW:
        enter.become_root()  # nothing for who is root of a lab's namespace by now


def _name_of(topology: str) -> str:
    """Empty for a file that is not as it should be, which the verb itself then says."""
    from testbed import topofile
    from testbed.errors import TestbedError

    try:
        return topofile.load(topofile.find(topology)).name
    except TestbedError:
        return ""
