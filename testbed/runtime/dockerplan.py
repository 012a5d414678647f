"""Which containers a lab is, and what each may do: the plan of a lab on Docker, pure.

A sandbox (node, workload, a waypoint's own) is a container that only sleeps and owns a network namespace; links and
addresses come from outside (`wiring`), so it needs no capability and no network of Docker's. Each program is a
container of its own in the network namespace of its sandbox: read-only root, a user id of its own, no capability but
those that its role asks for, and of the lab's files only its own folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.seams import Spawn

OWNER, LAB, NODE, ROLE, NAME, TOPOLOGY = (
    f"meshbed.{key}" for key in ("owner", "lab", "node", "role", "name", "topology")
)
SANDBOX = "sandbox"
"""Begins the role of a sandbox's own container: `sandbox.node`, `sandbox.workload`, `sandbox.proxy`."""
TO_BECOME_ANOTHER_USER = ("SETGID", "SETUID")
"""Docker gives capabilities to root alone, so a program that keeps some begins as root and changes its user itself
(`dockerentry`); these two are gone before it begins."""
SLEEP = ("sleep", "infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What containers stand on: an image, and how our own programs are started in it."""

    image: str
    interpreter: str
    """Takes the place of this machine's Python in a program's words."""
    code: str
    """Where this project lies in it."""
    path: str
    """PYTHONPATH there; takes the place of the checkout in a program's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container to be. `as_request` is what the engine is asked."""

    name: str
    image: str
    command: tuple[str, ...]
    labels: Mapping[str, str]
    network: str = "none"
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    """Where it starts; empty: where its image says."""
    capabilities: tuple[str, ...] = ()
    """Docker's spelling: NET_ADMIN."""
    shown: tuple[str, ...] = ()
    """Folders and files of this machine, at the same path, to write to."""
    own_entrypoint: bool = False
    """Whether the image's entrypoint stands, and its command where `command` is empty."""
    writable: tuple[str, ...] = ()
    """Folders in memory, besides /tmp; all else is read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Of:
    """Whose containers: what all labels and names of a lab share."""

    lab: str
    owner: str
    topology: str
    tag: str = ""

    def name(self, part: str) -> str:
        return f"meshbed-{self.lab}{self.tag}-{part}"

    def labels(self, *, role: str, name: str, node: str) -> dict[str, str]:
        return {
            OWNER: self.owner, LAB: self.lab, NODE: node, ROLE: role, NAME: name, TOPOLOGY: self.topology,
        }  # fmt: skip


def of(*, lab: str, root: Path, key: str, default_root: Path, uid: int, topology: str, crowded: bool = False) -> Of:
    """A lab's name is unique only among those of its state root, a container's in its engine: another root's labs bear
    a tag, and so do those of an engine that has a lab of that name from elsewhere (`crowded`)."""
    tag = "" if root == default_root and not crowded else f".{zlib.crc32(f'{root} {key}'.encode()):08x}"
    return Of(lab=lab, owner=owner(root, uid, key), topology=topology, tag=tag)


def owner(root: Path, uid: int, key: str) -> str:
    """The label of all containers of labs that keep their state there.

    `key` tells two machines apart that share an engine, such as two development containers: same user, same path.
    """
    return f"{old_owner(root, uid)}:{key}"


def old_owner(root: Path, uid: int) -> str:
    """As labels had it before there were keys: whose of two machines a container is cannot be told from it."""
    return f"{uid}:{root}"


def sandbox(of: Of, ground: Ground, *, name: str, kind: str, node: str) -> Container:
    return Container(
        name=of.name(name),
        image=ground.image,
        command=SLEEP,
        labels=of.labels(role=f"{SANDBOX}.{kind}", name=name, node=node),
        user="65534:65534",
    )


def program(
    of: Of, ground: Ground, spawn: Spawn, *, node: str, network: str, log: str, ours: str, checkout: str
) -> Container:
    """`network` is the container whose namespace it shares; `ours` and `checkout` are this machine's interpreter and
    project, as `spawn` names them. What it prints goes to `log`, which must be there and be the user's to write."""
    argv = [ground.interpreter if str(word) == ours else str(word) for word in spawn.argv]
    folder = str(Path(spawn.folder).absolute())
    environment = {
        key: ground.path if (key, value) == ("PYTHONPATH", checkout) else value
        for key, value in spawn.env.items()
        if key != "PATH"
    }
    if spawn.capabilities:
        entry = f"import sys; sys.path.insert(0, {ground.code!r}); from testbed.runtime.dockerentry import main; main()"
        kept = ",".join(spawn.capabilities)
        command = [ground.interpreter, "-I", "-S", "-c", entry, str(spawn.uid), kept, log, *argv]
        user, asked = "0:0", (*map(str.upper, spawn.capabilities), *TO_BECOME_ANOTHER_USER)
    else:
        command = ["/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh", log, *argv]
        user, asked = f"{spawn.uid}:{spawn.uid}", ()
    return Container(
        name=of.name(spawn.name),
        image=ground.image,
        command=tuple(command),
        labels=of.labels(role=role(spawn.name), name=spawn.name, node=node),
        network=f"container:{network}",
        user=user,
        environment={"HOME": folder, "TMPDIR": folder, **environment},
        folder=folder,
        capabilities=tuple(sorted(asked)),
        shown=(*dict.fromkeys([folder, *(str(Path(s).absolute()) for s in spawn.shared_folders)]), log),
    )


def foreign(of: Of, spawn: Spawn, *, node: str, network: str) -> Container:
    """A program of the user's own image: its words, its variables, none of our files. What it prints stays with the
    engine."""
    return Container(
        name=of.name(spawn.name),
        image=spawn.image,
        command=tuple(map(str, spawn.argv)),
        labels=of.labels(role=role(spawn.name), name=spawn.name, node=node),
        network=f"container:{network}",
        user=f"{spawn.uid}:{spawn.uid}",
        environment=spawn.env,
        own_entrypoint=True,
        writable=tuple(spawn.writable),
    )


def role(spawn_name: str) -> str:
    """`ztunnel.node-a` is a ztunnel, `app.client` an app, `load.client.3` a load generator."""
    return spawn_name.partition(".")[0]


def as_request(plan: Container) -> dict[str, object]:
    """The body of POST /containers/create."""
    return {
        "Image": plan.image,
        **({} if plan.own_entrypoint else {"Entrypoint": []}),
        **({"Cmd": list(plan.command)} if plan.command else {}),
        "Labels": dict(plan.labels),
        "Env": [f"{key}={value}" for key, value in plan.environment.items()],
        "User": plan.user,
        "WorkingDir": plan.folder,
        "StopSignal": "SIGKILL",
        "HostConfig": {
            "NetworkMode": plan.network,
            "CapDrop": ["ALL"],
            "CapAdd": list(plan.capabilities),
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Privileged": False,
            "Binds": [f"{path}:{path}" for path in plan.shown],
            "Tmpfs": dict.fromkeys(("/tmp", *plan.writable), "mode=1777,size=64m"),
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
            "RestartPolicy": {"Name": "no"},
        },
    }


def exit_code(told: int) -> int:
    """As `seams.Process` has it: Docker adds 128 to the number of the signal that ended a program."""
    return 128 - told if 128 < told <= 192 else told


def printed(stream: bytes) -> bytes:
    """What a program printed, from GET /containers/<id>/logs: frames of 8 bytes (stream, 0 0 0, length) and data."""
    out = bytearray()
    while len(stream) >= 8:
        end = 8 + int.from_bytes(stream[4:8], "big")
        out += stream[8:end]
        stream = stream[end:]
    return bytes(out)


def cgroup_of(proc_cgroup: str) -> str:
    """Where the engine put a container, from the text of its /proc/<pid>/cgroup; `observe.procstat` takes it."""
    paths: dict[str, str] = {}
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")
    return paths.get("cpuacct") or paths.get("", "")


def removable(containers: Sequence[Mapping[str, Any]], *, ours: str, like_ours: str) -> list[dict]:
    """Those that bear our owner's label; and of labs of owners at the same path, with another key or from before there
    were keys, those of which every container has ended: one that is being made is somebody's.
    """
    living = {
        (one["Labels"][OWNER], one["Labels"].get(LAB))
        for one in containers
        if one.get("State") not in ("exited", "dead")
    }
    found = []
    for one in containers:
        owner = one["Labels"][OWNER]
        alike = owner == like_ours or owner.rpartition(":")[0] == like_ours
        if owner == ours or (alike and (owner, one["Labels"].get(LAB)) not in living):
            found.append(dict(one))
    return found


def leftovers(containers: Sequence[Mapping[str, object]], labs: Sequence[str]) -> dict[str, list[str]]:
    """lab -> ids of containers (as GET /containers/json has them) of labs that are not among `labs`."""
    found: dict[str, list[str]] = {}
    for container in containers:
        labels = container["Labels"]
        assert isinstance(labels, Mapping)
        if (lab := str(labels.get(LAB, ""))) not in labs:
            found.setdefault(lab, []).append(str(container["Id"]))
    return found
