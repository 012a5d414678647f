"""The image on a real engine: what is in it runs without rights, and the same inputs are the same image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import program
from testbed.docker import archive, bases, image, inputs, layer, packedbase
from testbed.docker.engine import Engine
from testbed.errors import MachineError, UsageError
from tests import debianimages

pytestmark = pytest.mark.docker
LEAST = {
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "read_only": True,
    "security_opt": ["no-new-privileges"],
    "user": "1337:1337",
    "remove": True,
}
PROGRAMS = ("planes.ztunnel.program", "planes.sidecar.program", "planes.waypoint.program", "planes.envoy.__main__",
            "testbed.apps.web", "testbed.apps.echo")  # fmt: skip


def run(engine: Engine, reference: str, *argv: str) -> str:
    return engine.client.containers.run(reference, list(argv), **LEAST).decode()


def test_every_program_of_a_lab_starts_without_any_right(engine: Engine, built: image.Built) -> None:
    """No capability, nothing to write to, no network; all from the image's own files, with byte code."""
    code = f"import importlib as i, json; print(json.dumps([i.import_module(m).__cached__ for m in {PROGRAMS!r}]))"
    cached = json.loads(run(engine, built.reference, "python", "-c", code))

    assert all(path.startswith(f"/{inputs.CODE}/") and path.endswith(".pyc") for path in cached)
    there = "import os, sys; print([p for p in sys.argv[1:] if not os.path.exists(p)])"
    assert run(engine, built.reference, image.PYTHON, "-c", there, *cached) == "[]\n"


def test_the_load_generator_starts_too(engine: Engine, built: image.Built) -> None:
    """Locust and gevent with their compiled parts, which want libraries of the system."""
    said = run(
        engine, built.reference, "python", "-c", "import testbed.load.generator, gevent, zmq, uvloop; print('up')"
    )

    assert said == "up\n"


def test_the_packed_interpreter_is_the_one_that_runs_here(engine: Engine, built: image.Built) -> None:
    """So a comparison of runtimes does not compare two builds of Python, or two of OpenSSL."""
    said = run(
        engine, built.reference, "python", "-c", "import sys, ssl; print(sys.version, ssl.OPENSSL_VERSION, sep='|')"
    )

    assert said == f"{sys.version}|{ssl.OPENSSL_VERSION}\n"


def test_the_code_in_it_is_this_checkouts(engine: Engine, built: image.Built) -> None:
    file = "planes/mesh/relay.py"
    show = f"import hashlib as h; print(h.sha256(open('/{inputs.CODE}/{file}', 'rb').read()).hexdigest())"

    assert (
        run(engine, built.reference, "python", "-c", show).strip()
        == hashlib.sha256((program.CHECKOUT / file).read_bytes()).hexdigest()
    )


def test_what_is_there_is_not_built_again(engine: Engine, built: image.Built) -> None:
    again = image.ready(engine, base="packed")

    assert (again.reference, again.image_id, again.seconds) == (built.reference, built.image_id, 0.0)


def test_two_builds_of_the_same_are_one_digest(engine: Engine, built: image.Built) -> None:
    """The second takes nothing from the first but the base; layers, settings and name are the same."""
    again = image.build(engine, base="packed", fresh=True)

    assert again.seconds > 0
    assert (again.digest, again.reference) == (built.digest, built.reference)


def test_two_bases_of_the_same_are_one_image(engine: Engine, built: image.Built) -> None:
    """Loaded, not built, they hold no hour: even the id is the same."""
    name = bases.references()[bases.BaseKind.PACKED]
    native = [entry.source for entry in inputs.packages() if entry.source is not None]
    again = archive.load(
        engine, packedbase.entries(native=native), tag="meshbed-test-base:again",
        settings=bases.SETTINGS,
    )  # fmt: skip
    engine.client.images.remove("meshbed-test-base:again")

    assert again.id == engine.client.images.get(name).id


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small checkout of its own."""
    (tmp_path / "planes").mkdir()
    (tmp_path / "planes" / "__init__.py").write_text("EDITED = 'first'\n")
    (tmp_path / "Dockerfile").write_text((program.CHECKOUT / "Dockerfile").read_text())
    monkeypatch.setattr(program, "CHECKOUT", tmp_path)
    yield tmp_path


def test_an_edit_is_another_image_and_the_first_stays(engine: Engine, built: image.Built, edited: Path) -> None:
    """Whoever runs on the first goes on with it; nothing is overwritten."""
    first = image.ready(engine, base="packed")
    (edited / "planes" / "__init__.py").write_text("EDITED = 'second'\n")
    assert image.find(engine, base="packed") is None
    second = image.ready(engine, base="packed")
    try:
        show = ("python", "-c", "import planes; print(planes.EDITED)")
        assert [run(engine, one.reference, *show) for one in (first, second)] == ["first\n", "second\n"]
        assert len({first.reference, second.reference, built.reference}) == 3
    finally:
        for one in (first, second):
            engine.client.images.remove(one.reference)


def test_a_base_without_this_python_is_refused(engine: Engine, built: image.Built) -> None:
    """Compiled packages of one minor version do not load in another; nothing of the attempt stays."""
    empty = archive.load(engine, [layer.Entry(path="etc/x", content=b"")], tag="meshbed-test-empty:1", settings={})
    try:
        with pytest.raises(UsageError, match=r"base meshbed-test-empty:1: it has no Python 3\.\d+"):
            image.build(engine, base="meshbed-test-empty:1")
        users = engine.client.containers.list(all=True, filters={"ancestor": "meshbed-test-empty:1"})
        assert users == []
    finally:
        engine.client.images.remove(empty.id, force=True)


def test_a_base_of_the_users_own_is_built_on_and_told(engine: Engine, built: image.Built) -> None:
    """Any image that has this Python; found again by its name only."""
    engine.client.images.get(bases.references()[bases.BaseKind.PACKED]).tag("meshbed-test-own", "1")
    try:
        mine = image.build(engine, base="meshbed-test-own:1")
        assert (mine.base, mine.base_kind) == ("meshbed-test-own:1", "given")
        assert image.find(engine, base="meshbed-test-own:1") == dataclasses.replace(mine, seconds=0.0)
        assert image.find(engine, base="meshbed-test-own:2") is None
        engine.client.images.remove(mine.reference)
    finally:
        engine.client.images.remove("meshbed-test-own:1")


def test_a_base_that_is_nowhere_is_told_with_the_engines_words(engine: Engine) -> None:
    with pytest.raises(MachineError, match=r"meshbed-nowhere:1 is not in the engine and cannot be pulled"):
        image.build(engine, base="meshbed-nowhere:1")


def test_images_of_programs_not_ours_run_without_rights_too(engine: Engine) -> None:
    """Debian's redis and nginx, packed: what a workload of the user's own is tested with."""
    redis = run(engine, debianimages.redis(engine), "/usr/bin/redis-server", "--version")
    nginx = engine.client.containers.run(
        debianimages.nginx(engine), ["/usr/sbin/nginx", "-t", "-c", "/etc/meshbed-nginx.conf"],
        **LEAST, tmpfs={"/tmp": ""}, stderr=True,
    )  # fmt: skip

    assert redis.startswith("Redis server v=")
    assert b"test is successful" in nginx
