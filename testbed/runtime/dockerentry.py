"""The first steps of a program that keeps capabilities, inside its container: user, capabilities, log, exec.

Docker gives capabilities to root alone; so such a container begins as root with what its role needs, and this makes
it a user of its own that keeps exactly those. Light, for it runs before every ztunnel.
"""

from __future__ import annotations

import os
import sys

from testbed.runtime import launch
from testbed.runtime.child import Launcher


def main() -> None:
    """Arguments: user id, capabilities with commas, log file, then the program's words."""
    uid, capabilities, log, *argv = sys.argv[1:]
    steps = launch.drop(capabilities.split(","), int(uid), single_uid=False)
    Launcher(sharing=False).make(list(steps))
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.execvp(argv[0], argv)
