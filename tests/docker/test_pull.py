"""A base from a registry: pulled and built on; and a registry that never answers is left after a while."""

from __future__ import annotations

import socket
import sys

import pytest

from testbed.docker import bases, image
from testbed.docker.engine import Engine
from testbed.docker.layer import Entry
from testbed.errors import MachineError
from tests.docker.registry import serving

pytestmark = pytest.mark.docker
PYTHON = f"usr/local/bin/python{sys.version_info[0]}.{sys.version_info[1]}"


def no_progress(_line: str) -> None:
    pass


def test_a_base_is_pulled_and_its_python_found(engine: Engine) -> None:
    """Where the official image has it. Nothing in it is run for that."""
    with serving([Entry(path=PYTHON, content=b"#!/bin/true\n", executable=True)]) as name:
        try:
            base, notes = bases.obtain(engine, name, progress=no_progress)
        except MachineError as error:
            if "refused" in str(error) or "unreachable" in str(error):
                pytest.skip(f"needs an engine that sees this machine's loopback: {error}")
            raise
        try:
            assert (base.kind, base.reference, base.python, notes) == ("given", name, f"/{PYTHON}", [])
            again, _ = bases.obtain(engine, name, progress=no_progress)
            assert again == base
        finally:
            engine.client.images.remove(name)


def test_a_registry_that_never_answers_is_left_after_a_while(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops; the next base is tried then, or the mend is told."""
    monkeypatch.setattr(bases, "PULL_WITHIN_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}/base:1"
        with pytest.raises(MachineError, match=r"cannot be pulled \(.*timed out.*read timeout=1.0.*--base packed"):
            image.build(engine, base=name)
