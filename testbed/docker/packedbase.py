"""A base of the running Python itself: interpreter, standard library, and the shared libraries they are linked with.

The last resort, for it needs neither registry nor archive, only a second; and the base for comparing runtimes, for a
container then runs the very interpreter that the embedded runtime runs. The interpreter moves to a folder of our own
in the image, wherever it lies here: it finds its library beside itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from testbed.docker import layer, offlinebase
from testbed.docker.inputs import HOME
from testbed.docker.layer import Entry
from testbed.errors import MachineError

PLACE = f"{HOME}/python"
_LEFT_OUT = re.compile(
    r"(^|/)(__pycache__|test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-3[^/]*|site-packages|dist-packages|"
    r"pkgconfig)(/|$)|\.(pyc|a)$"
)
_LINKED = re.compile(r"(?:(\S+) => )?(/\S+) \(0x")
_FILES = ("etc/nsswitch.conf", "etc/protocols", "etc/services")


def entries(*, native: Sequence[Path] = (), cache: Path | None = None) -> list[Entry]:
    """The base's files; `native` are further files whose shared libraries must be there, such as those of packages.

    Raises MachineError where `ldd` is missing or does not know a library.
    """
    python = list(_python())
    ours = [e.source for e in python if e.source is not None and _is_elf(e.source)]
    busybox = shutil.which("busybox")
    tools = [] if busybox is None else [Entry(path="usr/bin/busybox", source=Path(busybox), executable=True)]
    found = [
        *(Entry(path=name, link=f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")),
        *python,
        *tools,
        *(Entry(path=name, source=Path("/", name)) for name in _FILES if Path("/", name).exists()),
        *_libraries([*ours, *([Path(busybox)] if busybox else []), *native]),
    ]
    return list(layer.compiled([*found, *offlinebase.added(found)], cache=cache))


def _python() -> Iterator[Entry]:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    yield Entry(path=f"{PLACE}/bin/{version}", source=Path(os.path.realpath(sys.executable)), executable=True)
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    for folder, names, files in os.walk(library):
        inside = Path(folder).relative_to(library)
        names[:] = sorted(name for name in names if not _LEFT_OUT.search(str(inside / name)))
        for name in sorted(files):
            source = Path(folder, name)
            if not _LEFT_OUT.search(str(inside / name)) and source.is_file():
                executable = bool(source.stat().st_mode & 0o100)
                yield Entry(path=f"{PLACE}/lib/{version}/{inside / name}", source=source, executable=executable)


def _libraries(files: Iterable[Path]) -> Iterator[Entry]:
    """Where the loader looks by itself: libraries of other folders (a Python of one's own) go beside the C library."""
    wanted = linked(files)
    loader = next((path for name, path in wanted.items() if name.startswith("/")), None)
    usual = Path(wanted["libc.so.6"]).parent if "libc.so.6" in wanted else Path("/usr/lib")
    for name, path in sorted(wanted.items()):
        target = Path(path) if path == loader else usual / Path(name).name
        yield Entry(path=_merged(target), source=Path(os.path.realpath(path)), executable=True)


def _merged(path: Path) -> str:
    """/lib64/x as usr/lib64/x: the image's /lib and its like are links, whatever they are here."""
    text = os.path.normpath(path).lstrip("/")
    return text if text.startswith("usr/") else f"usr/{text}"


def linked(files: Iterable[Path]) -> dict[str, str]:
    """Shared libraries of ELF files: soname (the loader: its path) -> path here. Those inside packages are left out."""
    ldd, elves = shutil.which("ldd"), sorted({str(file) for file in files if _is_elf(file)})
    if ldd is None:
        raise MachineError("the running Python cannot be packed: ldd is missing (Debian: apt-get install libc-bin)")
    found: dict[str, str] = {}
    for start in range(0, len(elves), 200):
        said = subprocess.run([ldd, *elves[start : start + 200]], capture_output=True, text=True, check=False).stdout
        for name, path in _LINKED.findall(said):
            if "-packages/" not in path:
                found.setdefault(name or path, path)
    return found


def _is_elf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
