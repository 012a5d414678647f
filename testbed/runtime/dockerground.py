"""What containers of a lab stand on, asked of an engine: the image of the code as it is now."""

from __future__ import annotations

import sys

from testbed.docker.engine import Engine
from testbed.errors import UsageError
from testbed.runtime.dockerplan import Ground
from testbed.seams import Progress, Spawn


def ground(engine: Engine, *, progress: Progress) -> tuple[Ground, str]:
    """With the name of the image's base; the image is made where it is not there yet."""
    from testbed.docker import image, inputs  # a fifth of a second, which who only looks at a lab does not need

    built = image.ready(engine, progress=progress)
    made = Ground(
        image=built.reference,
        interpreter=image.PYTHON,
        code=f"/{inputs.CODE}",
        path=image.ENVIRONMENT["PYTHONPATH"],
    )
    return made, f"{built.base} ({built.base_kind})"


def refuse_absent(spawn: Spawn) -> None:
    """Raises UsageError for a module of ours to be started that no image of ours holds."""
    argv = list(map(str, spawn.argv))
    if argv[:2] != [sys.executable, "-m"] or argv[2].startswith(("testbed.", "planes.")):
        return
    from testbed.docker import inputs

    if not inputs.has(argv[2]):
        raise UsageError(
            f"{spawn.name}: the image does not hold the module {argv[2]}; install its package with an entry point in "
            f"the group testbed.plane (docs/write-your-own-plane.md), or use --runtime netns"
        )
