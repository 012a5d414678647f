"""Files whole or not at all, synced; and what a disk that refuses means for who waits for them."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.errors import MachineError


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replaces `path` in one step: readers see the old bytes or the new. Raises OSError and leaves nothing behind."""
    draft = path.with_name(path.name + ".tmp")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data, 0)
        finally:
            os.close(fd)
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):  # a write may be short just before the disk is full
        done += os.pwrite(fd, data[done:], offset + done)
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class translated:
    """Turns an OSError into MachineError with the mend; says what is safe."""

    def __init__(self, path: Path, doing: str, stored: int | None = None, *, mend: str = "") -> None:
        self.path, self.doing, self.stored, self.mend = path, doing, stored, mend

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        safe = "" if self.stored is None else f"; the {self.stored} trials stored before are whole"
        mend = (
            f"check rights and space{', ' * bool(self.mend)}{self.mend}"
            if self.stored is None
            else "free some space or raise the limit, then resume the run"
        )
        raise MachineError(f"{self.path}: cannot {self.doing}: {error.strerror or error}{safe}; {mend}") from error
