"""A base image where no registry answers, made of Debian packages by mmdebstrap; the same archive gives the same bytes.

mmdebstrap only fetches and unpacks (its variant `extract`: no maintainer scripts run, no chroot). What a container
needs beyond that is added here: byte code of the standard library, busybox's names, users. What it never needs
(documentation, translations, package lists) is left out. The archive's address is the machine's own (apt's sources).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from testbed.docker import layer
from testbed.docker.layer import Entry
from testbed.errors import MachineError

LIMIT_S = 600.0
SUITES = {(3, 11): "bookworm", (3, 12): "noble", (3, 13): "trixie"}
"""Python's minor version -> the distribution that has it as its own."""
_LEFT_OUT = re.compile(
    r"^(usr/share/(doc|doc-base|man|locale|info|lintian|bash-completion|menu|applications|pixmaps)|var/(lib/(apt|dpkg)|cache|log)"
    r"|etc/(apt|dpkg)|dev)(/|$)|(^|/)__pycache__(/|$)|\.pyc$"
)
BUSYBOX = """
[ ash awk basename cat chmod cp cut date df dirname du echo env expr false find free grep head hostname id ip kill ln ls
mkdir mktemp more mv nc netstat nslookup ping ps pwd readlink rm rmdir route sed seq sh sleep sort stat sync tail tar
tee test time timeout top touch tr traceroute true uname uniq vi wc wget which whoami xargs yes
"""
"""Names that busybox goes by in the image, where nothing else has them."""
PASSWD = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def packages(version: tuple[int, int]) -> tuple[str, ...]:
    """Debian packages of the base; what they depend on comes with them."""
    python = f"python{version[0]}.{version[1]}"
    return (python, "busybox-static", "base-files", "base-passwd", "libc-bin", "libstdc++6", "netbase")


def lacking(version: tuple[int, int] = sys.version_info[:2]) -> str:
    """Why it cannot be made here, with the mend; empty when it can be tried."""
    if version not in SUITES:
        return f"no distribution known has Python {version[0]}.{version[1]}"
    return "" if shutil.which("mmdebstrap") else "mmdebstrap is not installed (apt-get install mmdebstrap)"


def entries(*, version: tuple[int, int] = sys.version_info[:2], cache: Path | None = None) -> list[Entry]:
    """The base's files. Raises MachineError with the archive's or mmdebstrap's own words."""
    if why := lacking(version):
        raise MachineError(f"the Debian base cannot be made: {why}")
    with tempfile.TemporaryDirectory(prefix="meshbed-base-") as folder:
        archive = Path(folder) / "base.tar"
        _fetch(archive, SUITES[version], packages(version))
        with tarfile.open(archive) as tar:
            found = list(kept(tar))
    return list(layer.compiled([*found, *added(found)], cache=cache))


def _fetch(archive: Path, suite: str, names: Iterable[str]) -> None:
    sources = machine_sources(suite, _read_os_release(), _source_files())
    argv = ["mmdebstrap", "--variant=extract", f"--include={','.join(names)}", suite, str(archive), *sources]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(layer.epoch_s()), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, env=environ, check=False)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"mmdebstrap was not done within {LIMIT_S:g} s; is apt's archive slow?") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-1:]
        raise MachineError(
            f"mmdebstrap could not fetch the base ({'; '.join(said)[-300:]}); apt-get update shows whether the archive "
            f"can be reached"
        )


def _read_os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return {}
    return {k: v.strip('"') for k, _, v in (line.partition("=") for line in text.splitlines())}


def _source_files() -> dict[Path, str]:
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return {p: p.read_text() for p in places if p.suffix in (".list", ".sources") and os.access(p, os.R_OK)}


# -- pure


def machine_sources(suite: str, os_release: Mapping[str, str], files: Mapping[Path, str]) -> list[str]:
    """Files of apt's sources that name the suite, where the machine runs that suite itself; else mmdebstrap's own.

    A list of another vendor's packages may name it, too; it does no harm, for only our packages are asked for.
    """
    if os_release.get("VERSION_CODENAME") != suite:
        return []
    named = re.compile(rf"^(deb\s.*|Suites:.*)\s{re.escape(suite)}(-\w+)?(\s|$)", re.MULTILINE)
    return [str(path) for path, text in files.items() if named.search(text)]


def kept(tar: tarfile.TarFile) -> Iterator[Entry]:
    """What of an unpacked distribution a container needs. Hard links become files, devices are dropped."""
    for member in tar:
        path = member.name.removeprefix("./").strip("/")
        if not path or path == "." or _LEFT_OUT.search(path):
            continue
        if member.issym():
            yield Entry(path=path, link=member.linkname)
        elif member.isdir():
            yield Entry(path=path, mode=member.mode)
        elif member.isfile() or member.islnk():
            file = tar.extractfile(member)
            yield Entry(path=path, content=file.read() if file is not None else b"", mode=member.mode)


def added(found: Iterable[Entry]) -> Iterator[Entry]:
    """What maintainer scripts would have made: users, `sh` and its friends, `python3`, places to mount."""
    paths = {entry.path for entry in found}
    merged = any(entry.path == "bin" and entry.link for entry in found)
    for path in ("usr/bin/busybox", "bin/busybox"):
        if path in paths:
            folder = "usr/bin" if merged else "bin"
            names = [
                n for n in BUSYBOX.split() if not {f"usr/bin/{n}", f"bin/{n}", f"usr/sbin/{n}", f"sbin/{n}"} & paths
            ]
            yield from (Entry(path=f"{folder}/{name}", link="/" + path) for name in names)
            break
    for path, content in (("etc/passwd", PASSWD), ("etc/group", GROUP)):
        if path not in paths:
            yield Entry(path=path, content=content)
    for path in ("proc", "sys", "dev", "run"):
        yield Entry(path=path)
    yield Entry(path="tmp", mode=0o1777)
    for path in sorted(paths):
        if re.fullmatch(r"usr/bin/python3\.\d+", path) and "usr/bin/python3" not in paths:
            yield Entry(path="usr/bin/python3", link=path.rpartition("/")[2])
