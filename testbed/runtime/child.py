"""A child that makes a list of system calls, the last of which turns it into another program.

The calls are data, because a child that shares its parent's memory until exec (as `vfork` does) cannot run Python:
the two would write to the same interpreter. So the child runs `CODE`, which goes through the list, and the parent waits
for it; nothing of the parent is copied, where a fork of the keeper has 300 page faults and takes 2 ms. On a processor
without `CODE`, or where the machine allows no new executable memory, the list is gone through after an ordinary fork.
"""

from __future__ import annotations

import ctypes
import os
import struct

from testbed.runtime import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Argument = int | bytes | tuple[bytes, ...]
    Step = tuple[str, tuple[Argument, ...], bool]
    """A call's name, its arguments, and whether the child goes on when it fails."""

RECORD = struct.Struct("=8q")
"""A call in memory: number, five arguments, result, and the record to go on with when it fails."""
RESULT = struct.Struct("=48xq8x")
NOT_REACHED = -(1 << 62)
ROOM = 1 << 20
"""For a list with all its strings; only the pages that one needs are ever touched."""
CLONE_VM, CLONE_VFORK, SIGCHLD = 0x100, 0x4000, 17

NUMBERS = {
    "capset": 126, "chdir": 80, "close": 3, "dup3": 292, "execve": 59, "exit_group": 231, "mkdir": 83, "mount": 165,
    "move_mount": 429, "openat": 257, "prctl": 157, "readlinkat": 267, "setgroups": 116, "setns": 308,
    "setresgid": 119, "setresuid": 117, "setsid": 112, "write": 1,
}  # fmt: skip
"""x86-64's; the raw calls, for those of libc would change the user of the parent's threads, too."""

# fmt: off
CODE = bytes.fromhex(
    "53"          # push rbx               long run(record *first, long flags)
    "4889fb"      # mov rbx, rdi
    "4889f7"      # mov rdi, rsi           clone(flags, 0, 0, 0, 0): the stack is shared, too, and the child leaves it
    "31f6"        # xor esi, esi           as it is
    "31d2"        # xor edx, edx
    "4531d2"      # xor r10d, r10d
    "4531c0"      # xor r8d, r8d
    "b838000000"  # mov eax, 56
    "0f05"        # syscall
    "4885c0"      # test rax, rax
    "7402"        # jz step
    "5b"          # pop rbx
    "c3"          # ret                    the parent, when the child has become its program or ended
    "488b03"      # step: mov rax, [rbx]
    "488b7b08"    # mov rdi, [rbx + 8]
    "488b7310"    # mov rsi, [rbx + 16]
    "488b5318"    # mov rdx, [rbx + 24]
    "4c8b5320"    # mov r10, [rbx + 32]
    "4c8b4328"    # mov r8, [rbx + 40]
    "0f05"        # syscall
    "48894330"    # mov [rbx + 48], rax
    "483d01f0ffff"  # cmp rax, -4095       (unsigned: from there on it is a negative errno)
    "7306"        # jae failed
    "4883c340"    # add rbx, 64
    "ebd5"        # jmp step
    "488b5b38"    # failed: mov rbx, [rbx + 56]
    "ebcf"        # jmp step
)
# fmt: on


def step(name: str, *arguments: Argument, optional: bool = False) -> Step:
    return name, arguments, optional


def encode(steps: Sequence[Step], base: int) -> bytes:
    """The list as it lies in memory at `base`: a record for each step, one that exits, then what they point to.

    Raises ValueError for a program's word that has a zero byte, which would end it there.
    """
    leave = base + RECORD.size * len(steps)
    free = leave + RECORD.size
    records: list[int] = []
    heap: list[bytes] = []

    def place(data: bytes) -> int:
        nonlocal free
        padded = data + bytes(8 - len(data) % 8)  # at least one, which ends a string
        heap.append(padded)
        free += len(padded)
        return free - len(padded)

    following = base
    for name, arguments, optional in steps:
        following += RECORD.size
        records.append(NUMBERS[name])
        for argument in arguments:
            if isinstance(argument, tuple):
                if cut := [word for word in argument if 0 in word]:
                    raise ValueError(f"{cut[0]!r}: a program's arguments and variables cannot hold a zero byte")
                argument = struct.pack(f"={len(argument) + 1}q", *map(place, argument), 0)
            records.append(argument if isinstance(argument, int) else place(argument))
        records += [0] * (5 - len(arguments))
        records += (NOT_REACHED, following if optional else leave)
    records += (NUMBERS["exit_group"], 127, 0, 0, 0, 0, NOT_REACHED, leave)
    return struct.pack(f"={len(records)}q", *records) + b"".join(heap)


class Launcher:
    """Starts one child at a time; `sharing` asks for the way without a copy of the parent's memory."""

    def __init__(self, *, sharing: bool = True) -> None:
        self._base = kernel.memory(ROOM)
        self._run = kernel.function(CODE) if sharing and os.uname().machine == "x86_64" else None

    @property
    def sharing(self) -> bool:
        return self._run is not None

    def start(self, steps: Sequence[Step], namespaces: int) -> int:
        """The child's pid, once it has become its program; `namespaces` are those that it has new ones of.

        Raises OSError saying which call was refused, or that the child was ended.
        """
        self._load(steps)
        if self._run is None:
            pid = self._fork(steps, namespaces)
        else:
            pid = self._run(self._base, CLONE_VM | CLONE_VFORK | SIGCHLD | namespaces)
            # A child that changes its user takes this from the memory it shares: nobody may look into it meanwhile.
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        if pid < 0:
            raise OSError(-pid, f"clone: {os.strerror(-pid)}")
        if (refused := self._refused(steps)) is not None:
            os.waitpid(pid, 0)
            raise refused
        return pid

    def make(self, steps: Sequence[Step]) -> None:
        """Makes the calls in this process. Raises OSError saying which was refused."""
        self._load(steps)
        self._go_through(steps)
        if (refused := self._refused(steps)) is not None:
            raise refused

    def text(self, number: int, argument: int) -> bytes:
        """What the last list's call `number` has written to where its `argument` points."""
        return ctypes.string_at(self._record(number)[1 + argument])

    def _load(self, steps: Sequence[Step]) -> None:
        image = encode(steps, self._base)
        if len(image) > ROOM:
            raise OSError(7, f"arguments and environment of {len(image)} bytes are more than {ROOM}")
        ctypes.memmove(self._base, image, len(image))

    def _record(self, number: int) -> tuple[int, ...]:
        return RECORD.unpack(ctypes.string_at(self._base + RECORD.size * number, RECORD.size))

    def _fork(self, steps: Sequence[Step], namespaces: int) -> int:
        reader, writer = os.pipe()  # closed by exec
        back = os.open("/proc/self/ns/pid", os.O_RDONLY)
        kernel.unshare(namespaces & kernel.NEWPID)  # for children only; taken back, or the next would be refused
        pid = -1
        try:
            pid = os.fork()
            if pid == 0:
                kernel.unshare(namespaces & ~kernel.NEWPID)
                self._go_through(steps)
        finally:
            if pid == 0:
                os._exit(127)
            kernel.setns(back, kernel.NEWPID)
            for fd in (back, writer):
                os.close(fd)
            os.read(reader, 1)
            os.close(reader)
        return pid

    def _go_through(self, steps: Sequence[Step]) -> None:
        for number, (name, _, optional) in enumerate(steps):
            result = kernel.call(name, self._record(number)[1:6])  # prctl wants zeroes for what it has no use for
            ctypes.memmove(self._base + RECORD.size * number + 48, result.to_bytes(8, "little", signed=True), 8)
            if result < 0 and not optional:
                return

    def _refused(self, steps: Sequence[Step]) -> OSError | None:
        """None when all that had to succeed did, or an `execve` has no result, as it does not return."""
        results = RESULT.iter_unpack(ctypes.string_at(self._base, RECORD.size * len(steps)))
        found = None
        for (name, arguments, optional), (result,) in zip(steps, results, strict=True):
            if result == NOT_REACHED:
                return None if name == "execve" else OSError(4, "ended before its program began")
            if result < 0 and (not optional or name == "execve"):
                words = [name, *(os.fsdecode(a) for a in arguments if isinstance(a, bytes) and a.isascii())]
                found = OSError(-result, f"{' '.join(words)}: {os.strerror(-result)}")
                if not optional:
                    break
        return found
