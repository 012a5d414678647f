"""cpio archives in the `newc` format, which Linux unpacks as its first file system (initramfs buffer format)."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Archive:
    """Collects entries; parents are made as needed. Archives may be written one after another: later ones win."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, *, mode: int = 0o644, mtime_s: int = 0) -> None:
        self._entry(name, stat.S_IFREG | mode, data, mtime_s)

    def link(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, source: Path, name: str) -> None:
        """Follows symbolic links; keeps the modification time, which byte-compiled files are checked against."""
        status = source.stat()
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self.file(name, source.read_bytes(), mode=mode, mtime_s=int(status.st_mtime))

    def finish(self) -> bytes:
        return b"".join([*self._parts, _encode("TRAILER!!!", 0, b"", 0, 0)])

    def __contains__(self, name: str) -> bool:
        return name.strip("/") in self._names

    def _entry(self, name: str, mode: int, data: bytes, mtime_s: int = 0) -> None:
        name = name.strip("/")
        if name in self._names:
            return
        parent = os.path.dirname(name)
        if parent:
            self.folder(parent)
        self._names.add(name)
        self._parts.append(_encode(name, mode, data, mtime_s, len(self._names)))


def _encode(name: str, mode: int, data: bytes, mtime_s: int, inode: int) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, mtime_s, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
