"""A child that goes through a list of system calls: both ways of it, sharing the parent's memory and by a fork."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.runtime import kernel
from testbed.runtime.child import NOT_REACHED, NUMBERS, RECORD, ROOM, Launcher, encode, step
from tests.labs import needs_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from testbed.runtime.child import Step

SHELL, ENVIRONMENT = b"/bin/sh", (b"PATH=/usr/bin:/bin",)


@pytest.fixture(params=["sharing", "fork"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    found = Launcher(sharing=request.param == "sharing")
    if request.param == "sharing" and not found.sharing:
        pytest.skip("no machine code for this processor, or no new executable memory here")
    return found


def shell(command: str) -> Step:
    return step("execve", SHELL, (b"sh", b"-c", command.encode()), ENVIRONMENT, optional=True)


def ended(launcher: Launcher, *steps: Step, namespaces: int = 0) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(launcher.start(steps, namespaces), 0)[1])


def children() -> set[str]:
    """Of this process, those that other tests left among them."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_the_child_becomes_its_program(launcher: Launcher) -> None:
    """With its arguments and its environment, a hundred times over."""
    command = shell('test "$PATH" = /usr/bin:/bin && exit 7')

    assert {ended(launcher, command) for _ in range(100)} == {7}


def test_a_refused_call_is_named_and_leaves_no_child(launcher: Launcher) -> None:
    """The program does not begin; the error says which call and why, and the child has been waited for."""
    before = children()
    with pytest.raises(FileNotFoundError, match="chdir /no/such: No such file or directory"):
        launcher.start([step("chdir", b"/no/such"), shell("exit 0")], 0)
    assert children() <= before


def test_an_optional_call_may_be_refused(launcher: Launcher) -> None:
    """The child goes on with the next."""
    assert ended(launcher, step("chdir", b"/no/such", optional=True), shell("exit 3")) == 3


def test_the_first_program_that_is_there_is_taken(launcher: Launcher) -> None:
    """As along PATH; when none is there, the error names the last."""
    ghosts = [step("execve", name, (b"x",), (), optional=True) for name in (b"/no/such/a", b"/no/such/b")]

    assert ended(launcher, *ghosts, shell("exit 4"), shell("exit 5")) == 4
    with pytest.raises(FileNotFoundError, match="execve /no/such/b: No such file"):
        launcher.start(ghosts, 0)


def test_an_end_before_the_program_is_told(launcher: Launcher) -> None:
    """A child that was ended half-way is no success, though no call was refused."""
    with pytest.raises(OSError, match="ended before its program began"):
        launcher.start([step("exit_group", 0), shell("exit 0")], 0)


def test_the_parent_keeps_its_folder_and_descriptors(launcher: Launcher) -> None:
    """Memory is all that is shared."""
    reader, writer = os.pipe()
    before = os.getcwd()
    steps = [step("chdir", b"/"), step("close", 0), step("dup3", writer, 1, 0), shell("pwd")]

    assert ended(launcher, *steps) == 0
    assert os.read(reader, 99) == b"/\n"
    assert os.getcwd() == before and os.fstat(0) and os.fstat(writer)
    for fd in (reader, writer):
        os.close(fd)


def test_what_a_call_wrote_can_be_read(launcher: Launcher) -> None:
    """Here the child's own number."""
    pid = launcher.start([step("readlinkat", kernel.AT_FDCWD, b"/proc/self", bytes(15), 15), shell("exit 0")], 0)
    os.waitpid(pid, 0)

    assert launcher.text(0, 2) == str(pid).encode()


def test_a_list_that_finds_no_room_is_refused(launcher: Launcher) -> None:
    """Before any child is there."""
    with pytest.raises(OSError, match=f"are more than {ROOM}"):
        launcher.start([shell("x" * ROOM)], 0)


@pytest.mark.parametrize("place", ["argument", "variable"])
def test_a_word_with_a_zero_byte_is_refused(launcher: Launcher, place: str) -> None:
    """The program would be given only what is before it."""
    words, settings = ((b"sh", b"a\0b"), ()) if place == "argument" else ((b"sh",), (b"A=a\0b",))
    with pytest.raises(ValueError, match="cannot hold a zero byte"):
        launcher.start([step("execve", SHELL, words, settings, optional=True)], 0)


@pytest.mark.root
@needs_root
def test_a_new_pid_namespace_is_the_childs_alone(launcher: Launcher) -> None:
    """It is PID 1 there, and so is the next; the parent's other children stay where they were."""
    for _ in range(2):
        assert ended(launcher, shell("test $$ = 1"), namespaces=kernel.NEWPID) == 0
    assert ended(launcher, shell("test $$ != 1")) == 0


@pytest.mark.root
@needs_root
def test_a_child_of_another_user_leaves_the_parent_as_it_was(launcher: Launcher) -> None:
    """Who changes the user in shared memory makes the kernel close it to lookers; it is opened again afterwards."""
    steps = [step("setgroups", 0, 0), step("setresgid", 4711, 4711, 4711), step("setresuid", 4711, 4711, 4711)]

    assert ended(launcher, *steps, shell("test $(id -u) = 4711")) == 0
    assert os.getuid() == 0
    assert ctypes.CDLL(None).prctl(3) == 1  # PR_GET_DUMPABLE


ARGUMENT = st.one_of(
    st.integers(-(1 << 62), 1 << 62),
    st.binary(max_size=40),
    st.lists(st.binary(max_size=20).filter(lambda word: 0 not in word), max_size=6).map(tuple),
)
STEP = st.tuples(st.sampled_from(sorted(NUMBERS)), st.lists(ARGUMENT, max_size=5).map(tuple), st.booleans())


@given(st.lists(STEP, max_size=8), st.integers(1, 1 << 30).map(lambda page: page * 4096))
def test_every_argument_lies_where_its_record_points(steps: list[Step], base: int) -> None:
    """Whole, ended by a zero and aligned; a refused call leads to the next when optional, else to the exit."""
    image = encode(steps, base)
    leave = base + RECORD.size * len(steps)

    def words(at: int) -> list[bytes]:
        found = []
        while (pointer := struct.unpack_from("=q", image, at - base)[0]) != 0:
            found.append(image[pointer - base : image.index(b"\0", pointer - base)])
            at += 8
        return found

    for number, (name, arguments, optional) in enumerate(steps):
        called, *five, result, following = RECORD.unpack_from(image, RECORD.size * number)
        assert (called, result) == (NUMBERS[name], NOT_REACHED)
        assert following == (base + RECORD.size * (number + 1) if optional else leave)
        for argument, given_as in zip(arguments, five, strict=False):
            if isinstance(argument, int):
                assert given_as == argument
            else:
                assert given_as % 8 == 0
            if isinstance(argument, bytes):
                assert image[given_as - base :].startswith(argument + b"\0")
            elif isinstance(argument, tuple):
                assert words(given_as) == list(argument)
    assert RECORD.unpack_from(image, leave - base)[:2] == (NUMBERS["exit_group"], 127)
