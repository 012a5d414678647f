"""A lab in network namespaces: what is wired, what a program of it can see, and that it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import netlink
from testbed.errors import MachineError, PeerError, UsageError
from testbed.netlink import End
from testbed.observe import procstat
from testbed.runtime import cgroups, netns, ownership
from testbed.runtime.enter import in_netns
from testbed.runtime.netns import PROJECT, NetnsLab, NetnsRuntime
from testbed.runtime.process import LabProcess
from testbed.seams import Spawn
from tests.labs import line, needs_root

pytestmark = [pytest.mark.root, needs_root]
NAME = f"t{os.getpid()}"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state root for each test, so that no other lab of the machine is met."""
    monkeypatch.setenv("MESHBED_STATE", str(tmp_path / "state"))


@pytest.fixture
def lab() -> Iterator[NetnsLab]:
    with NetnsRuntime().up(line(2, 2), name=NAME) as up:
        yield up


def listen(port: int) -> socket.socket:
    return socket.create_server(("0.0.0.0", port))


def python(lab: NetnsLab, name: str, code: str, uid: int, **more: object) -> LabProcess:
    argv = [sys.executable, "-I", "-S", "-u", "-c", code]
    spawn = Spawn(name=name, sandbox="w1-0", argv=argv, uid=uid, folder=lab.folder / "p" / name, **more)  # type: ignore[arg-type]
    return lab.spawn([spawn])[0]


def said(process: LabProcess) -> list[str]:
    process.wait(10.0)
    assert process.log is not None
    return process.log.read_text().splitlines()


def test_the_makers_mask_bars_no_program_from_its_own_folder() -> None:
    """Root's mask is 077 on hardened machines; folders made on the way to a program's own were then root's alone."""
    mask = os.umask(0o077)
    try:
        with NetnsRuntime().up(line(2, 2), name=NAME) as up:
            code = "import os; open('here', 'w'); print(os.getcwd())"
            assert said(python(up, "p", code, 2000)) == [str(up.folder / "p" / "p")]
    finally:
        os.umask(mask)


def test_workloads_of_a_node_reach_each_other_through_it(lab: NetnsLab) -> None:
    """Routed, with the client's own address seen by the server."""
    server = lab.in_netns("w1-1", lambda: listen(80))
    client = lab.in_netns("w1-0", lambda: socket.create_connection(("10.0.1.3", 80), 3))
    _, peer = server.accept()

    assert peer[0] == "10.0.1.2"
    client.close()
    server.close()


def test_there_is_no_way_between_nodes_before_links_and_one_after(lab: NetnsLab) -> None:
    """Routes come with the links; a topology without a link's device says what to do first."""
    topology = line(2, 2)
    with pytest.raises(UsageError, match="no device to-n2; join the links before routing"):
        lab.route(topology)
    with pytest.raises(OSError, match=r"unreachable|timed out"):
        lab.in_netns("w1-0", lambda: socket.create_connection(("10.0.2.2", 80), 0.3))

    a, b = (os.open(lab.sandboxes[n].netns, os.O_RDONLY) for n in ("n1", "n2"))

    def join() -> None:
        with netlink.open_socket() as sock:
            pair = netlink.veth(
                End(name="to-n2", index=500, namespace_fd=a), End(name="to-n1", index=501, namespace_fd=b)
            )
            netlink.transact(sock, [pair], where="link")

    def finish(index: int, address: str) -> None:
        with netlink.open_socket() as sock:
            netlink.transact(sock, [netlink.address(index, address, 31), netlink.link_up(index)], where="end")

    in_netns(a, join)
    in_netns(a, lambda: finish(500, "172.16.0.0"))
    in_netns(b, lambda: finish(501, "172.16.0.1"))
    os.close(a)
    os.close(b)
    lab.route(topology)
    server = lab.in_netns("w2-0", lambda: listen(80))
    lab.in_netns("w1-0", lambda: socket.create_connection(("10.0.2.2", 80), 3)).close()

    assert server.accept()[1][0] == "10.0.1.2"
    server.close()


def test_a_program_sees_only_itself_and_its_own_folder(lab: NetnsLab) -> None:
    """Its own PID 1, its own files, its own user; another's folder is not even there."""
    other = lab.folder / "p" / "other"
    other.mkdir(parents=True)
    (other / "key.pem").write_text("secret")
    mine = lab.folder / "p" / "app"
    mine.mkdir()
    (mine / "config").write_text("mine")
    (mine / "config").chmod(0o600)
    code = f"""
import os
print(os.getpid(), os.getuid(), os.getgid(), os.getgroups())
print([p for p in os.listdir('/proc') if p.isdigit()])
print(os.listdir({str(lab.folder)!r}), os.listdir({str(lab.folder / "p")!r}))
print(open('config').read())
"""

    assert said(python(lab, "app", code, 3001)) == ["1 3001 3001 []", "['1']", "['p'] ['app']", "mine"]


def test_a_private_folder_is_closed_to_everybody_else(lab: NetnsLab) -> None:
    """Made open to all, with a file and a folder in it, it becomes 0700 and its program's own, as all in it does; the
    second lock on keys when a program that keeps sys_admin has taken away what hides.
    """
    folder = lab.folder / "p" / "closed"
    (folder / "sub").mkdir(parents=True)
    folder.chmod(0o777)
    (folder / "sub" / "key.pem").write_text("secret")
    python(lab, "closed", "pass", 3030).wait(10)

    assert folder.stat().st_mode & 0o7777 == 0o700
    assert {path.stat().st_uid for path in (folder, folder / "sub", folder / "sub" / "key.pem")} == {3030}


def test_a_private_folder_given_by_link_leads_nowhere_else(lab: NetnsLab, tmp_path: Path) -> None:
    """A link inside changes hands itself; what it points at, outside the lab, does not."""
    (outside := tmp_path / "outside").write_text("host's")
    folder = lab.folder / "p" / "linked"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "folder").symlink_to(tmp_path)
    python(lab, "linked", "pass", 3031).wait(10)

    assert (outside.stat().st_uid, tmp_path.stat().st_uid) == (0, 0)
    assert (folder / "link").lstat().st_uid == 3031


def test_each_program_has_a_tmp_of_its_own(lab: NetnsLab) -> None:
    """What one writes to /tmp neither the other nor the host sees, though its own folder below /tmp stays."""
    left = f"left-{NAME}-{time.monotonic_ns()}"
    code = f"import os; print(os.path.exists('/tmp/{left}')); open('/tmp/{left}', 'w').close(); print(os.listdir('.'))"

    assert said(python(lab, "one", code, 3020)) == ["False", "[]"]
    assert said(python(lab, "two", code, 3021)) == ["False", "[]"]
    assert not os.path.exists(f"/tmp/{left}")


def test_the_last_lab_takes_the_top_cgroup_along_and_no_earlier_one_does() -> None:
    """A lab beside it keeps it; when it is empty it goes, unless another's labs are in it."""
    tops = [tree / cgroups.TOP for tree in cgroups.trees().all]
    with NetnsRuntime().up(line(1, 1), name=f"{NAME}-a") as a:
        for lab in (a, b := NetnsRuntime().up(line(1, 1), name=f"{NAME}-b")):
            lab.spawn([Spawn(name="s", sandbox="n1", argv=["sleep", "60"], uid=3022, folder=lab.folder / "s")])
        b.down()
        assert all(top.is_dir() for top in tops)

    assert [top for top in tops if top.is_dir() and not any(entry.is_dir() for entry in top.iterdir())] == []


def test_capabilities_are_exactly_those_named_and_nothing_can_be_gained(lab: NetnsLab) -> None:
    """Effective and ambient sets hold net_raw alone, or nothing; no_new_privs is set."""
    code = (
        "print(*(l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapAmb', 'NoNewPrivs'))))"
    )
    raw = f"{1 << 13:016x}"

    assert said(python(lab, "raw", code, 3002, capabilities=("net_raw",))) == [f"{raw} {raw} 1"]
    assert said(python(lab, "bare", code, 3003)) == [f"{0:016x} {0:016x} 1"]
    with pytest.raises(PeerError, match="no capability is called 'net_magic'"):
        python(lab, "magic", code, 3004, capabilities=("net_magic",))


def test_descriptors_arrive_at_their_own_numbers(lab: NetnsLab) -> None:
    """Two pipes whose numbers are swapped against the order in which they were opened."""
    (r1, w1), (r2, w2) = os.pipe(), os.pipe()
    os.write(w1, b"one")
    os.write(w2, b"two")
    code = f"import os; print(os.read({r1}, 9).decode(), os.read({r2}, 9).decode())"

    assert said(python(lab, "fds", code, 3005, fds=(r2, r1))) == ["one two"]
    for fd in (r1, w1, r2, w2):
        os.close(fd)


def test_our_environment_does_not_leak_into_the_lab(lab: NetnsLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a short list is passed on, and what the spawn says."""
    monkeypatch.setenv("A_SECRET_TOKEN", "x")
    code = "import os; print('A_SECRET_TOKEN' in os.environ, os.environ['MINE'])"

    assert said(python(lab, "env", code, 3006, env={"MINE": "yes"})) == ["False yes"]


def test_exit_codes_and_signals_are_told(lab: NetnsLab) -> None:
    """An exit code, a handled SIGTERM, and one that PID 1 would ignore but that ends the program all the same."""
    handler = "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(4)); print('up'); time.sleep(60)"
    handled, plain = python(lab, "handled", handler, 3007), python(lab, "plain", "import time; time.sleep(60)", 3008)
    until(lambda: handled.log is not None and "up" in handled.log.read_text())
    handled.signal(signal.SIGTERM)
    plain.signal(signal.SIGTERM)

    assert python(lab, "seven", "raise SystemExit(7)", 3009).wait(10) == 7
    assert (handled.wait(10), plain.wait(10)) == (4, -signal.SIGTERM)


def test_a_program_that_cannot_start_is_named(lab: NetnsLab) -> None:
    """The error says which and why, and the others run."""
    with pytest.raises(PeerError, match=r"could not start 1 of 1: ghost: .*No such file"):
        lab.spawn([Spawn(name="ghost", sandbox="n1", argv=["/no/such"], uid=3010, folder=lab.folder / "g")])
    with pytest.raises(UsageError, match="sandbox 'nowhere', known are: n1"):
        lab.spawn([Spawn(name="x", sandbox="nowhere", argv=["true"], uid=3010, folder=lab.folder / "g")])


def test_programs_start_where_there_is_no_new_executable_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an ordinary fork of the keeper: as alone, as another user, and with what went wrong told the same."""
    bare = "from testbed.runtime import kernel; kernel.function = lambda code: None; from testbed"
    monkeypatch.setattr(netns, "START", netns.START.replace("from testbed", bare, 1))
    code = "import os; print(os.getpid(), os.getuid(), [p for p in os.listdir('/proc') if p.isdigit()])"
    with NetnsRuntime().up(line(1, 1), name=NAME) as lab:
        assert said(python(lab, "app", code, 3040)) == ["1 3040 ['1']"]
        with pytest.raises(PeerError, match=r"ghost: .*No such file"):
            lab.spawn([Spawn(name="ghost", sandbox="n1", argv=["/no/such"], uid=3041, folder=lab.folder / "g")])


def test_cpu_of_a_component_counts_its_ended_children(lab: NetnsLab) -> None:
    """300 ms burnt in a child process are found in the cgroup after that child is gone."""
    burn = (
        "import os,time\nif not os.fork():\n while time.process_time() < 0.3: pass\n os._exit(0)\n"
        "os.wait(); print('done'); time.sleep(60)"
    )
    process = python(lab, "burner", burn, 3011)
    until(lambda: process.log is not None and "done" in process.log.read_text())
    reading = procstat.read(process, now=0.0)

    assert reading.source in ("cpuacct", "cpu.stat")
    assert 0.29e9 < reading.cpu_ns < 1.5e9
    assert reading.pss_bytes is not None and reading.pss_bytes > 500_000


def test_down_leaves_nothing_and_may_be_called_twice(tmp_path: Path) -> None:
    """Processes, cgroups, folder and devices of the lab are gone; the second call does nothing."""
    lab = NetnsRuntime().up(line(1, 1), name=NAME)
    process = lab.spawn([Spawn(name="s", sandbox="w1-0", argv=["sleep", "60"], uid=3012, folder=lab.folder / "s")])[0]
    cgroup = procstat.trees().all[0] / str(process.cgroup)
    assert cgroup.is_dir()
    lab.down()
    lab.down()

    assert not os.path.exists(f"/proc/{process.pid}")
    assert not cgroup.parent.exists() and not lab.folder.exists()
    assert process.poll() == -9


def test_two_labs_of_one_topology_live_side_by_side() -> None:
    """Same addresses, no contact; a name taken is refused with the mend."""
    with NetnsRuntime().up(line(1, 1), name=f"{NAME}-a") as a, NetnsRuntime().up(line(1, 1), name=f"{NAME}-b") as b:
        server = a.in_netns("w1-0", lambda: listen(80))
        with pytest.raises(OSError, match="refused"):
            b.in_netns("n1", lambda: socket.create_connection(("10.0.1.2", 80), 1))
        with pytest.raises(UsageError, match="up already"):
            NetnsRuntime().up(line(1, 1), name=f"{NAME}-a")
        server.close()


AT_ONCE = """
import os, sys
from tests.labs import line; from testbed.errors import UsageError; from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Spawn
print('ready', flush=True); sys.stdin.readline()
try:
    lab = NetnsRuntime().up(line(1, 4), name=sys.argv[1])
except UsageError as error:
    print('refused:', error, flush=True)
else:
    spawns = [Spawn(name=f's{i}', sandbox=f'w1-{i}', argv=['sleep', '60'], uid=5000 + i, folder=lab.folder / f's{i}')
              for i in range(4)]
    print('up', *(process.pid for process in lab.spawn(spawns)), flush=True); sys.stdin.readline(); lab.down()
"""


def at_once(names: list[str]) -> list[tuple[subprocess.Popen[str], list[str]]]:
    """A process for each name, all told to go at the same instant; each with what it said of its lab."""
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, name], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    for process in begun:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in begun:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [(process, process.stdout.readline().split()) for process in begun if process.stdout is not None]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.communicate("down\n", timeout=30)
        assert process.returncode == 0


def test_labs_of_several_processes_come_up_at_the_same_instant() -> None:
    """Each is whole, and nothing of any is left after all have gone down at the same instant, too."""
    for _ in range(3):
        rows = at_once([f"{NAME}-{i}" for i in range(4)])

        assert [said[0] for _, said in rows] == ["up"] * 4
        assert len({pid for _, said in rows for pid in said[1:]}) == 16
        for process, _ in rows:
            assert process.stdin is not None
            process.stdin.write("down\n")
            process.stdin.flush()
        finish([process for process, _ in rows])
        assert list(ownership.state_root().iterdir()) == []
        assert [c for tree in cgroups.trees().all for c in (tree / cgroups.TOP).glob(f"{NAME}-*")] == []


def test_of_several_processes_that_take_one_name_at_the_same_instant_one_gets_it() -> None:
    """The others are refused as a name that is taken, and the one's lab is not harmed by their giving up."""
    for _ in range(5):
        rows = at_once([NAME] * 4)
        got, refused = ([row for row in rows if row[1][0] == word] for word in ("up", "refused:"))
        try:
            assert (len(got), len(refused)) == (1, 3), rows
            assert all(os.path.exists(f"/proc/{pid}") for pid in got[0][1][1:])
            assert [state.name for state in ownership.labs() if state.alive] == [NAME]
        finally:
            finish([process for process, _ in rows])
        assert list(ownership.state_root().iterdir()) == []


def test_a_dead_labs_name_goes_to_one_of_several_that_take_it_at_the_same_instant() -> None:
    """Each finds the leftover and would clear it away; none clears away the new lab of another."""
    for _ in range(4):
        dead = NetnsRuntime().up(line(1, 1), name=NAME)
        assert dead.state.keeper is not None
        os.kill(dead.state.keeper.pid, signal.SIGKILL)
        until(lambda lab=dead: not lab.state.alive)
        rows = at_once([NAME] * 4)
        got = [row for row in rows if row[1][0] == "up"]
        try:
            assert len(got) == 1, rows
            assert all(os.path.exists(f"/proc/{pid}") for pid in got[0][1][1:])
            dead.down()
            assert [state.name for state in ownership.labs() if state.alive] == [NAME]
        finally:
            finish([process for process, _ in rows])
            dead.down()


def test_going_down_twice_spares_the_next_lab_of_that_name() -> None:
    """The second `down` of an old lab finds its name with another, also of the same process, and leaves it alone."""
    old = NetnsRuntime().up(line(1, 1), name=NAME)
    old.down()
    with NetnsRuntime().up(line(1, 1), name=NAME) as new:
        old.down()

        assert new.state.alive
        assert (new.folder / ownership.STATE).exists()


def test_detached_lab_outlives_its_maker_and_can_be_attached_to() -> None:
    """Another process brings it up and ends; this one finds it with its program, starts another, and ends it."""
    code = (
        "from tests.labs import line; from testbed.runtime.netns import NetnsRuntime; from testbed.seams import Spawn\n"
        f"lab = NetnsRuntime().up(line(1, 1), name={NAME!r}, detached=True)\n"
        "lab.spawn([Spawn(name='s', sandbox='w1-0', argv=['sleep', '60'], uid=3013, folder=lab.folder / 's')])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, timeout=60)
    lab = NetnsRuntime().attach(NAME)
    try:
        assert lab.processes["s"].poll() is None
        assert (
            lab.spawn([Spawn(name="t", sandbox="w1-0", argv=["true"], uid=3014, folder=lab.folder / "t")])[0].wait(10)
            == 0
        )
    finally:
        lab.down()
    with pytest.raises(UsageError, match="no lab called"):
        NetnsRuntime().attach(NAME)


def test_the_control_socket_hears_the_keepers_user_alone(lab: NetnsLab) -> None:
    """Another user is cut off before a word, though every folder on the way and the socket let him pass."""
    closed = [(path, path.stat().st_mode) for path in (*reversed(lab.folder.parents), lab.folder)]
    closed = [(path, mode) for path, mode in closed if not mode & 0o001]
    (lab.folder / "control").chmod(0o777)
    code = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setresuid(*[int(sys.argv[2])] * 3)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(10)\n"
        "s.connect('control')\n"
        "print(len(s.recv(1)))"
    )
    try:
        for path, mode in closed:
            path.chmod(mode | 0o011)
        heard = [
            subprocess.run(
                [sys.executable, "-I", "-c", code, str(lab.folder), uid], capture_output=True, text=True, timeout=60
            ).stdout.strip()
            for uid in ("0", "3999")
        ]
    finally:
        for path, mode in closed:
            path.chmod(mode)

    assert heard == ["1", "0"]


def test_entering_what_is_no_namespace_says_so(tmp_path: Path) -> None:
    """The error names the path."""
    (tmp_path / "f").touch()
    with pytest.raises(MachineError, match="cannot enter"):
        in_netns(tmp_path / "f", lambda: None)


def test_ordinary_user_gets_a_lab_in_a_user_namespace(tmp_path: Path) -> None:
    """One user id for all and no cgroups, but wired and running; what is missing is said."""
    code = (
        "import os, socket, sys; from testbed.runtime import kernel, launch; from testbed.runtime.netns import Ways\n"
        "kernel.unshare(kernel.NEWNS); kernel.mount('none', '/', flags=kernel.MS_REC | kernel.MS_PRIVATE)\n"
        f"need = [{sys.prefix!r}, {sys.base_prefix!r}, {str(PROJECT)!r}]\n"
        "from pathlib import Path; bars = {str(b) for n in need if (b := Ways().barrier(n, 65534))}\n"
        "launch.hide([*bars], need)\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "kernel.prctl(4, 1)\n"  # dumpable again, as after a login
        "from tests.labs import line; from testbed.runtime.netns import NetnsRuntime; from testbed.seams import Spawn\n"
        "print('; '.join(NetnsRuntime().weaker()))\n"
        f"with NetnsRuntime().up(line(1, 2), name={NAME!r}) as lab:\n"
        "  spawn = Spawn(name='s', sandbox='w1-0', argv=['sh', '-c', 'exit 5'], uid=3, folder=lab.folder / 's')\n"
        "  p = lab.spawn([spawn])[0]\n"
        "  s = lab.in_netns('w1-1', lambda: socket.create_server(('0.0.0.0', 80)))\n"
        "  lab.in_netns('w1-0', lambda: socket.create_connection(('10.0.1.3', 80), 3))\n"
        "  print('code', p.wait(10), s.accept()[1][0])\n"
    )
    state = Path(f"/tmp/meshbed-test-{os.getpid()}")
    state.mkdir()
    os.chown(state, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, timeout=60, capture_output=True, text=True,
        env={**os.environ, "MESHBED_STATE": str(state), "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    state.rmdir()
    if "may not make a user namespace" in done.stderr:
        pytest.skip("user namespaces are not allowed to ordinary users on this machine")

    assert "not root" in done.stdout and "no cgroup tree" in done.stdout
    assert "code 5 10.0.1.2" in done.stdout, done.stderr


def until(condition: object, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)
