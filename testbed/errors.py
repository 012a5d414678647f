"""The errors that leave this package, by who must act.

Each text says what happened, where, and the mend. An exception of a library or of the kernel is translated where it
enters,
with `raise … from`, so that none leaks. A denial by policy is a value (`model.policy.Verdict`), never an exception.
"""

from __future__ import annotations

import errno

OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG})
"""Numbers of an OSError that blame the disk or the rights, not us: they end a verb as a MachineError does."""


class TestbedError(Exception):
    """Base of the family; `exit_code` is the process exit code (README, "Verbs") that a verb ends with."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it
    exit_code = 1


class UsageError(TestbedError):
    """A wrong argument, name or file: the caller can mend it."""

    exit_code = 2


class TopologyError(UsageError):
    """A topology or policy file is wrong.

    `problems` holds every error of the file, each `file:line:column: what; mend`.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MachineError(TestbedError):
    """This machine lacks something (a kernel feature, a right, a program); the text names the mend."""

    exit_code = 5


class PeerError(TestbedError):
    """A process or peer of the lab did not do its part (died, refused, sent nonsense)."""


class TrialError(TestbedError):
    """A trial's result is not valid: fidelity broken, link dead, load generator late."""

    exit_code = 4


class Bug(TestbedError):
    """An invariant of ours broke; the text starts with `BUG:`."""

    def __init__(self, text: str) -> None:
        super().__init__(f"BUG: {text}")
