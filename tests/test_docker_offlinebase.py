"""The base of Debian packages: what of them is kept and added, and where their archive is found."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from testbed.docker import layer, offlinebase
from testbed.docker.layer import Entry
from testbed.errors import MachineError


def unpacked(*members: tuple[str, bytes | str | int]) -> tarfile.TarFile:
    """A tar of files (bytes), links (text), folders (their mode)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, value in members:
            header = tarfile.TarInfo(name)
            header.mtime = 12_345
            if isinstance(value, bytes):
                header.size, header.mode = len(value), 0o755
            elif isinstance(value, str):
                header.type, header.linkname = tarfile.SYMTYPE, value
            else:
                header.type, header.mode = tarfile.DIRTYPE, value
            tar.addfile(header, io.BytesIO(value) if isinstance(value, bytes) else None)
    return tarfile.open(fileobj=io.BytesIO(file.getvalue()))


def test_documentation_lists_and_old_byte_code_are_left_out() -> None:
    """And devices, which the engine makes anew."""
    tar = unpacked(
        ("./", 0o755), ("./usr/bin/python3.11", b"elf"), ("./usr/share/doc/x/copyright", b""), ("./var/log/x", b""),
        ("./usr/lib/python3.11/__pycache__/a.cpython-311.pyc", b"old"), ("./dev/null", b""), ("./lib64/ld.so", "x"),
        ("./tmp", 0o1777), ("./usr/share/documents", b"kept"),
    )  # fmt: skip

    found = {entry.path: entry for entry in offlinebase.kept(tar)}

    assert sorted(found) == ["lib64/ld.so", "tmp", "usr/bin/python3.11", "usr/share/documents"]
    assert (found["usr/bin/python3.11"].bits, found["lib64/ld.so"].link, found["tmp"].bits) == (0o755, "x", 0o1777)


def test_a_hard_link_becomes_the_file_it_names() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        header = tarfile.TarInfo("usr/bin/perl")
        header.size = 4
        tar.addfile(header, io.BytesIO(b"perl"))
        link = tarfile.TarInfo("usr/bin/perl5")
        link.type, link.linkname = tarfile.LNKTYPE, "usr/bin/perl"
        tar.addfile(link)

    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        assert [entry.content for entry in offlinebase.kept(tar)] == [b"perl", b"perl"]


def test_what_scripts_of_packages_would_have_made_is_added() -> None:
    """Users, `sh` by busybox, python3; a program that is there already keeps its name."""
    found = [
        Entry(path="bin/busybox", content=b""),
        Entry(path="usr/bin/env", content=b""),
        Entry(path="usr/bin/python3.11"),
    ]

    added = {entry.path: entry for entry in offlinebase.added(found)}

    assert added["bin/sh"].link == "/bin/busybox"
    assert "bin/env" not in added and "usr/bin/env" not in added
    assert added["usr/bin/python3"].link == "python3.11"
    assert b"nobody:x:65534" in added["etc/passwd"].bytes()
    assert added["tmp"].bits == 0o1777


DEB822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
FILES = {
    Path("/a/debian.sources"): DEB822,
    Path("/a/old.list"): "deb [signed-by=/k] http://mirror.example/debian bookworm main\n",
    Path("/a/vendor.list"): "deb https://vendor.example/apt cloud-sdk-bookworm main\n",
    Path("/a/off.list"): "# deb http://mirror.example/debian bookworm main\n",
    Path("/a/security.sources"): DEB822.replace("bookworm bookworm-updates", "bookworm-security"),
}


def test_the_machines_own_mirror_is_used_for_its_own_release() -> None:
    """Lists of others and commented ones are not; on another release mmdebstrap knows where to ask."""
    found = offlinebase.machine_sources("bookworm", {"VERSION_CODENAME": "bookworm"}, FILES)

    assert found == ["/a/debian.sources", "/a/old.list", "/a/security.sources"]
    assert offlinebase.machine_sources("bookworm", {"VERSION_CODENAME": "noble"}, FILES) == []
    assert offlinebase.machine_sources("bookworm", {}, {}) == []


def test_without_its_tool_it_says_which_package_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert "apt-get install mmdebstrap" in offlinebase.lacking((3, 11))
    assert "no distribution known has Python 3.9" in offlinebase.lacking((3, 9))
    with pytest.raises(MachineError, match="the Debian base cannot be made: mmdebstrap is not installed"):
        offlinebase.entries(version=(3, 11))


def test_an_archive_that_cannot_be_reached_is_told_in_mmdebstraps_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for the program, for the real one's refusal would need a broken network."""
    tool = tmp_path / "mmdebstrap"
    tool.write_text("#!/bin/sh\necho I: starting >&2\necho E: apt-get update failed >&2\nexit 25\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    with pytest.raises(
        MachineError, match=r"could not fetch the base \(E: apt-get update failed\); apt-get update shows"
    ):
        offlinebase.entries(version=(3, 11))


def test_the_same_archive_gives_the_same_bytes() -> None:
    """Fetched twice for real."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap (apt-get install mmdebstrap)")
    keys = []
    for _ in range(2):
        try:
            keys.append(layer.key(offlinebase.entries()))
        except MachineError as error:
            pytest.skip(f"needs Debian's archive: {error}")

    assert keys[0] == keys[1]
