"""The process that keeps a lab: PID 1 of its PID namespace, holding every network namespace by descriptor.

Whatever ends it, the kernel then ends all of the lab. It ends by itself when its owner does (unless detached), and then
removes the
lab's cgroups and state folder; after a SIGKILL of the keeper itself these two remain for `ownership.gc`. Network
namespace `i` is
descriptor `BASE + i`, known before it exists, so the orchestrator can encode every message while this process is still
starting.

Starts with `python -I -S`; imports nothing that costs more than a few ms. Owner and attached clients speak `wireframe`.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import resource
import select
import struct
import sys

from testbed.acks import exchange
from testbed.runtime import kernel, launch
from testbed.runtime.child import Launcher
from testbed.runtime.wireframe import Reader, pack

BASE = 100
"""Descriptor of the first network namespace; below it is room for everything else a keeper opens at start."""
MARK = "meshbed-keeper"
"""On every keeper's command line: the mark by which leftovers are known."""


class Client:
    """The owner or an attached process; what cannot be sent at once waits in `pending`."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.reader = Reader()
        self.pending = b""
        self.watched = False
        """Whether the loop wakes when more can be sent."""
        sock.setblocking(False)

    def send(self, message: dict) -> None:
        """At the next turn of the loop: waking the other side for each of a hundred answers takes a tenth of all."""
        self.pending += pack(message)

    def flush(self) -> None:
        try:
            while self.pending:
                self.pending = self.pending[self.sock.send(self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self.pending = b""  # the reader will see its end

    def receive(self) -> tuple[bytes, list[int]]:
        data, ancillary, _, _ = self.sock.recvmsg(1 << 18, 4096, _socket.MSG_CMSG_CLOEXEC)
        raw = b"".join(part for level, kind, part in ancillary if kind == _socket.SCM_RIGHTS)
        return data, list(struct.unpack(f"{len(raw) // 4}i", raw))


class Keeper:
    def __init__(self, owner: _socket.socket, owner_pidfd: int, settings: dict) -> None:
        self.settings = settings
        self.launcher = Launcher()
        self.poll = select.epoll()
        wake, self.wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(self.wake)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        self.woken = wake
        self.poll.register(wake, select.EPOLLIN)
        self.clients: dict[int, Client] = {}
        self.fds: dict[int, list[int]] = {}
        self.running: dict[int, str] = {}
        """pid in this namespace -> name."""
        self.table: dict[str, list[int | None]] = {}
        """name -> [host pid, exit code or None]."""
        self.shielded: dict[int, int] = {}
        """pid -> the signal for which SIGKILL was sent in its stead."""
        self.ending = False
        self.owner_fd = owner.fileno()
        self.owner_pidfd = owner_pidfd
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        os.chdir(settings["folder"])
        self.listener.bind("control")  # relative: a path of more than 107 bytes would not fit
        self.listener.listen(16)
        self.poll.register(self.listener.fileno(), select.EPOLLIN)
        if not settings["detached"]:
            self.poll.register(owner_pidfd, select.EPOLLIN)
        self.join(owner)

    def admit(self, sock: _socket.socket) -> None:
        """Who connects must be the keeper's own user, whatever the modes of the folders on the way let pass."""
        credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid():
            self.join(sock)
        else:
            sock.close()

    def join(self, sock: _socket.socket) -> None:
        client = Client(sock)
        self.clients[sock.fileno()] = client
        self.fds[sock.fileno()] = []
        self.poll.register(sock.fileno(), select.EPOLLIN)
        client.send({"op": "hello", "pid": int(os.readlink("/proc/self")), "processes": self.table})

    def run(self) -> None:
        while not self.ending:
            self.say()
            for fd, events in self.poll.poll(2):
                self.handle(fd, events)
            self.reap()
        self.finish()

    def handle(self, fd: int, events: int) -> None:
        if fd == self.listener.fileno():
            number, _ = self.listener._accept()
            self.admit(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, number))
        elif fd == self.owner_pidfd:
            self.ending = True
        elif fd in self.clients:
            client = self.clients[fd]
            if events & ~select.EPOLLOUT:
                self.hear(fd, client)
        else:
            os.read(self.woken, 4096)  # a program has ended: reap() comes after

    def say(self) -> None:
        for fd, client in self.clients.items():
            client.flush()
            if client.watched != bool(client.pending):
                client.watched = bool(client.pending)
                self.poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if client.watched else 0))

    def hear(self, fd: int, client: Client) -> None:
        try:
            data, fds = client.receive()
        except OSError:
            data, fds = b"", []
        self.fds[fd] += fds
        if not data:
            self.poll.unregister(fd)
            del self.clients[fd]
            client.sock.close()
            self.ending = self.ending or (fd == self.owner_fd and not self.settings["detached"])
            return
        for message in client.reader.feed(data):
            try:
                getattr(self, "do_" + message["op"])(client, message)
            except (OSError, ValueError, KeyError) as error:
                client.send(
                    {"op": "failed", "name": message.get("name", ""), "why": f"{type(error).__name__}: {error}"}
                )

    def do_build(self, client: Client, message: dict) -> None:
        """Makes the namespaces, each with its sysctls, then sends their netlink messages. In a lab that is up, more
        of them, from number `first` on.

        One after the other: two threads took as long (58 to 65 ms for 100 either way), for the kernel makes one at a
        time.
        """
        born: dict[str, bytes] = {}  # what a new namespace begins with is the same for all, and need not be written
        first = message.get("first", 0)
        for i, sysctls in enumerate(message["namespaces"], first):
            kernel.unshare(kernel.NEWNET)
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            os.dup2(fd, BASE + i, inheritable=False)
            os.close(fd)
            for path, _ in sysctls:
                if path not in born:
                    born[path] = read(path)
            for path, value in sysctls:
                if born[path] not in (b"", value):
                    out = os.open(path, os.O_WRONLY)
                    os.write(out, value)
                    os.close(out)
        self.do_wire(client, message)

    def do_wire(self, client: Client, message: dict) -> None:
        refused = []
        for number, (namespace, parts) in enumerate(message["batches"]):
            kernel.setns(BASE + namespace, kernel.NEWNET)
            sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 0)
            refused += [(number, position, errno) for position, errno in exchange(sock, parts)]
            sock.close()
        client.send({"op": "wired", "refused": refused})

    def do_let_go(self, client: Client, message: dict) -> None:
        """Of these namespaces; each is gone with the last process in it, which this one must not be."""
        kernel.setns(BASE, kernel.NEWNET)
        for i in message["namespaces"]:
            os.close(BASE + i)
        client.send({"op": "let go"})

    def do_spawn(self, client: Client, message: dict) -> None:
        owner = self.fds[client.sock.fileno()]
        received, owner[:] = owner[: len(message["fds"])], owner[len(message["fds"]) :]
        try:
            if message["name"] in self.table and self.table[message["name"]][1] is None:
                raise ValueError(f"{message['name']!r} runs already")
            pid, host_pid = launch.start(self.launcher, message, BASE + message["namespace"], received)
        finally:
            for fd in received:
                os.close(fd)
        self.running[pid] = message["name"]
        self.table[message["name"]] = [host_pid, None]
        client.send({"op": "started", "name": message["name"], "pid": host_pid})

    def do_signal(self, client: Client, message: dict) -> None:
        """To the process itself.

        As PID 1 of its namespace it would ignore what it does not handle; then it is killed.
        """
        pid = next((p for p, name in self.running.items() if name == message["name"]), None)
        if pid is not None:
            number = message["number"]
            if number not in (9, 17, 18, 19, 20, 23, 28) and not handles(self.table[message["name"]][0], number):
                self.shielded[pid] = number
                number = 9
            os.kill(pid, number)
        client.send({"op": "signalled", "name": message["name"]})

    def do_detach(self, client: Client, message: dict) -> None:
        """From now on the lab outlives its owner."""
        if not self.settings["detached"]:
            self.settings["detached"] = True
            self.poll.unregister(self.owner_pidfd)
        client.send({"op": "detached"})

    def do_down(self, client: Client, message: dict) -> None:
        self.ending = True

    def reap(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid not in self.running:
                continue  # an orphan of the lab that came to us as PID 1
            name = self.running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            asked = self.shielded.pop(pid, 9)
            self.table[name][1] = -asked if code == -9 else code
            for client in self.clients.values():
                client.send({"op": "ended", "name": name, "code": self.table[name][1]})

    def finish(self) -> None:
        try:
            os.kill(-1, 9)
            while True:
                os.waitpid(-1, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.chdir("/")
        for folder in self.settings["cgroups"]:
            remove_cgroup(folder)
        remove(self.settings["folder"])


def read(path: str) -> bytes:
    """Empty where there is no such file: a kernel without IPv6 has nothing to switch off."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 64).strip()
    finally:
        os.close(fd)


def handles(host_pid: int | None, number: int) -> bool:
    """Whether the process has a handler for the signal, or ignores it on purpose."""
    try:
        with open(f"/proc/{host_pid}/status") as file:
            masks = dict(line.split(":", 1) for line in file)
    except OSError:
        return True
    return bool((int(masks["SigCgt"], 16) | int(masks["SigIgn"], 16)) >> (number - 1) & 1)


def remove(folder: str) -> None:
    """A tree of ours."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            try:
                os.unlink(f"{path}/{name}")
            except OSError:
                pass
        for name in folders:
            try:
                os.rmdir(f"{path}/{name}")
            except OSError:
                try:
                    os.unlink(f"{path}/{name}")  # a link to a folder
                except OSError:
                    pass
    try:
        os.rmdir(folder)
    except OSError:
        pass


def remove_cgroup(folder: str) -> None:
    """Its files go with it. The folder of all labs goes with the last of them: rmdir refuses while it has another."""
    for path, _, _ in os.walk(folder, topdown=False):
        for gone in [path] if path != folder else [path, os.path.dirname(path)]:
            try:
                os.rmdir(gone)
            except OSError:
                break


def main(kind: type[Keeper] = Keeper) -> None:
    """Arguments: the owner's socket and pidfd as descriptors, the mark, the folder.

    Settings come as the first frame.
    """
    given, given_pidfd = int(sys.argv[1]), int(sys.argv[2])
    kernel.unshare(kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWPID)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    pid = os.fork()
    if pid:
        # Only a process that stays can be waited for by the orchestrator; it holds nothing, so that ends are
        # seen as ends.
        os.closerange(3, max(given, given_pidfd) + 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    os.setsid()
    os.umask(0o022)  # folders on the way to what a program may see are its to pass, whatever the caller's own mask
    owner = _socket.socket(fileno=fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 3))
    pidfd = fcntl.fcntl(given_pidfd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(given)
    os.close(given_pidfd)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reader = Reader()
    frames: list[dict] = []
    while not frames:
        data = owner.recv(1 << 16)
        if not data:
            return  # the owner is gone before the lab began
        frames = reader.feed(data)
    kind(owner, pidfd, frames[0]).run()
