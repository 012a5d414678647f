"""What lies in the way of a program that another user is to run: which folders it may not pass, where its code is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


class Ways:
    """Which folders are in a program's way, each looked at once for all programs that start together."""

    def __init__(self) -> None:
        self._code: dict[str, list[str]] = {}
        self._programs: dict[tuple[str, str], list[str]] = {}
        self._seen: dict[str, tuple[int, int] | None] = {}

    def programs(self, program: str, path: str) -> list[str]:
        """Files that exec may try for `program`, in the order of `path`: those that are there."""
        if "/" in program:
            return [program]
        if (program, path) not in self._programs:
            found = [os.path.join(folder, program) for folder in path.split(":")]
            self._programs[program, path] = [file for file in found if os.path.exists(file)]
        return self._programs[program, path]

    def code_folders(self, program: str) -> list[str]:
        """Where Python and this project live: a program of the lab must be able to read them."""
        if program not in self._code:
            folders = [sys.prefix, sys.base_prefix, str(PROJECT)]
            if program.startswith("/"):
                folders.append(os.path.dirname(program))
            self._code[program] = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
        return self._code[program]

    def barrier(self, path: str, uid: int) -> str | None:
        """The topmost folder on the way to `path` that user `uid` may not pass, such as /root;
        None when the way is open.
        """
        if uid == 0:
            return None
        end = 0
        while (end := path.find("/", end + 1)) > 0:
            folder = path[:end]
            if folder not in self._seen:
                self._seen[folder] = self._look(folder)
            if (found := self._seen[folder]) is None:
                return None  # its program makes it, open to pass
            mode, owner = found
            if not mode & (0o100 if owner == uid else 0o001):
                return folder
        return None

    @staticmethod
    def _look(folder: str) -> tuple[int, int] | None:
        try:
            found = os.stat(folder)
        except FileNotFoundError:
            return None
        return found.st_mode, found.st_uid
