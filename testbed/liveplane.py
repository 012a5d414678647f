"""A lab that stays becomes another: other impairments of its links, other proxies; what differs more wants a new one.

While it changes, its `inspect.json` says by whom. Who finds that process dead knows that the plane is half there, and
`lab.up` begins the change again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from testbed import captures, deploy, livecertificates, swap
from testbed.declared import Change
from testbed.errors import PeerError, TestbedError
from testbed.lab import Lab
from testbed.livelab import ABOUT, CHANGING, attach, begun, describe, links_of
from testbed.model.placement import Placement
from testbed.model.topology import Link, Topology
from testbed.pki import CertificateAuthority
from testbed.runtime.ownership import being
from testbed.seams import RunningLab
from testbed.store import as_json, write_whole


def become(
    folder: Path,
    about: dict[str, Any],
    topology: Topology,
    placement: Placement,
    *,
    change: Change,
    wanted: Mapping[str, Any],
) -> None:
    """The lab of this folder, in place. Raises what went wrong; then links are as they were set by then, and where
    proxies were to be replaced there is no plane, which is written down.
    """
    maker, attached = attach(folder.name)
    names = ("runtime", "link kind")  # these two are as they are, also where the one asked for is `auto`
    declared = {**wanted, **{key: about["declared"][key] for key in names}}
    links = _relink(maker.attach(attached, links_of(about)), topology, change.links)
    about["links"] = [as_json(link) for link in links]
    if not change.plane:
        _write(folder, {**about, "declared": declared})
        return
    swap.check(attached)
    for row in captures.end(captures.of_lab(folder)):  # the keys that its file is to have are those of this plane
        print(captures.told(row), file=sys.stderr)
    me = being(os.getpid())
    assert me is not None
    _write(folder, {**about, CHANGING: dataclasses.asdict(me)})
    lab = _as_lab(attached, dataclasses.replace(topology, links=tuple(links)), about)
    keylog = bool(wanted["keylog"])
    try:
        with ExitStack() as stack:
            deployment = swap.swap(
                lab, placement, stack=stack, keylog=keylog, progress=lambda line: print(line, file=sys.stderr)
            )
            _write(folder, _told(deployment, declared=declared, keylog=keylog and bool(placement.proxies)))
    except BaseException as error:
        # Where this fails, too, the lab still bears the mark of a change whose maker is gone.
        state = f"lab {folder.name} is up, its plane half changed"
        with suppress(TestbedError, OSError):
            _without_plane(folder, lab, {**declared, "plane": "none", "keylog": False})
            state = f"lab {folder.name} is up, without a plane"
        if isinstance(error, PeerError):
            raise PeerError(f"lab {folder.name} has no plane now, for the one asked for failed: {error}") from error
        if isinstance(error, KeyboardInterrupt):  # nothing was taken down, as would be said of one without words
            raise KeyboardInterrupt(f"{state}; the same lab.up goes on, lab.down ends it") from error
        raise


def _without_plane(folder: Path, lab: Lab, declared: Mapping[str, Any]) -> None:
    swap.bare(lab)
    nobody = CertificateAuthority(now=time.time(), trust_domain=lab.topology.trust_domain)
    bare = deploy.Deployment(lab=lab, placement=Placement(plane="none"), authority=nobody)
    _write(folder, _told(bare, declared=declared, keylog=False))


def _relink(live: list, topology: Topology, changed: tuple[str, ...]) -> list[Link]:
    """Sets what changed, so as the file has it now; other links keep what `link.set` gave them."""
    for one in live:
        if one.link.name in changed:
            new = topology.link(one.link.a, one.link.b)
            one.set(a_to_b=new.a_to_b, b_to_a=new.b_to_a)
    return [one.link for one in live]


def _as_lab(attached: RunningLab, topology: Topology, about: Mapping[str, Any]) -> Lab:
    programs = getattr(attached, "programs", dict)()
    apps = {name[len("app.") :]: one for name, one in programs.items() if name.startswith("app.")}
    return Lab(topology=topology, running=attached, links=[], link_kind=about["link_kind"], apps=apps)


def _told(deployment: deploy.Deployment, *, declared: Mapping[str, Any], keylog: bool) -> dict[str, Any]:
    about = {
        **describe(deployment),
        "keylog": keylog,
        "certificates": livecertificates.begun(deployment),
        "declared": declared,
    }
    return {**about, "begun": begun(about)}


def _write(folder: Path, about: Mapping[str, Any]) -> None:
    write_whole(folder / ABOUT, json.dumps(about).encode())
