"""The image that every container of ours starts from: Python packages and exactly this code, on the best base there is.

Code is copied into the image, not bind-mounted from the checkout: a lab then goes on with the code it was started
with, whatever is edited meanwhile; an image's name says which code it holds; and what is measured lies in the page
cache like any program's. The price is half a second after an edit. Images are found by a label made of what goes in
(`inputs_key`), so `ready` costs milliseconds when nothing changed, and two clones never overwrite each other's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import program
from testbed.docker import archive, bases, inputs, layer
from testbed.docker.bases import Base, BaseKind
from testbed.docker.engine import Engine, answering
from testbed.errors import MachineError
from testbed.seams import Progress

if TYPE_CHECKING:
    from docker.models.images import Image

REPOSITORY = "meshbed"
PYTHON = f"/{inputs.HOME}/bin/python"
"""The interpreter of every image of ours, whatever its base."""
ENVIRONMENT = {
    "PATH": f"/{inputs.HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": f"/{inputs.CODE}:/{inputs.PACKAGES}",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "LANG": "C.UTF-8",
}
"""What the image sets; a program started with an environment of its own is given these."""
INPUTS, BASE, BASE_KIND = "meshbed.inputs", "meshbed.base", "meshbed.base.kind"
KEPT = {REPOSITORY: 6, f"{REPOSITORY}-packages": 3, bases.REPOSITORY: 4}
"""Images that stay, the newest of each kind; older ones go when one is built, unless a container uses them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image, ready to be run."""

    reference: str
    """`meshbed:<key>`: what containers are started from."""
    image_id: str
    digest: str
    """sha256 over its layers and settings: equal for equal inputs, which the id is not (it holds the hour)."""
    base: str
    base_kind: str
    size_bytes: int
    seconds: float
    """0 where it was there already."""
    notes: tuple[str, ...] = ()
    """Bases that were tried before, and why each could not be had."""


def ready(engine: Engine, *, base: str = "auto", progress: Progress = lambda _line: None) -> Built:
    """The image of the code as it is now; built where it is not there yet, by one process of the user at a time: two
    that build the same take its name from one another.
    """
    if found := find(engine, base=base):
        return found
    with _builder():
        return find(engine, base=base) or build(engine, base=base, progress=progress)


@contextlib.contextmanager
def _builder() -> Iterator[None]:
    """Held while building; the kernel lets go of it for who is killed."""
    file = layer.cache_folder().parent / "image.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def find(engine: Engine, *, base: str = "auto") -> Built | None:
    """The newest image of this code in the engine, on the base asked for."""
    base = bases.wanted(base)
    with answering(engine):
        found = engine.client.images.list(filters={"label": f"{INPUTS}={inputs_key()}"})
    suitable = [one for one in found if one.tags and bases.suits(base, one.labels.get(BASE_KIND), one.labels.get(BASE))]
    newest = max(suitable, key=lambda one: one.attrs.get("Created", ""), default=None)
    return None if newest is None else _built(newest, seconds=0.0)


def build(engine: Engine, *, base: str = "auto", fresh: bool = False, progress: Progress = lambda _line: None) -> Built:
    """Packages on a base, our code on those. `fresh` takes nothing from earlier builds but the base.

    Raises MachineError when no base can be had, naming what was tried.
    """
    with answering(engine):
        return _build(engine, bases.wanted(base), fresh=fresh, progress=progress)


def _build(engine: Engine, base: str, *, fresh: bool, progress: Progress) -> Built:
    start = time.monotonic()
    chosen, notes = bases.obtain(engine, base, progress=progress)
    on_packages = _packages(engine, chosen, fresh=fresh, progress=progress)
    progress("image: our code")
    code = list(inputs.code())
    key = inputs_key(code)
    labels = {INPUTS: key, BASE: chosen.reference, BASE_KIND: chosen.kind}
    reference = f"{REPOSITORY}:{_short(chosen.digest, key, chosen.kind, chosen.reference)}"
    entries = list(layer.compiled(code, cache=layer.cache_folder()))
    _add(engine, entries, base=on_packages, tag=reference, labels=labels, fresh=fresh)
    image = engine.client.images.get(reference)
    _sweep(engine, keep={reference, on_packages, chosen.reference})
    return _built(image, seconds=time.monotonic() - start, notes=tuple(notes))


def inputs_key(code: Iterable[layer.Entry] | None = None) -> str:
    """What of ours goes into an image: code (that of the checkout now), packages, and how they are put there."""
    total = hashlib.sha256((program.CHECKOUT / "Dockerfile").read_bytes())
    total.update(inputs.packages_key().encode())
    return layer.key(inputs.code() if code is None else code, total)


def _packages(engine: Engine, base: Base, *, fresh: bool, progress: Progress) -> str:
    """The base with Python packages: the large part, made once for each set of packages and base."""
    dockerfile = (program.CHECKOUT / "Dockerfile").read_text()
    tag = f"{REPOSITORY}-packages:{_short(base.digest, inputs.packages_key(), dockerfile)}"
    if archive.present(engine, tag) is not None and not fresh:
        return tag
    progress("image: Python packages")
    cache = layer.cache_folder()
    entries = [*layer.compiled(inputs.packages(), cache=cache), layer.Entry(path=PYTHON[1:], link=base.python)]
    _add(engine, entries, base=base.reference, tag=tag, labels={}, fresh=fresh)
    return tag


def _add(
    engine: Engine, entries: list[layer.Entry], *, base: str, tag: str, labels: Mapping[str, str], fresh: bool
) -> None:
    """`docker build` of our Dockerfile: these files on that base."""
    from docker.errors import APIError

    before = archive.present(engine, tag)
    with tempfile.TemporaryDirectory(prefix="meshbed-image-") as folder:
        files, context = Path(folder) / "files.tar", Path(folder) / "context.tar"
        with open(files, "wb") as file:
            layer.write(entries, file, date_s=layer.epoch_s())
        parts = [
            layer.Entry(path="Dockerfile", source=program.CHECKOUT / "Dockerfile"),
            layer.Entry(path="files.tar", source=files),
        ]
        with open(context, "wb") as file:
            layer.write(parts, file, date_s=layer.epoch_s())
        files.unlink()
        try:
            with open(context, "rb") as file:
                said = engine.client.api.build(
                    fileobj=file, custom_context=True, tag=tag, buildargs={"BASE": base}, labels=dict(labels),
                    rm=True, forcerm=True, nocache=fresh, decode=True,
                )  # fmt: skip
                _heed(said, tag)
            _forget(engine, before, tag)
        except APIError as error:
            raise MachineError(f"image {tag}: the engine refused to build it ({error.explanation or error})") from error


def _heed(said: Iterator[Mapping[str, Any]], tag: str) -> None:
    """The engine reports failures within its stream of progress."""
    for line in said:
        if "error" in line:
            raise MachineError(
                f"image {tag}: docker build failed ({str(line['error']).strip()[:300]}); docker system df shows "
                f"whether the disk is full"
            )


def _forget(engine: Engine, before: Image | None, tag: str) -> None:
    """An image whose name the new one took has none left."""
    from docker.errors import APIError

    if before is not None and before.id != engine.client.images.get(tag).id:
        try:
            engine.client.images.remove(before.id)
        except APIError:
            pass  # a container uses it, or an image stands on it


def _sweep(engine: Engine, *, keep: Collection[str]) -> None:
    """Images of ours but for the last used: of earlier code, packages, recipes. What a container uses stays."""
    from docker.errors import APIError

    for repository, number in KEPT.items():
        found = [(tag, one) for one in engine.client.images.list(name=repository) for tag in one.tags]
        ours = [(tag, one) for tag, one in found if tag.startswith(f"{repository}:") and tag not in keep]
        for tag, _ in sorted(ours, key=_tagged, reverse=True)[number - 1 :]:
            try:
                engine.client.images.remove(tag)
            except APIError:
                pass  # in use, or another process was here first


def _tagged(named: tuple[str, Image]) -> str:
    """When the image got its name; when it was made means nothing for those that bear a fixed date."""
    attributes = named[1].attrs
    return str((attributes.get("Metadata") or {}).get("LastTagTime") or attributes.get("Created", ""))


def _built(image: Image, *, seconds: float, notes: tuple[str, ...] = ()) -> Built:
    return Built(
        reference=next(tag for tag in image.tags if tag.startswith(f"{REPOSITORY}:")),
        image_id=image.id,
        digest=archive.digest(image.attrs),
        base=image.labels.get(BASE, ""),
        base_kind=image.labels.get(BASE_KIND, ""),
        size_bytes=int(image.attrs.get("Size", 0)),
        seconds=round(seconds, 2),
        notes=notes,
    )


def _short(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


__all__ = ["ENVIRONMENT", "PYTHON", "BaseKind", "Built", "build", "find", "inputs_key", "ready"]
