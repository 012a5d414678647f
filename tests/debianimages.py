"""Images of programs that are none of ours, for tests; skipped where Debian's archive cannot be reached."""

from __future__ import annotations

import pytest

from examples.own_programs import images
from testbed.docker.engine import Engine
from testbed.errors import MachineError


def nginx(engine: Engine) -> str:
    """Answers any GET at port 80; may run as any user, with /tmp to write to."""
    try:
        return images.nginx(engine)
    except MachineError as error:
        pytest.skip(str(error))


def redis(engine: Engine) -> str:
    """Listens at port 6379, keeps nothing, asks for no password."""
    try:
        return images.redis(engine)
    except MachineError as error:
        pytest.skip(str(error))
