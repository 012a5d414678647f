"""An engine for the tests, and the image of this code in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.docker import engine as engines
from testbed.docker import image
from testbed.errors import MachineError


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.Engine]:
    try:
        connected = engines.connect()
    except MachineError as error:
        pytest.skip(f"needs a Docker engine: {error}")
    yield connected
    connected.close()


@pytest.fixture(scope="session")
def built(engine: engines.Engine) -> image.Built:
    """The image of this code on the running interpreter: that base can be had everywhere."""
    return image.ready(engine, base="packed")
