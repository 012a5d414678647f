"""A lab on Docker: its sandboxes are containers, each program of it another in its sandbox's network namespace.

All that touches the network (links, addresses, routes, capture rules) is `NetnsLab`'s, for the keeper holds the
containers' namespaces as it holds its own. Wires stay the keeper's: they are the cable, not part of a node.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.docker import engine
from testbed.errors import MachineError, PeerError, UsageError
from testbed.runtime import dockerground, dockerplan, dockersocket, launch, wiring
from testbed.runtime.dockerplan import NAME, SANDBOX, Container, Ground, Of
from testbed.runtime.dockerprocess import ContainerProcess, Watched
from testbed.runtime.netns import PROJECT, NetnsLab
from testbed.runtime.wiring import Batch, Planned
from testbed.seams import Process, Sandbox, Spawn

if TYPE_CHECKING:
    from docker import DockerClient

AT_ONCE = 4
"""Containers started side by side: with 2 cores 8 are no faster than 4."""


class DockerLab(NetnsLab):
    """A lab that is up (`seams.RunningLab`). `containers` and `watched` are filled when they are first needed: a verb
    that only looks at links asks the engine nothing."""

    runtime = "docker"
    _client: DockerClient | None = None
    _containers: dict[str, ContainerProcess] | None = None
    _watched: dict[str, Watched] | None = None

    def _sandboxes(self) -> Mapping[str, Sandbox]:
        return {
            name: dataclasses.replace(sandbox, container=self.of.name(name))
            for name, sandbox in super()._sandboxes().items()
        }

    @property
    def of(self) -> Of:
        return Of(**self.state.engine["of"])

    @property
    def ground(self) -> Ground:
        return Ground(**self.state.engine["ground"])

    @property
    def socket(self) -> str:
        return str(self.state.engine["socket"])

    @property
    def client(self) -> DockerClient:
        if self._client is None:
            self._client = engine.connect(f"unix://{self.socket}").client
        return self._client

    @property
    def watched(self) -> dict[str, Watched]:
        """Containers of sandboxes, by sandbox."""
        if self._watched is None:
            self._look_around()
        assert self._watched is not None
        return self._watched

    @property
    def containers(self) -> dict[str, ContainerProcess]:
        """Containers of programs, by name."""
        if self._containers is None:
            self._look_around()
        assert self._containers is not None
        return self._containers

    @property
    def pids(self) -> Mapping[str, int]:
        return {**super().pids, **{name: program.pid for name, program in self.containers.items()}}

    def programs(self) -> Mapping[str, Process]:
        return {**super().programs(), **self.containers}

    def spawn(self, spawns: Sequence[Spawn]) -> list[Process]:
        """Starts all, a few at a time; returns when each runs. What inherits descriptors is the keeper's to start.

        Raises PeerError naming those that did not.
        """
        self._all_known(spawns)
        by_keeper = [spawn for spawn in spawns if spawn.fds]
        started: dict[str, Process] = {p.name: p for p in super().spawn(by_keeper)} if by_keeper else {}
        plans = [self._plan(spawn) for spawn in spawns if not spawn.fds]
        for plan, watched in zip(plans, begin(self.client, self.socket, plans, lab=self.name), strict=True):
            name = plan.labels[NAME]
            started[name] = self.containers[name] = self._program(watched, name, plan.image)
        return [started[spawn.name] for spawn in spawns]

    def dead(self) -> list[str]:
        """Sandboxes whose container ended or was begun again: its network then is no longer that of the lab."""
        return [f"sandbox {name}: {w.code()[1]}" for name, w in self.watched.items() if w.ended()]

    def adopt(self, watched: Mapping[str, Watched]) -> None:
        """The sandboxes' containers, just begun by who made the lab."""
        self._watched, self._containers = dict(watched), {}

    def down(self) -> None:
        for one in (self._watched or {}).values():
            one.close()
        if self._client is not None:
            self._client.close()
            self._client = None
        super().down()

    def refit(self, *, ended: Sequence[str], extra: Sequence[tuple[str, str, str]]) -> None:
        """As `NetnsLab.refit`. What is started from now on is of the code as it is now, as its configuration is."""
        connected = engine.connect(f"unix://{self.socket}")
        self._client = self._client or connected.client
        if (now := dockerground.ground(connected, progress=_say)[0]) != self.ground:
            about = {**self.state.engine, "ground": dataclasses.asdict(now)}
            about["earlier"] = [*self.state.engine.get("earlier", ()), self.ground.image]
            self.state = dataclasses.replace(self.state, engine=about)
        super().refit(ended=ended, extra=extra)

    def _end(self, names: Sequence[str]) -> None:
        super()._end(names)
        gone = [self.containers.pop(name) for name in names if name in self.containers]
        self._rid([one.container for one in gone])

    def _admit(self, came: Sequence[Planned], batches: Sequence[Batch]) -> None:
        plans = [dockerplan.sandbox(self.of, self.ground, name=s.name, kind=s.kind, node=s.node) for s in came]
        known = {s.name for s in self.planned}
        left = dockersocket.find(self.socket, self.state.engine["labels"])  # of somebody who was killed at this
        self._rid([
            str(one["Id"]) for one in left
            if one["Labels"][dockerplan.ROLE].startswith(SANDBOX) and one["Labels"][NAME] not in known
        ])  # fmt: skip
        begun = begin(self.client, self.socket, plans, lab=self.name)
        self.watched.update({s.name: one for s, one in zip(came, begun, strict=True)})
        self._wire(
            "adopt", batches, namespaces=wiring.sysctls(came), first=came[0].index, pids=[one.pid for one in begun]
        )

    def _remove(self, gone: Sequence[Planned]) -> None:
        watched = [self.watched.pop(guest.name) for guest in gone if guest.name in self.watched]
        self._rid([one.container for one in watched])
        for one in watched:
            one.close()

    def _rid(self, containers: Sequence[str]) -> None:
        if failed := dockersocket.remove(self.socket, containers):
            raise PeerError(f"lab {self.name}: {len(failed)} of its containers could not be removed; try again")

    def _program(self, watched: Watched, name: str, image: str) -> ContainerProcess:
        ours = {self.ground.image, *self.state.engine.get("earlier", ())}
        return ContainerProcess(watched, name=name, log=self._log(name), printed_by_engine=image not in ours)

    def _plan(self, spawn: Spawn) -> Container:
        row = next(p for p in self.planned if p.name == spawn.sandbox)
        network = self.watched[spawn.sandbox].container
        if spawn.image:
            return dockerplan.foreign(self.of, spawn, node=row.node, network=network)
        dockerground.refuse_absent(spawn)
        launch.prepare(str(spawn.folder), spawn.uid, single_uid=False)
        log = self._log(spawn.name)
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.fchown(out, spawn.uid, spawn.uid)
        os.close(out)
        return dockerplan.program(
            self.of, self.ground, spawn, node=row.node, network=network, log=str(log.absolute()), ours=sys.executable,
            checkout=str(PROJECT),
        )  # fmt: skip

    def _look_around(self) -> None:
        """The containers of this lab as they are now, for a process that did not make it."""
        self._watched, self._containers = {}, {}
        for found in dockersocket.find(self.socket, self.state.engine["labels"]):
            name = found["Labels"][NAME]
            watched = Watched.look(self.socket, found["Id"])
            if found["Labels"][dockerplan.ROLE].startswith(SANDBOX):
                self._watched[name] = watched
            else:
                self._containers[name] = self._program(watched, name, found["Image"])

    def _all_known(self, spawns: Sequence[Spawn]) -> None:
        for spawn in spawns:
            if spawn.sandbox not in self.sandboxes:
                raise UsageError(
                    f"lab {self.name}: {spawn.name!r} is for sandbox {spawn.sandbox!r}, "
                    f"known are: {', '.join(sorted(self.sandboxes))}"
                )


def begin(client: DockerClient, path: str, plans: Sequence[Container], *, lab: str) -> list[Watched]:
    """Creates and starts all, `AT_ONCE` at a time. Raises PeerError naming those that did not, after all were tried."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="container start") as pool:
        tried = list(pool.map(lambda plan: _begin_one(client, path, plan), plans))
    failed = [
        f"{plan.labels[NAME]}: {outcome}"
        for plan, outcome in zip(plans, tried, strict=True)
        if isinstance(outcome, str)
    ]
    if failed:
        raise PeerError(f"lab {lab}: could not start {len(failed)} of {len(plans)}: {'; '.join(failed[:3])}")
    return [outcome for outcome in tried if isinstance(outcome, Watched)]


def _begin_one(client: DockerClient, path: str, plan: Container) -> Watched | str:
    """The container running, or why it does not."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    try:
        try:
            made = _create(client, plan)
        except APIError as error:
            if error.status_code == 404:
                _pull(client, plan.image)
            elif error.status_code != 409 or not _make_room(path, plan):
                raise
            made = _create(client, plan)
        client.api.start(made)
        return Watched.look(path, made)
    except APIError as error:
        return str(error.explanation or error).strip()
    except MachineError as error:
        return str(error)
    except (RequestException, OSError) as error:
        return f"the engine does not answer ({error})"


def _pull(client: DockerClient, image: str) -> None:
    """Raises MachineError when the image cannot be had."""
    from docker.errors import APIError

    try:
        client.images.pull(image)
    except APIError as error:
        raise MachineError(
            f"image {image} is not in the engine and cannot be pulled ({str(error.explanation or error).strip()}); "
            "docker load or docker build it"
        ) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _create(client: DockerClient, plan: Container) -> str:
    return str(client.api.create_container_from_config(dockerplan.as_request(plan), plan.name)["Id"])


def _make_room(path: str, plan: Container) -> bool:
    """Removes a program of that name that has ended; False when it runs, or is not ours."""
    old = dockersocket.look(path, plan.name)
    if old is None:
        return True
    labels = old["Config"]["Labels"]
    if old["State"]["Running"] or any(labels.get(key) != value for key, value in plan.labels.items()):
        return False
    return not dockersocket.remove(path, [old["Id"]])
