"""What the seams say is what there is: each implementation has all of its protocol, called in the same way."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from testbed import registry, seams
from testbed.links.netem import NetemLink
from testbed.links.wire import WireLink
from testbed.observe.procstat import ProcStat
from testbed.runtime.dockerlab import DockerLab
from testbed.runtime.dockerprocess import ContainerProcess
from testbed.runtime.netns import NetnsLab
from testbed.runtime.process import LabProcess

PROTOCOLS = {"runtime": seams.Runtime, "link": seams.LinkMaker, "plane": seams.Plane, "load": seams.LoadDriver}


def registered() -> list[tuple[type, type]]:
    found = []
    for seam, protocol in PROTOCOLS.items():
        for name in registry.BUILT_IN[seam]:
            loaded: Any = registry.load(seam, name)
            found.append((protocol, loaded if isinstance(loaded, type) else type(loaded)))
    return list(dict.fromkeys(found))


HANDED_OUT = [
    (seams.RunningLab, NetnsLab),
    (seams.RunningLab, DockerLab),
    (seams.Refitted, NetnsLab),
    (seams.Refitted, DockerLab),
    (seams.Process, LabProcess),
    (seams.Process, ContainerProcess),
    (seams.LiveLink, NetemLink),
    (seams.LiveLink, WireLink),
    (seams.Observer, ProcStat),
]


@pytest.mark.parametrize(("protocol", "made"), [*registered(), *HANDED_OUT], ids=lambda kind: kind.__name__)
def test_an_implementation_has_all_of_its_protocol(protocol: type, made: type) -> None:
    """Every method, with the same parameters and defaults; every attribute, of the class or set when it is made."""
    sources = "".join(
        inspect.getsource(kind) for kind in made.__mro__ if kind.__module__.startswith(("testbed", "planes"))
    )
    for name in protocol.__annotations__:
        assert hasattr(made, name) or f"self.{name} = " in sources or f"self.{name}: " in sources, name
    for name, method in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        asked, given = (inspect.signature(f).parameters.values() for f in (method, getattr(made, name)))
        assert [(p.name, p.kind, p.default) for p in asked] == [(p.name, p.kind, p.default) for p in given], name


@pytest.mark.parametrize("protocol", [p for p in vars(seams).values() if getattr(p, "_is_protocol", False)])
def test_a_seam_stays_small(protocol: type) -> None:
    """One that wants an eighth verb is two seams."""
    assert sum(inspect.isfunction(m) for n, m in vars(protocol).items() if not n.startswith("_")) <= 7
