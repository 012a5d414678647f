"""Which base an image stands on: a decision over what there is (`attempts`, pure), then the first that can be had.

Order: what the engine holds already (official, then Debian, then packed); the official Python image, pulled; one made
of Debian packages; the running interpreter, packed. A `--base` that is named is the only one tried.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from testbed.docker import archive, inputs, layer, offlinebase, packedbase
from testbed.docker.engine import Engine
from testbed.errors import MachineError, UsageError
from testbed.seams import Progress

if TYPE_CHECKING:
    from docker.models.images import Image

AUTO = "auto"
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
REPOSITORY = "meshbed-base"
SETTINGS = {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
"""Of the bases made here."""
PULL_WITHIN_S = 20.0
"""Without any word from the registry for so long, it counts as not reachable."""


class BaseKind(StrEnum):
    OFFICIAL = "official"
    """The Python image of the registry that the engine asks."""
    DEBIAN = "debian"
    """Made here of Debian packages."""
    PACKED = "packed"
    """Made here of the running interpreter: the same interpreter as under netns."""
    GIVEN = "given"
    """An image of the user's, by its own name."""


class How(StrEnum):
    USE = "use"
    PULL = "pull"
    MAKE = "make"


class Attempt(NamedTuple):
    kind: BaseKind
    how: How


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    kind: BaseKind
    reference: str
    digest: str
    """Over its layers and settings (`archive.digest`)."""
    python: str
    """The interpreter in it, of our own minor version, as an absolute path."""


# -- pure


def wanted(asked: str) -> str:
    """What `asked` means: where it leaves the choice, MESHBED_IMAGE_BASE may make it."""
    return os.environ.get("MESHBED_IMAGE_BASE") or AUTO if asked == AUTO else asked


def attempts(asked: str, *, present: Collection[BaseKind], makeable: Collection[BaseKind]) -> list[Attempt]:
    """What to try, in order. `makeable`: of the two made here, those whose tools are here."""
    if asked == AUTO:
        at_hand = [Attempt(kind, How.USE) for kind in _MADE if kind in present]
        others = [_fetching(kind) for kind in _MADE if kind is BaseKind.OFFICIAL or kind in makeable]
        return [*at_hand, *(attempt for attempt in others if attempt.kind not in present)]
    kind = BaseKind(asked) if asked in _MADE else BaseKind.GIVEN
    if kind in present:
        return [Attempt(kind, How.USE)]
    return [_fetching(kind)]


def suits(asked: str, kind: str | None, reference: str | None) -> bool:
    """Whether an image on that base is what was asked for."""
    return asked in (AUTO, kind) or (asked not in _MADE and asked == reference)


def references() -> dict[BaseKind, str]:
    """Names of the bases for this interpreter and these recipes."""
    recipe = f"{layer.recipe('offlinebase', 'packedbase').hex()}\0{layer.epoch_s()}\0{platform.machine()}"
    # Which interpreter, with which packages beside it, whose libraries are packed with its own.
    packed = f"{recipe}\0{sys.version}\0{inputs.packages_key()}"
    return {
        BaseKind.OFFICIAL: f"python:{MINOR}-slim-bookworm",
        BaseKind.DEBIAN: f"{REPOSITORY}:debian-{MINOR}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}",
        BaseKind.PACKED: f"{REPOSITORY}:packed-{MINOR}-{hashlib.sha256(packed.encode()).hexdigest()[:12]}",
    }


_MADE = (BaseKind.OFFICIAL, BaseKind.DEBIAN, BaseKind.PACKED)


def _fetching(kind: BaseKind) -> Attempt:
    return Attempt(kind, How.PULL if kind in (BaseKind.OFFICIAL, BaseKind.GIVEN) else How.MAKE)


# -- the engine asked


def obtain(engine: Engine, asked: str, *, progress: Progress) -> tuple[Base, list[str]]:
    """The first base that can be had, and why those before it could not. Raises MachineError when none can."""
    names = _names(asked)
    why = offlinebase.lacking()
    notes = []
    for attempt in _attempts(engine, asked):
        progress(f"image: base {names[attempt.kind]} ({attempt.how})")
        try:
            image = _have(engine, attempt, names[attempt.kind])
            base = Base(
                kind=attempt.kind,
                reference=names[attempt.kind],
                digest=archive.digest(image.attrs),
                python=python_in(engine, names[attempt.kind]),
            )
        except (MachineError, UsageError) as error:
            if asked != AUTO:
                raise
            notes.append(f"{attempt.kind}: {error}")
            progress(f"image: no {attempt.kind} base: {error}")
            continue
        return base, notes
    if why and asked == AUTO:
        notes.append(f"debian: {why}")
    raise MachineError("no base for the image can be had: " + "; ".join(notes))


def plan(engine: Engine, asked: str) -> list[tuple[str, How]]:
    """Names of the bases that `obtain` would try, and how."""
    asked = wanted(asked)
    return [(_names(asked)[attempt.kind], attempt.how) for attempt in _attempts(engine, asked)]


def _names(asked: str) -> dict[BaseKind, str]:
    return {**references(), BaseKind.GIVEN: asked}


def _attempts(engine: Engine, asked: str) -> list[Attempt]:
    names = _names(asked)
    kinds = _MADE if asked == AUTO or asked in _MADE else (BaseKind.GIVEN,)
    makeable = [BaseKind.PACKED, *([] if offlinebase.lacking() else [BaseKind.DEBIAN])]
    return attempts(asked, present={k for k in kinds if archive.present(engine, names[k])}, makeable=makeable)


def _have(engine: Engine, attempt: Attempt, name: str) -> Image:
    if attempt.how is How.USE:
        return engine.client.images.get(name)
    if attempt.how is How.PULL:
        return _pull(engine, name)
    cache = layer.cache_folder()
    if attempt.kind is BaseKind.DEBIAN:
        made = offlinebase.entries(cache=cache)
    else:
        native = [entry.source for entry in inputs.packages() if entry.source is not None]
        made = packedbase.entries(native=native, cache=cache)
    return archive.load(engine, made, tag=name, settings=SETTINGS)


def _pull(engine: Engine, name: str) -> Image:
    """Through a connection of its own, whose patience is shorter: a registry behind a silent firewall answers never."""
    import docker
    from docker.errors import APIError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    class Impatient(docker.APIClient):
        def request(self, *args: Any, **options: Any) -> Any:
            return super().request(*args, **{**options, "timeout": PULL_WITHIN_S})  # `pull` itself asks for none

    asking = Impatient(base_url=engine.info.host, version=engine.info.api)
    repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    try:
        for line in asking.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise MachineError(f"{name} cannot be pulled ({str(line['error'])[:200]})")
        return engine.client.images.get(name)
    except (APIError, RequestException, HTTPError) as error:  # the last in the middle of a stream
        said = getattr(error, "explanation", None) or error
        raise MachineError(
            f"{name} is not in the engine and cannot be pulled ({str(said)[:200]}); load or build it first, or use "
            f"--base debian or --base packed"
        ) from error
    finally:
        asking.close()


def python_in(engine: Engine, reference: str) -> str:
    """Path of the interpreter of our minor version in an image. Raises UsageError where there is none."""
    from docker.errors import NotFound

    container = engine.client.containers.create(reference, command=["true"], network_mode="none")
    try:
        for path in (
            f"/{packedbase.PLACE}/bin/python{MINOR}",
            f"/usr/local/bin/python{MINOR}",
            f"/usr/bin/python{MINOR}",
        ):
            try:
                stream, _ = container.get_archive(path)
            except NotFound:
                continue
            stream.close()
            return path
    finally:
        container.remove(force=True)
    raise UsageError(
        f"base {reference}: it has no Python {MINOR}, whose byte code and compiled packages the image brings; use one "
        f"that has (python:{MINOR}-slim-bookworm), or --base debian or packed"
    )
