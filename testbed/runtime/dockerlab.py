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
from typing import TYPE_CHECKING, Any

from testbed.docker import engine
from testbed.errors import MachineError, PeerError, UsageError
from testbed.runtime import dockerplan, dockersocket, launch
from testbed.runtime.dockerplan import NAME, SANDBOX, Container, Ground, Of
from testbed.runtime.dockerprocess import ContainerProcess, Watched
from testbed.runtime.netns import PROJECT, NetnsLab
from testbed.seams import Process, Spawn

if TYPE_CHECKING:
    from docker import DockerClient

AT_ONCE = 4
"""Containers started side by side: with 2 cores 8 are no faster than 4."""


class DockerLab(NetnsLab):
    """A lab that is up (`seams.RunningLab`). `containers` and `watched` are filled when they are first needed: a verb
    that only looks at links asks the engine nothing."""

    runtime = "docker"
    _client: DockerClient | None = None
    _programs: dict[str, ContainerProcess] | None = None
    _watched: dict[str, Watched] | None = None

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.sandboxes = {
            name: dataclasses.replace(sandbox, container=self.of.name(name)) for name, sandbox in self.sandboxes.items()
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
    def programs(self) -> dict[str, ContainerProcess]:
        """Containers of programs, by name."""
        if self._programs is None:
            self._look_around()
        assert self._programs is not None
        return self._programs

    @property
    def pids(self) -> Mapping[str, int]:
        return {**super().pids, **{name: program.pid for name, program in self.programs.items()}}

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
            started[name] = self.programs[name] = self._program(watched, name, plan.image)
        return [started[spawn.name] for spawn in spawns]

    def dead(self) -> list[str]:
        """Sandboxes whose container ended or was begun again: its network then is no longer that of the lab."""
        return [f"sandbox {name}: {w.code()[1]}" for name, w in self.watched.items() if w.ended()]

    def adopt(self, watched: Mapping[str, Watched]) -> None:
        """The sandboxes' containers, just begun by who made the lab."""
        self._watched, self._programs = dict(watched), {}

    def down(self) -> None:
        for one in (self._watched or {}).values():
            one.close()
        if self._client is not None:
            self._client.close()
            self._client = None
        super().down()

    def _program(self, watched: Watched, name: str, image: str) -> ContainerProcess:
        return ContainerProcess(
            watched, name=name, log=self._log(name), printed_by_engine=image != self.ground.image
        )  # fmt: skip

    def _plan(self, spawn: Spawn) -> Container:
        row = next(p for p in self.planned if p.name == spawn.sandbox)
        network = self.watched[spawn.sandbox].container
        if spawn.image:
            return dockerplan.foreign(self.of, spawn, node=row.node, network=network)
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
        self._watched, self._programs = {}, {}
        for found in dockersocket.find(self.socket, self.state.engine["labels"]):
            name = found["Labels"][NAME]
            watched = Watched.look(self.socket, found["Id"])
            if found["Labels"][dockerplan.ROLE].startswith(SANDBOX):
                self._watched[name] = watched
            else:
                self._programs[name] = self._program(watched, name, found["Image"])

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
