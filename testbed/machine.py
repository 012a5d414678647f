"""What machine this is, for `run.json` and the report: from /proc and /sys; what is unknown is an empty text."""

from __future__ import annotations

import os
import platform
import ssl
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("h2", "hpack", "hyperframe", "uvloop", "aiofastnet", "cryptography", "locust", "scapy", "pandas", "pyarrow")
ROOT = Path("/")


def describe(root: Path = ROOT, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Plain JSON. `root` is where `proc` and `sys` are found. Never raises for what a machine does not tell."""
    return {
        "kernel": f"{platform.system()} {_read(root / 'proc/sys/kernel/osrelease') or platform.release()}",
        "architecture": platform.machine(),
        "cpu": _cpu_model(_read(root / "proc/cpuinfo")) or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": _memory_mib(_read(root / "proc/meminfo")),
        "cgroup": cgroup_mode(_read(root / "proc/mounts")),
        "clock_source": _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_1min": float((_read(root / "proc/loadavg") or "0").split()[0]),
        "virtualisation": virtualisation(root),
        "rights": rights(_read(root / "proc/self/uid_map")),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "packages": package_versions(packages),
    }


def package_versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def cgroup_mode(mounts: str) -> str:
    """`v2` (unified), `hybrid` (v1 controllers beside a v2 tree), `v1`, or empty when nothing is mounted."""
    kinds = {fields[2] for line in mounts.splitlines() if len(fields := line.split()) > 2}
    return {(True, True): "hybrid", (True, False): "v1", (False, True): "v2"}.get(
        ("cgroup" in kinds, "cgroup2" in kinds), ""
    )


def rights(uid_map: str) -> str:
    """As whom this process acts: root, an ordinary user, or root of a user namespace with so many user ids."""
    if os.geteuid() != 0:
        return "ordinary user"
    rows = [[int(word) for word in line.split()] for line in uid_map.splitlines()]
    if not rows or rows == [[0, 0, 2**32 - 1]]:
        return "root"
    count = sum(row[2] for row in rows)
    return f"root of a user namespace with {count} user id{'s' if count > 1 else ''}"


def virtualisation(root: Path = ROOT) -> str:
    """A hint only: the firmware's name, `container` where one left its mark, `virtual` under a hypervisor."""
    product = _read(root / "sys/class/dmi/id/product_name")
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return f"container on {product}" if product else "container"
    hypervisor = " hypervisor" in _read(root / "proc/cpuinfo")
    return f"virtual ({product})" if hypervisor and product else "virtual" if hypervisor else product


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return ""


def _memory_mib(meminfo: str) -> int:
    total = next((line.split()[1] for line in meminfo.splitlines() if line.startswith("MemTotal:")), "0")
    return int(total) // 1024


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
