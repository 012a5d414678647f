"""What containers of a lab stand on, asked of an engine: the image of the code as it is now."""

from __future__ import annotations

from testbed.docker.engine import Engine
from testbed.runtime.dockerplan import Ground
from testbed.seams import Progress


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
