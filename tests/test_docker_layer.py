"""Layers as tars: the same files are the same bytes, whoever packs them, when and where."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.docker import layer
from testbed.docker.layer import Entry

NAMES = st.text("abc", min_size=1, max_size=3)
ENTRIES = st.builds(
    Entry,
    path=st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    content=st.binary(max_size=20),
    executable=st.booleans(),
)


def packed(entries: list[Entry], date_s: int = 1) -> tuple[bytes, str]:
    file = io.BytesIO()
    total = layer.write(entries, file, date_s=date_s)
    return file.getvalue(), total


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def test_age_owner_and_place_of_the_files_do_not_show(tmp_path: Path) -> None:
    """Two copies, made apart, of other days and other rights for the group, give one tar."""
    tars = []
    for place, bits, day in (("here", 0o664, 1_000_000), ("there/deep", 0o600, 2_000_000)):
        source = tmp_path / place / "a.py"
        source.parent.mkdir(parents=True)
        source.write_text("x = 1\n")
        source.chmod(bits)
        os.utime(source, (day, day))
        tars.append(packed([Entry(path="opt/a.py", source=source), Entry(path="bin", link="usr/bin")]))

    assert tars[0] == tars[1]
    (found,) = [m for m in members(tars[0][0]).values() if m.isfile()]
    assert (found.mtime, found.mode, found.uid, found.uname) == (1, 0o644, 0, "")


@given(st.lists(ENTRIES, max_size=6), st.randoms())
def test_order_does_not_matter_and_nothing_stands_twice(entries: list[Entry], random: object) -> None:
    """`docker load` refuses a path that stands twice; a folder comes before what is in it."""
    once = list({entry.path: entry for entry in entries}.values())
    shuffled = list(once)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert packed(once) == packed(shuffled)
    assert layer.key(once) == layer.key(shuffled)
    with tarfile.open(fileobj=io.BytesIO(packed(once)[0])) as tar:
        paths = tar.getnames()
    assert len(paths) == len(set(paths))
    assert all(not path.rpartition("/")[0] or path.rpartition("/")[0] in paths[:at] for at, path in enumerate(paths))


@given(st.lists(ENTRIES, min_size=1, max_size=4, unique_by=lambda entry: entry.path), st.data())
def test_any_change_changes_the_key_and_the_bytes(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(entries) - 1))
    was = entries[at]
    other = data.draw(
        st.sampled_from(
            [
                Entry(path=was.path + "x", content=was.content, executable=was.executable),
                Entry(path=was.path, content=(was.content or b"") + b"x", executable=was.executable),
                Entry(path=was.path, content=was.content, executable=not was.executable),
                Entry(path=was.path, link="there"),
            ]
        )
    )
    changed = [*entries[:at], other, *entries[at + 1 :]]

    assert layer.key(changed) != layer.key(entries)
    assert packed(changed)[1] != packed(entries)[1]


def test_the_first_of_two_with_one_path_counts() -> None:
    data, _ = packed([Entry(path="a", content=b"first"), Entry(path="a", content=b"second!")])

    assert members(data)["a"].size == len(b"first")


def test_the_date_is_source_date_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not set, or nonsense, a fixed day: never the hour of the build."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234")
    assert layer.epoch_s() == 1234
    for text in ("", "today"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        assert layer.epoch_s() == layer.EPOCH_S


SOURCE = (
    b"import sys\nclass A:\n    b = {'x', 'y', 'z'} | {str(sys)}\n    def f(self, q=(1, 'x')): return [q for q in q]\n"
)


def test_byte_code_is_what_python_loads_without_its_source(tmp_path: Path) -> None:
    """Unchecked: Python takes it though the source beside it says otherwise, so no clock of a file matters."""
    (tmp_path / "m.py").write_text("raise SystemExit('compiled again')")
    code = layer.byte_code(b"print('taken')", "/opt/m.py", cache=None)
    assert code is not None
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / f"m.{sys.implementation.cache_tag}.pyc").write_bytes(code)

    done = subprocess.run([sys.executable, "-c", "import m"], cwd=tmp_path, capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("taken\n", 0)


def test_byte_code_is_the_same_in_another_process_with_other_hashes(tmp_path: Path) -> None:
    """Sets in a source have an order by hash, and hashes differ from process to process."""
    program = (
        "import sys; from testbed.docker import layer; "
        f"sys.stdout.buffer.write(layer.byte_code({SOURCE!r}, '/opt/m.py', cache=None))"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(made) == 1 and made != {b""}


def test_byte_code_does_not_depend_on_what_else_the_process_has_done() -> None:
    """A string of one character is written in two ways, by whether any code has interned it before."""
    program = (
        "import sys; from testbed.docker import layer; {}"
        "sys.stdout.buffer.write(layer.byte_code(b'a = \"~\"', '/opt/m.py', cache=None))"
    )
    made = {
        subprocess.run([sys.executable, "-c", program.format(first)], capture_output=True, check=True).stdout
        for first in ("", "x = sys.intern('~'); ")
    }

    assert len(made) == 1


def test_sources_bring_their_byte_code_and_what_does_not_compile_goes_without(tmp_path: Path) -> None:
    """Templates of other people's packages end in .py, too."""
    entries = [
        Entry(path="p/m.py", content=SOURCE),
        Entry(path="p/t.py", content=b"{{ name }} = 1"),
        Entry(path="p/x.txt", content=b""),
    ]
    for _ in ("made", "remembered"):
        found = [entry.path for entry in layer.compiled(entries, cache=tmp_path / "cache")]
        assert found == ["p/m.py", f"p/__pycache__/m.{sys.implementation.cache_tag}.pyc", "p/t.py", "p/x.txt"]

    fresh = [entry.bytes() for entry in layer.compiled(entries)]
    assert fresh == [entry.bytes() for entry in layer.compiled(entries, cache=tmp_path / "cache")]


def test_a_cache_that_cannot_be_written_is_none() -> None:
    assert layer.byte_code(SOURCE, "/opt/m.py", cache=Path("/proc/nowhere")) is not None
