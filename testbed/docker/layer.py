"""Files of an image layer as a tar: the same files give the same bytes, whoever packs them, when and where.

Entries are sorted, owned by root, dated by SOURCE_DATE_EPOCH (or a fixed day), without names of users; folders above
them are added. Python sources bring their byte code, of the unchecked-hash kind: a container's root is read-only, so
without it every start would compile again (a quarter of a second instead of a twentieth). Compiling is remembered by
content in a folder of the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import io
import marshal
import os
import sys
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path
from typing import IO

EPOCH_S = 1_735_689_600
"""2025-01-01, where SOURCE_DATE_EPOCH does not say otherwise."""
UNCHECKED_HASH = (1).to_bytes(4, "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of a layer: a file from `source` or with `content`, a `link`, or a folder (none of them)."""

    path: str
    """In the image, without a leading slash."""
    source: Path | None = None
    content: bytes | None = None
    link: str | None = None
    executable: bool = False
    mode: int | None = None
    """Instead of 0644, or 0755 for folders and what is executable."""

    @property
    def bits(self) -> int:
        if self.mode is not None:
            return self.mode
        return 0o755 if self.executable or self.is_folder else 0o644

    @property
    def is_folder(self) -> bool:
        return self.source is None and self.content is None and self.link is None

    def open(self) -> IO[bytes]:
        """The content; empty for links and folders."""
        return io.BytesIO(self.content or b"") if self.source is None else open(self.source, "rb")

    def bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


def epoch_s() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdigit() else EPOCH_S


def write(entries: Iterable[Entry], file: IO[bytes], *, date_s: int) -> str:
    """The tar to `file`; its sha256. Of two entries with one path the first counts."""
    summing = _Summing(file)
    with tarfile.open(fileobj=summing, mode="w|", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for entry in with_folders(entries):
            with entry.open() as data:
                size = data.seek(0, os.SEEK_END)
                data.seek(0)
                tar.addfile(_header(entry, size, date_s), data)
    return summing.sum.hexdigest()


def with_folders(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted, each path once, folders above each entry among them."""
    found: dict[str, Entry] = {}
    for entry in entries:
        found.setdefault(entry.path, entry)
    for path in list(found):
        while path := path.rpartition("/")[0]:
            found.setdefault(path, Entry(path=path))
    return [found[path] for path in sorted(found)]


def key(entries: Iterable[Entry], total: hashlib._Hash | None = None) -> str:
    """sha256 over what the entries are (after what `total` has seen), independent of any date."""
    total = hashlib.sha256() if total is None else total
    for entry in sorted(entries, key=lambda one: one.path):
        content = hashlib.sha256(entry.bytes()).hexdigest()
        total.update(f"{entry.path}\0{entry.link}\0{entry.bits:o}\0{content}\n".encode())
    return total.hexdigest()


def _header(entry: Entry, size: int, date_s: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.path)
    header.mtime, header.mode, header.size = date_s, entry.bits, size
    if entry.link is not None:
        header.type, header.linkname, header.mode = tarfile.SYMTYPE, entry.link, 0o777
    elif entry.is_folder:
        header.type = tarfile.DIRTYPE
    return header


@functools.cache
def recipe(*modules: str) -> bytes:
    """sha256 of this module's text and of those beside it: what is made by other rules is another thing."""
    here = Path(__file__)
    files = [here, *(here.with_name(f"{module}.py") for module in modules)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).digest()


class _Summing:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self.file.write(data)


# -- byte code


def compiled(entries: Iterable[Entry], *, cache: Path | None = None) -> Iterator[Entry]:
    """The entries, and beside each Python source its byte code. Sources that do not compile (templates) go without."""
    for entry in entries:
        yield entry
        if entry.path.endswith(".py") and entry.link is None:
            code = byte_code(entry.bytes(), "/" + entry.path, cache=cache)
            if code is not None:
                folder, _, name = entry.path.rpartition("/")
                stem = f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
                yield Entry(path=f"{folder}/__pycache__/{stem}" if folder else f"__pycache__/{stem}", content=code)


def byte_code(source: bytes, path: str, *, cache: Path | None) -> bytes | None:
    """What Python would write to __pycache__ for a file at `path` of the image; None for what does not compile."""
    kept = None
    if cache is not None:
        kept = cache / hashlib.sha256(recipe() + MAGIC_NUMBER + path.encode() + b"\0" + source).hexdigest()
        try:
            return kept.read_bytes() or None
        except OSError:
            pass
    made = _compile(source, path)
    if kept is not None:
        _keep(kept, made or b"")
    return made


def _compile(source: bytes, path: str) -> bytes | None:
    _settle_interned()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escape sequences
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None
    return MAGIC_NUMBER + UNCHECKED_HASH + source_hash(source) + marshal.dumps(code)


@functools.cache
def _settle_interned() -> list[str]:
    """Strings of one character exist once in a process, and marshal writes whether anybody has interned them by now:
    from here on somebody has.
    """
    return [sys.intern(chr(number)) for number in range(256)]


def _keep(path: Path, data: bytes) -> None:
    """A cache that cannot be written to is none; nothing else is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        pass


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "meshbed" / "bytecode"
