"""What a lab on Docker is made of, and what each container may do: read off the plan, without an engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from testbed.deploy import ZTUNNEL_CAPABILITIES
from testbed.runtime import dockerplan
from testbed.runtime.dockerplan import Container, Ground, Of
from testbed.seams import Spawn

OF = Of(lab="pair", owner="0:/run/meshbed", topology="pair")
GROUND = Ground(image="meshbed:abc", interpreter="/opt/python", code="/opt/code", path="/opt/code:/opt/packages")
APP = Spawn(
    name="app.server", sandbox="server", argv=["/venv/bin/python", "-m", "testbed.apps.web", "--port", "80"], uid=2000,
    folder=Path("/run/meshbed/pair/apps/server"), env={"PYTHONPATH": "/checkout", "PATH": "/usr/bin", "HOME": "/home"},
)  # fmt: skip
ZTUNNEL = dataclasses.replace(APP, name="ztunnel.node-a", uid=1337, capabilities=ZTUNNEL_CAPABILITIES)
FOREIGN = dataclasses.replace(APP, argv=["redis-server"], env={"A": "b"}, image="redis:7", writable=("/data",))


def program(spawn: Spawn) -> Container:
    return dockerplan.program(
        OF, GROUND, spawn, node="node-a", network="f00", log="/logs/it.log", ours="/venv/bin/python",
        checkout="/checkout",
    )  # fmt: skip


EVERY_KIND = [
    dockerplan.sandbox(OF, GROUND, name="server", kind="workload", node="node-a"),
    program(APP),
    program(ZTUNNEL),
    dockerplan.foreign(OF, FOREIGN, node="node-a", network="f00"),
]


@pytest.mark.parametrize("plan", EVERY_KIND, ids=lambda plan: plan.name)
def test_no_container_is_privileged_or_writes_to_its_image(plan: Container) -> None:
    """Whatever it is: all capabilities dropped first, nothing gained later, no network of Docker's."""
    host = dockerplan.as_request(plan)["HostConfig"]

    assert isinstance(host, dict)
    assert (host["Privileged"], host["ReadonlyRootfs"], host["CapDrop"]) == (False, True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["NetworkMode"] in ("none", "container:f00")


def test_only_who_enters_other_namespaces_has_capabilities() -> None:
    """A ztunnel's are its role's; the two to change its user are dropped before it begins."""
    asked = {plan.name: plan.capabilities for plan in EVERY_KIND if plan.capabilities}

    assert asked == {"meshbed-pair-ztunnel.node-a": ("NET_ADMIN", "NET_RAW", "SETGID", "SETUID", "SYS_ADMIN")}


def test_nobody_runs_as_root_but_to_change_its_user_at_once() -> None:
    """Docker gives capabilities to root alone; `dockerentry` is told the user."""
    users = {plan.labels[dockerplan.NAME]: plan.user for plan in EVERY_KIND}
    ztunnel = program(ZTUNNEL)

    assert users == {"server": "65534:65534", "app.server": "2000:2000", "ztunnel.node-a": "0:0"}
    assert "dockerentry" in ztunnel.command[4]
    assert ztunnel.command[5:8] == ("1337", "sys_admin,net_admin,net_raw", "/logs/it.log")


def test_a_program_sees_its_own_folder_and_its_log_and_nothing_else_of_the_lab() -> None:
    """Binds are all of this machine that a container sees."""
    assert program(APP).shown == ("/run/meshbed/pair/apps/server", "/logs/it.log")
    assert EVERY_KIND[0].shown == EVERY_KIND[3].shown == ()


def test_our_programs_start_with_the_images_interpreter_and_code() -> None:
    """This machine's paths to them mean nothing in the image."""
    plan = program(APP)

    assert plan.command[4:] == ("/logs/it.log", "/opt/python", "-m", "testbed.apps.web", "--port", "80")
    assert plan.environment["PYTHONPATH"] == "/opt/code:/opt/packages"
    assert "PATH" not in plan.environment


def test_an_image_of_the_users_own_keeps_its_entrypoint_and_gets_none_of_our_files() -> None:
    """Its words and variables are those of the topology; its writable folders lie in memory."""
    request = dockerplan.as_request(EVERY_KIND[3])

    assert "Entrypoint" not in request
    assert (request["Image"], request["Cmd"], request["Env"]) == ("redis:7", ["redis-server"], ["A=b"])
    assert request["HostConfig"]["Tmpfs"].keys() == {"/tmp", "/data"}  # type: ignore[index]


def test_without_words_an_image_runs_its_own_command() -> None:
    """An empty Cmd would be an empty command to some engines."""
    plan = dockerplan.foreign(OF, dataclasses.replace(FOREIGN, argv=()), node="n", network="f00")

    assert "Cmd" not in dockerplan.as_request(plan)


def test_labs_of_two_state_folders_share_no_name_and_no_owner() -> None:
    """Two clones, or two users, may each have a lab `pair` in one engine."""
    usual = Path("/run/meshbed")
    asked = {"lab": "pair", "default_root": usual, "uid": 0, "topology": "pair"}
    ours = dockerplan.of(root=usual, key="aa", **asked)
    other = dockerplan.of(root=Path("/elsewhere"), key="bb", **asked)

    assert ours.name("client") == "meshbed-pair-client"
    assert other.name("client") != ours.name("client")
    assert other.owner != ours.owner != dockerplan.owner(usual, 1000, "aa")


def test_labs_of_two_machines_share_no_name_and_no_owner_in_one_engine() -> None:
    """Same user, same path: the key differs, and the second one sees that the name is taken."""
    usual = Path("/run/meshbed")
    asked = {"lab": "pair", "root": usual, "default_root": usual, "uid": 0, "topology": "pair"}
    first, second = dockerplan.of(key="aa", **asked), dockerplan.of(key="bb", crowded=True, **asked)

    assert first.owner == "0:/run/meshbed:aa" != second.owner
    assert first.name("client") == "meshbed-pair-client" != second.name("client")


def test_only_our_own_labs_are_removed_while_they_run() -> None:
    """Of another machine at the same path, and of labels without a key, those of which nothing runs any more."""
    rows = [
        {"Id": name, "State": state, "Labels": {dockerplan.OWNER: owner, dockerplan.LAB: lab}}
        for name, owner, lab, state in [
            ("ours", "0:/r:aa", "x", "running"), ("theirs", "0:/r:bb", "x", "running"),
            ("theirs, ended", "0:/r:bb", "x", "exited"), ("ours of before", "0:/r:cc", "x", "exited"),
            ("old", "0:/r", "y", "running"), ("old, ended", "0:/r", "z", "exited"),
            ("in the making", "0:/r:ee", "n", "created"), ("paused", "0:/r:ff", "p", "paused"),
            ("another's", "0:/r2:dd", "x", "exited"), ("another user's", "1:/r", "x", "exited"),
        ]
    ]  # fmt: skip
    found = dockerplan.removable(rows, ours="0:/r:aa", like_ours="0:/r")
    assert [one["Id"] for one in found] == ["ours", "ours of before", "old, ended"]


def test_leftovers_are_containers_of_labs_that_are_not_there() -> None:
    """By lab, so that a living one's stay."""
    rows = [{"Id": str(n), "Labels": {dockerplan.LAB: lab}} for n, lab in enumerate(["dead", "alive", "dead"])]

    assert dockerplan.leftovers(rows, ["alive"]) == {"dead": ["0", "2"]}


@pytest.mark.parametrize(("told", "code"), [(0, 0), (3, 3), (137, -9), (143, -15), (128, 128), (255, 255)])
def test_an_exit_code_of_dockers_is_told_as_a_processs(told: int, code: int) -> None:
    """128 + n is signal n; 255 is no signal."""
    assert dockerplan.exit_code(told) == code


def test_a_containers_cgroup_is_read_where_cpu_is_counted() -> None:
    """v1 cpuacct before v2; under v2 alone the only line counts."""
    hybrid = "5:memory:/docker/m\n4:cpu,cpuacct:/docker/c\n0::/docker/u\n"

    assert dockerplan.cgroup_of(hybrid) == "docker/c"
    assert dockerplan.cgroup_of("0::/system.slice/docker-f00.scope\n") == "system.slice/docker-f00.scope"


def test_what_was_printed_is_read_out_of_the_engines_frames() -> None:
    """Both streams in their order; a frame cut short gives what is there."""
    frames = b"\1\0\0\0\0\0\0\3one\2\0\0\0\0\0\0\3two\1\0\0\0\0\0\0\5th"

    assert dockerplan.printed(frames) == b"onetwoth"
