"""The harmless probe: attempts as data, made by whoever starts this, wherever it is started; what happened, told.

    python -m testbed.attack.insider PID MEMORY_FD MAPS_FD OWN_PID_NAMESPACE < job > rows      (see `enter`)

A job is `{"attempts": [{"name", "what", …}], "files": {name: text}}`, the answer `{name: {"got", "seen", "found"}}`. It
looks only at what the job names: folders of the lab, addresses of the lab, and processes of a PID namespace that is not
everybody's. It tells of keys whose they are, never what they are; it changes nothing that outlives it, but for what
`quit` asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed.attack.ear import LIMIT_S, connected, given, in_memory, inside, listeners, packet_socket
from testbed.runtime import kernel
from testbed.verify import probe

PRIVATE = b"PRIVATE KEY-----"
SO_MARK, IP_FREEBIND, IP_TRANSPARENT = 36, 15, 19
ROUND_S = 0.05
MNT_DETACH = 2


@dataclass(slots=True, kw_only=True)
class Row:
    """What came of one attempt."""

    got: bool
    seen: str = ""
    found: list[str] = field(default_factory=list)
    """Names of what was got: identities, canaries, sockets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where this runs."""

    pid: int = 0
    memory: int = -1
    maps: int = -1
    own_pid_namespace: bool = False
    files: Path = Path()


Job = Mapping[str, object]


def keys(here: Here, *, roots: list[str], uncover: list[str] = (), spare: str = "") -> Row:  # type: ignore[assignment]
    """Private keys under `roots` that can be opened; under `spare`, the component's own folder, they do not count.

    `uncover`: in a mount namespace of a child's own, first take away what was laid over these.
    """
    if not uncover:
        found = list(_keys_below(roots, [spare, str(here.files)]))
        return Row(got=bool(found), found=sorted(found), seen=f"{len(found)} readable")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = {"error": "", "found": []}
        try:
            kernel.unshare(kernel.NEWNS)
            kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
            for path in uncover:
                _umount(path)
            said["found"] = sorted(_keys_below(roots, [spare, str(here.files)]))  # type: ignore[assignment]
        except OSError as error:
            said["error"] = _told(error)
        with os.fdopen(writer, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = json.load(file)
    os.waitpid(child, 0)
    uncovered = said["error"] or "what covers them was taken away"
    return Row(got=bool(said["found"]), found=said["found"], seen=f"{len(said['found'])} readable; {uncovered}")  # type: ignore[arg-type]


def _umount(path: str) -> None:
    result = kernel._libc.umount2(path.encode(), MNT_DETACH)
    kernel._check(result, f"umount {path}")


def _keys_below(roots: Iterable[str], spare: Iterable[str]) -> Iterator[str]:
    files: set[str] = set()
    for root in roots:
        for folder, _, names in os.walk(root):
            if any(one and (folder == one or folder.startswith(one + "/")) for one in spare):
                continue
            for name in names:
                if (file := os.path.realpath(f"{folder}/{name}")) in files:
                    continue  # a link to one that was seen
                files.add(file)
                with contextlib.suppress(OSError):
                    if PRIVATE in Path(folder, name).read_bytes()[:4096]:
                        yield _whose(Path(folder))


def _whose(folder: Path) -> str:
    """By the certificate beside the key."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    except (OSError, ValueError, x509.ExtensionNotFound, IndexError):
        return folder.name


def processes(here: Here) -> Row:
    """Other processes that it sees; of each its environment and its memory."""
    if not here.own_pid_namespace:
        return Row(got=False, seen="not tried: this PID namespace is not the component's own")
    mine = {os.getpid(), here.pid}
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in mine]
    opened = []
    for pid in others:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb"):
            opened.append(str(pid))
    return Row(got=bool(opened), found=opened, seen=f"{len(others)} others seen, {len(opened)} opened")


def environment(here: Here) -> Row:
    """Words in its own environment that are secrets by their look."""
    with contextlib.suppress(OSError):
        held = Path(f"/proc/{here.pid}/environ").read_bytes()
        bad = [pair.split(b"=")[0].decode() for pair in held.split(b"\0") if PRIVATE in pair or b"eyJ" in pair]
        return Row(got=bool(bad), found=bad, seen=f"{held.count(bytes(1))} variables")
    return Row(got=False, seen="not readable")


def sockets(_here: Here, *, roots: list[str], spare: str = "") -> Row:
    """Unix sockets that take a connection: under the lab's folders, and abstract ones of this network namespace."""
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    open_ = {f"\0{name[1:]}" for name in names if name.startswith("@")}
    for root in roots:
        for folder, _, files in os.walk(root):
            if not (spare and folder.startswith(spare)):
                open_ |= {str(path) for name in files if (path := Path(folder, name)).is_socket()}
    taken = [name for name in sorted(open_) if _connects(name)]
    return Row(got=bool(taken), found=[name.replace("\0", "@") for name in taken], seen=f"{len(open_)} there")


def _connects(name: str) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with contextlib.suppress(OSError):
            connected(name, kind).close()
            return True
    return False


def agent(_here: Here, *, path: str) -> Row:
    """Asks the node agent for the node's workloads, as their ztunnel does: each comes with its network namespace."""
    named = []
    try:
        for name, fd in given(path):
            named.append(name)
            os.close(fd)
    except OSError as error:
        return Row(got=bool(named), found=named, seen=_told(error))
    return Row(got=bool(named), found=named, seen=f"{len(named)} network namespaces")


def read(here: Here, *, tokens: list[str], limit_s: float, agent: str = "", enough: int = 0) -> Row:
    """Which canaries it can read while others send them: on every wire that it may listen to, in its own memory."""
    wires = listeners(agent)
    wanted = {token.encode(): token for token in tokens}
    found: set[str] = set()
    ends_s = time.monotonic() + limit_s
    while time.monotonic() < ends_s and not (enough and len(found) >= enough):
        until_s = time.monotonic() + ROUND_S
        while (left_s := until_s - time.monotonic()) > 0 and wires:
            for wire in select.select(wires, [], [], left_s)[0]:
                with contextlib.suppress(BlockingIOError):
                    found |= inside(wire.recv(65536, socket.MSG_DONTWAIT), wanted)
        found |= in_memory(here.memory, here.maps, wanted)
    for wire in wires:
        wire.close()
    how = f"{len(wires)} wires and its memory" if wires else "its memory; no wire may be listened to"
    return Row(got=bool(found), found=sorted(found), seen=how)


def ports(_here: Here, *, targets: list[list], path: str = "/", needle: str = "") -> Row:
    """Ports that give an HTTP answer; with `needle`, only those whose answer has it."""
    found = []
    for address, port in targets:
        with contextlib.suppress(OSError):
            with socket.create_connection((address, port), timeout=LIMIT_S) as sock:
                sock.settimeout(LIMIT_S)
                sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                data = b""
                while part := sock.recv(65536):
                    data += part
            if data.startswith(b"HTTP/1.1 200") and needle.encode() in data:
                found.append(f"{address}:{port}")
    return Row(got=bool(found), found=found, seen=f"{len(found)} of {len(targets)} answer")


def sign(_here: Here, *, identity: str, targets: list[list]) -> Row:
    """Sends a signing request for `identity` to whatever may be a CA; a certificate that comes back is got."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
    pem = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    heard = []
    for address, port in targets:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=LIMIT_S) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendall(pem)
            if b"BEGIN CERTIFICATE-----" in sock.recv(65536):
                heard.append(f"{address}:{port}")
    return Row(got=bool(heard), found=heard, seen=f"{len(heard)} of {len(targets)} signed")


def become(_here: Here, *, uid: int = -1, gid: int = -1) -> Row:
    """In a child: another user or group, such as the proxy's, whose traffic is let through."""
    child = os.fork()
    if child == 0:
        try:
            if gid >= 0:
                os.setgid(gid)
            if uid >= 0:
                os.setuid(uid)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Row(got=code == 0, seen=os.strerror(code) if code else "became it")


def option(_here: Here, *, level: int, option: int, value: int) -> Row:
    with socket.socket() as sock:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            return Row(got=False, seen=_told(error))
    return Row(got=True, seen="allowed")


def raw(_here: Here, *, family: str) -> Row:
    try:
        made = packet_socket() if family == "packet" else socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)
        made.close()
    except OSError as error:
        return Row(got=False, seen=_told(error))
    return Row(got=True, seen="opened")


def udp(_here: Here, *, address: str, port: int, say: str) -> Row:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT_S)
        try:
            sock.connect((address, port))
            sock.send(say.encode())
            back = sock.recv(2048)
        except OSError as error:
            return Row(got=False, seen=_told(error))
    return Row(got=back == say.encode(), seen=f"{len(back)} bytes came back")


def icmp(_here: Here, *, address: str) -> Row:
    """An echo request by a ping socket, which needs no right but membership in a range of groups."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendto(struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"meshbed!", (address, 0))
            back = sock.recv(2048)
    except OSError as error:
        return Row(got=False, seen=_told(error))
    return Row(got=back[:1] == b"\0", seen=f"{len(back)} bytes came back")


def ipv6(_here: Here, *, address: str, port: int) -> Row:
    """To the destination's IPv4 address as an IPv6 one, and to a multicast neighbour: any answer at all."""
    seen = []
    for target in (f"::{address}", "ff02::1"):
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
                sock.settimeout(LIMIT_S)
                sock.connect((target, port))
                return Row(got=True, seen=f"connected to {target}")
        except OSError as error:
            seen.append(f"{target}: {_told(error)}")
    return Row(got=False, seen="; ".join(seen))


def spoof(_here: Here, *, source: str, address: str, port: int, transparent: bool = False) -> Row:
    """A request from an address that is not its own."""
    sock = socket.socket()
    try:
        sock.settimeout(LIMIT_S)
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT if transparent else IP_FREEBIND, 1)
        sock.bind((source, 0))
        sock.connect((address, port))
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head = sock.recv(65536)
    except OSError as error:
        return Row(got=False, seen=_told(error))
    finally:
        sock.close()
    believed = f"x-peer-address: {source}".encode() in head.lower()
    return Row(got=believed, seen=f"answered, seen as {source}" if believed else "closed without an answer")


def call(here: Here, *, attempt: dict) -> Row:
    """A call as `verify.probe` makes it; only the application's own answer counts."""
    for name in ("cert", "key", "ca"):
        if str(attempt.get(name) or "").startswith("@"):
            attempt[name] = str(here.files / attempt[name][1:])
    (made,) = probe.parse_attempts(json.dumps([{"timeout_s": LIMIT_S, **attempt}]))
    try:
        outcome = asdict(probe.make(made)[0])
    except OSError as error:
        return Row(got=False, seen=_told(error))
    told = {k: v for k, v in outcome.items() if v not in (None, "", False, 0) and k != "took_ms"}
    got = outcome["answered_by"] is not None and outcome["status"] == 200
    return Row(got=got, seen=json.dumps(told), found=[outcome["answered_by"]] if got else [])


OPERATIONS: dict[str, Callable[..., Row]] = {
    function.__name__: function
    for function in (
        keys, processes, environment, sockets, agent, read, ports, sign, become, option, raw, udp, icmp, ipv6, spoof,
        call,
    )
}  # fmt: skip


def _told(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else os.strerror(error.errno) if error.errno else str(error)


def make(here: Here, attempts: Iterable[Job]) -> dict[str, dict]:
    rows = {}
    for attempt in attempts:
        words = dict(attempt)
        name, what = str(words.pop("name")), str(words.pop("what"))
        try:
            rows[name] = asdict(OPERATIONS[what](here, **words))
        except Exception as error:  # of one attempt: the others are made all the same, and this one is no evidence
            rows[name] = {"got": False, "seen": f"not tried: {error!r}", "found": []}
    return rows


def main(argv: list[str] | None = None) -> int:
    pid, memory, maps, own = map(int, sys.argv[1:] if argv is None else argv)
    job = json.load(sys.stdin)
    with tempfile.TemporaryDirectory(prefix="insider-") as folder:
        for name, text in job.get("files", {}).items():
            Path(folder, name).write_text(text)
        here = Here(pid=pid, memory=memory, maps=maps, own_pid_namespace=bool(own), files=Path(folder))
        json.dump(make(here, job["attempts"]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
