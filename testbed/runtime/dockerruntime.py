"""The runtime `docker`: the same labs as `netns`, on containers.

The keeper starts while the engine starts containers; then it adopts their network namespaces, and from there on all is
as in `netns`. What the lab is made of is in `dockerplan`, what it is once up in `dockerlab`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.docker import engine
from testbed.errors import MachineError
from testbed.runtime import dockerground, dockerhost, dockerplan, dockersocket, enter, ownership, wiring
from testbed.runtime.dockerlab import DockerLab, begin
from testbed.runtime.dockerplan import Ground
from testbed.runtime.keeper import BASE
from testbed.runtime.netns import PROJECT, NetnsRuntime, greeted, start_keeper
from testbed.runtime.ownership import LabState
from testbed.runtime.wiring import Planned
from testbed.seams import Progress

START = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from testbed.runtime.dockerkeeper import run; run()"


class DockerRuntime(NetnsRuntime):
    name = "docker"
    lab = DockerLab
    runs_images = True

    def __init__(self, *, progress: Progress = lambda line: print(line, file=sys.stderr)) -> None:
        """`progress` is told what goes on while an image is made; once it is there, nothing."""
        self._engine: engine.Engine | None = None
        self._ground: Ground | None = None
        self._base = ""
        self._progress = progress

    def check(self) -> list[str]:
        """What this machine lacks, each with its mend."""
        lacks = super().check()
        if os.geteuid() != 0 or enter.in_user_namespace():
            lacks.append(
                "not root: links and capture rules are made in the containers' network namespaces from outside, for "
                "which the kernel wants CAP_SYS_ADMIN of the machine; the docker group gives the engine's socket, "
                "enough for image.build and not for labs, and a container that did it in your stead would be root in "
                f"all but name (docs/docker.md, Without root); run as root. {engine.OTHER_WAY}"
            )
            return lacks
        try:
            self.engine()
        except MachineError as error:
            lacks.append(str(error))
        return lacks

    def about(self) -> dict[str, str]:
        on, info = self.ground(), self.engine().info
        return {
            "docker": f"{info.version} (API {info.api}, {info.storage}, {info.cgroup_driver})", "image": on.image,
            "image base": self._base,
        }  # fmt: skip

    def engine(self) -> engine.Engine:
        """Raises MachineError when there is none to use."""
        if self._engine is None:
            self._engine = engine.connect()
        return self._engine

    def ground(self) -> Ground:
        """What containers of labs made by this runtime stand on: the image of the code as it was at the first."""
        if self._ground is None:
            self._ground, self._base = dockerground.ground(self.engine(), progress=self._progress)
        return self._ground

    def _begin(self, state: LabState, root: Path, sandboxes: Sequence[Planned], groups: Sequence[str]) -> DockerLab:
        client, path = self.engine().client, dockerhost.socket_path(self.engine().info.host)
        key = ownership.key(root)
        mine = dockerplan.owner(root, os.geteuid(), key)
        others = [one["Labels"][dockerplan.OWNER] for one in dockersocket.find(path, {dockerplan.LAB: state.name})]
        of = dockerplan.of(
            lab=state.name, root=root, key=key, default_root=ownership.default_root(), uid=os.geteuid(),
            topology=state.topology, crowded=any(owner != mine for owner in others),
        )  # fmt: skip
        ground = self.ground()
        labels = {dockerplan.OWNER: of.owner, dockerplan.LAB: of.lab}
        about = {
            "socket": path, "labels": labels, "of": dataclasses.asdict(of), "ground": dataclasses.asdict(ground),
        }  # fmt: skip
        state = dataclasses.replace(state, engine=about)
        folder = root / state.name
        ownership.write(state, folder)  # before there is a container: whoever finds the folder finds them
        (Path(state.logs) if state.logs else folder / "logs").mkdir(parents=True, exist_ok=True)
        settings = {
            "folder": str(folder), "detached": state.detached, "cgroups": list(groups) if state.cgroup else [],
            "engine": path, "labels": labels,
        }  # fmt: skip
        connection, starter = start_keeper(state.name, folder, START)
        connection.send(settings)
        state = greeted(connection, state, folder)
        lab = DockerLab(state=state, root=root, connection=connection, starter=starter)
        try:
            plans = [dockerplan.sandbox(of, ground, name=s.name, kind=s.kind, node=s.node) for s in sandboxes]
            watched = begin(client, path, plans, lab=state.name)
            lab.adopt({s.name: one for s, one in zip(sandboxes, watched, strict=True)})
            pids = [one.pid for one in watched]
            lab._wire("adopt", wiring.batches(sandboxes, BASE), namespaces=wiring.sysctls(sandboxes), pids=pids)
        except BaseException:
            lab.down()
            raise
        return lab
