"""Builds and boots the guest: Debian's cloud kernel under qemu without KVM, an initramfs with busybox and this
Python.

The base archive (kernel modules, Python) is cached by kernel and Python version; the project's own files and the
program to run come as a second archive behind it. The program's word is a line `VERDICT <json>` on the console:
qemu's exit status says nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.newc import Archive

META_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("net/sched/sch_netem", "drivers/net/veth")
LEFT_OUT = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "ensurepip",
    "tkinter",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "unittest",
    "asyncio",
    "xml",
    "multiprocessing",
    "distutils",
    "lib-dynload",
    "sqlite3",
    "curses",
    "dbm",
    "wsgiref",
    "venv",
}
BOOT_TIMEOUT_S = 120
INIT = """#!/bin/sh
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs t /tmp
for module in /modules/*.ko; do insmod $module || echo "insmod $module failed"; done
cd /project; PYTHONPATH=/project /bin/python3 /project/main.py
poweroff -f
"""


class Unavailable(Exception):
    """The guest cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    kernel: Path
    base: Path


def prepare() -> Guest:
    """From the cache, else from Debian's archive. Raises Unavailable."""
    for program in ("qemu-system-x86_64", "busybox", "apt-get", "dpkg-deb", "ldd"):
        if not shutil.which(program):
            raise Unavailable(f"{program} is not installed (packages qemu-system-x86, busybox-static)")
    if platform.machine() != "x86_64":
        raise Unavailable(f"the guest is x86_64, this machine {platform.machine()}: its Python would not run there")
    package, version = _kernel_package()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshbed" / "qemu"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder = cache / f"{package}_{version}_python{platform.python_version()}_{recipe}"
    guest = Guest(kernel=folder / "vmlinuz", base=folder / "base.cpio")
    if not guest.base.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            _build(package, Path(made))
            folder.mkdir(exist_ok=True)
            for name in ("vmlinuz", "base.cpio"):  # the archive last: its presence says that all is there
                (Path(made) / name).replace(folder / name)
    return guest


def run(guest: Guest, root: Path, folders: tuple[str, ...], main: str) -> tuple[dict | None, str]:
    """Boots, runs `main` (Python text) with the project's `folders` importable; its verdict and the whole console."""
    archive = Archive()
    for folder in folders:
        for source in sorted((root / folder).rglob("*.py")):
            archive.copy(source, f"project/{source.relative_to(root)}")
    archive.file("project/main.py", main.encode())
    with tempfile.TemporaryDirectory() as made:
        both = Path(made) / "both.cpio"
        both.write_bytes(guest.base.read_bytes() + archive.finish())
        command = [
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1024",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-kernel",
            str(guest.kernel),
            "-initrd",
            str(both),
            "-append",
            "console=ttyS0 panic=-1 quiet",
        ]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as late:
            return None, (late.stdout or b"").decode(errors="replace") + f"\n(no end within {BOOT_TIMEOUT_S} s)"
    console = (done.stdout + done.stderr).decode(errors="replace").replace("\r", "")
    verdict = re.search(r"^VERDICT (.*)$", console, re.MULTILINE)
    return (json.loads(verdict[1]) if verdict else None), console


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=300).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise Unavailable(f"{' '.join(command)}: {words[-1] if words else error}") from error


def _kernel_package() -> tuple[str, str]:
    """The kernel that Debian's meta package stands for, and its version."""
    shown = _output("apt-cache", "show", "--no-all-versions", META_PACKAGE)
    depends = re.search(r"^Depends: (linux-image-\S+) \(= (\S+)\)", shown, re.MULTILINE)
    if depends is None:
        raise Unavailable(f"the package lists do not know {META_PACKAGE}; apt-get update, on Debian")
    return depends[1], depends[2]


def _build(package: str, folder: Path) -> None:
    _output("apt-get", "download", package, cwd=folder)
    (deb,) = folder.glob("*.deb")
    _output("dpkg-deb", "-x", str(deb), "tree", cwd=folder)
    (kernel,) = (folder / "tree/boot").glob("vmlinuz-*")
    (modules,) = (folder / "tree/lib/modules").glob("*/kernel")
    archive = Archive()
    for name in ("proc", "sys", "dev", "tmp"):
        archive.folder(name)
    archive.file("init", INIT.encode(), mode=0o755)
    for name in MODULES:
        archive.copy(modules / f"{name}.ko", f"modules/{Path(name).name}.ko")
    archive.copy(Path(shutil.which("busybox") or ""), "bin/busybox")
    for applet in ("sh", "mount", "insmod", "poweroff", "echo"):
        archive.link(f"bin/{applet}", "busybox")
    _add_python(archive)
    kernel.replace(folder / "vmlinuz")
    (folder / "base.cpio").write_bytes(archive.finish())


def _add_python(archive: Archive) -> None:
    """The interpreter that runs this, its standard library and the shared libraries they need, at their own paths."""
    interpreter = Path(sys.executable).resolve()
    archive.copy(interpreter, str(interpreter))
    archive.link("bin/python3", str(interpreter))
    binaries = [interpreter]
    library = Path(sysconfig.get_path("stdlib"))
    for source in sorted(library.rglob("*.py")):
        parts = source.relative_to(library).parts
        if LEFT_OUT.isdisjoint(parts) and not parts[0].startswith("config-"):
            archive.copy(source, str(source))
            compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
            if compiled.exists():  # a guest without KVM compiles slowly
                archive.copy(compiled, str(compiled))
    for source in sorted((library / "lib-dynload").glob("*.so")):
        archive.copy(source, str(source))
        binaries.append(source)
    listed = _output("ldd", *map(str, binaries))
    for name in sorted(set(re.findall(r"(/\S+)(?= \(0x)", listed))):
        archive.copy(Path(name), name)
