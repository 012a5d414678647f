"""A Docker engine, or one clear error: what is wrong, at which address, what mends it; always exit code 5."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.docker import engine
from testbed.errors import MachineError
from tests.fakeengine import INFO, VERSION, answer, listening, pages


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for a socket's path holds no more than 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as made:
        yield Path(made)


def trouble(host: str, within_s: float = 5.0) -> str:
    with pytest.raises(MachineError) as caught:
        engine.connect(host, answer_within_s=within_s).close()
    assert caught.value.exit_code == 5
    assert host in str(caught.value), "the error names the address"
    assert "--runtime netns needs no Docker" in str(caught.value)
    return str(caught.value)


def test_an_engine_says_who_it_is(folder: Path) -> None:
    """The API spoken is the newest that both know; what matters to labs is read from its own words."""
    with listening(folder, pages()) as host:
        found = engine.connect(host)
        found.close()

    assert found.info == engine.EngineInfo(
        host=host,
        version="20.10.24",
        api="1.41",
        cgroup_driver="cgroupfs",
        cgroup_version="1",
        storage="overlay2",
        rootless=False,
        kernel=os.uname().release,
    )
    assert found.client.api.api_version == "1.41"


def test_no_socket_is_no_engine(folder: Path) -> None:
    assert "none runs there (No such file or directory); install and start one" in trouble(f"unix://{folder}/none")


def test_a_socket_that_nobody_listens_at_is_no_engine(folder: Path) -> None:
    """Left behind by a daemon that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/docker.sock")

    assert "none runs there (nothing listens at its socket); install and start" in trouble(
        f"unix://{folder}/docker.sock"
    )


def test_a_socket_that_is_not_ours_to_open_is_told_as_that(folder: Path) -> None:
    """Tried as another user, for root may open any."""
    with listening(folder, pages()) as host:
        os.chmod(folder, 0o755)
        os.chmod(folder / "docker.sock", 0o600)
        said = _as_nobody(host) if os.geteuid() == 0 else _closed(host, folder)

    assert "not permitted (Permission denied); run as root, or join the socket's group" in said


def _closed(host: str, folder: Path) -> str:
    os.chmod(folder / "docker.sock", 0)
    return trouble(host)


def _as_nobody(host: str) -> str:
    reader, writer = os.pipe()
    trouble("unix:///nowhere")  # loads all modules while they can be read
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writer, trouble(host).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_an_engine_of_before_the_needed_api_is_too_old(folder: Path) -> None:
    with listening(folder, pages(version={"Version": "19.03.15", "ApiVersion": "1.40"})) as host:
        said = trouble(host)

    assert "its API 1.40 (Docker 19.03.15) is too old, 1.41 is needed; install Docker 20.10 or newer" in said


def test_an_engine_that_no_longer_speaks_ours_is_too_new(folder: Path) -> None:
    with listening(folder, pages(version={"Version": "99", "ApiVersion": "2.10", "MinAPIVersion": "2.0"})) as host:
        said = trouble(host)

    assert "it wants API 2.0 at least (Docker 99)" in said
    assert "install a newer docker package" in said


def test_one_that_refuses_the_asking_is_told_in_its_own_words(folder: Path) -> None:
    """As newer engines refuse any call of an API they no longer speak, that for the version among them."""
    refusal = {"message": "client version 1.41 is too old. Minimum supported API version is 1.44"}
    with listening(folder, {"version": answer(400, refusal)}) as host:
        said = trouble(host)

    assert "client version 1.41 is too old" in said and "install a newer docker package" in said


def test_one_that_never_answers_is_left_after_a_while(folder: Path) -> None:
    with listening(folder, None) as host:
        said = trouble(host, within_s=0.3)

    assert "it does not answer as it should (nothing within 0.3 s); see its log" in said


NONSENSE = {
    "hangs up": b"",
    "speaks something else": b"SSH-2.0-x\r\n",
    "no JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
    "fails": answer(500, {"message": "disk on fire"}),
}


@pytest.mark.parametrize("answers", NONSENSE.values(), ids=NONSENSE)
def test_one_that_answers_nonsense_is_not_answering(folder: Path, answers: bytes) -> None:
    with listening(folder, answers) as host:
        said = trouble(host)

    assert "it does not answer as it should" in said and "restart it" in said
    assert (b"fire" in answers) == ("HTTP 500: disk on fire" in said)


@pytest.mark.parametrize("value", [[], "x", {}, {"ApiVersion": 4}, {"ApiVersion": "new"}], ids=str)
def test_what_answers_without_a_version_is_no_engine(folder: Path, value: object) -> None:
    with listening(folder, {"version": answer(200, value)}) as host:
        assert "what answers there is no Docker engine" in trouble(host)


def test_one_whose_second_answer_fails_is_not_answering(folder: Path) -> None:
    """It knew its version and then no more."""
    with listening(folder, {"version": answer(200, VERSION), "info": answer(503, {"message": "starting"})}) as host:
        assert "HTTP 503: starting" in trouble(host)


def test_one_that_goes_away_later_is_told_as_at_first(folder: Path) -> None:
    """An engine stopped between two calls."""
    with listening(folder, pages()) as host:
        found = engine.connect(host)
    (folder / "docker.sock").unlink()

    gone = pytest.raises(MachineError, match=r"none runs there \(No such file or directory\); install")
    with gone, engine.answering(found):
        found.client.images.list()


def test_an_engine_on_another_kernel_cannot_be_wired(folder: Path) -> None:
    """Docker Desktop's virtual machine: its socket is here, its namespaces are not."""
    with listening(folder, pages(info={**INFO, "KernelVersion": "5.10.0-linuxkit"})) as host:
        assert "another kernel (5.10.0-linuxkit" in trouble(host)


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://me@there", "npipe:////./pipe/docker"])
def test_an_engine_of_another_machine_is_not_even_asked(host: str) -> None:
    assert "only an engine of this machine will do; unset DOCKER_HOST" in trouble(host)


def test_rootless_engines_are_known_by_their_security_options() -> None:
    said = engine.described({"SecurityOptions": ["name=seccomp", "name=rootless"]}, host="h", api="1.41")

    assert said.rootless
    assert (said.version, said.cgroup_version) == ("unknown", "1")


def test_versions_are_compared_as_numbers() -> None:
    """1.9 comes before 1.41; the docker package's newest bounds what is spoken."""
    assert engine.numbers("1.9") < engine.numbers("1.41")
    assert engine.settle({"ApiVersion": "1.51", "MinAPIVersion": "1.24"}, newest="1.45", host="h") == "1.45"
    assert engine.settle({"ApiVersion": "1.41"}, newest="1.45", host="h") == "1.41"


class TestAddress:
    """Found as the docker program finds it."""

    def test_docker_host_comes_first(self) -> None:
        assert engine.address({"DOCKER_HOST": "unix:///x", "DOCKER_CONTEXT": "other"}) == "unix:///x"

    def test_without_any_word_it_is_the_usual_socket(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._home(folder, monkeypatch)

        assert engine.address({}) == "unix:///var/run/docker.sock"

    def test_a_context_leads_to_its_own_socket(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As rootless engines set themselves up: by name in the configuration."""
        self._home(folder, monkeypatch)
        name = hashlib.sha256(b"mine").hexdigest()
        meta = folder / ".docker" / "contexts" / "meta" / name / "meta.json"
        meta.parent.mkdir(parents=True)
        endpoint = {"docker": {"Host": "unix:///run/user/1000/docker.sock", "SkipTLSVerify": False}}
        meta.write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": endpoint}))

        (folder / ".docker" / "config.json").write_text(json.dumps({"currentContext": "mine"}))

        assert engine.address({}) == "unix:///run/user/1000/docker.sock"

    def test_a_context_that_is_not_there_is_told(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._home(folder, monkeypatch)

        with pytest.raises(MachineError, match="no Docker context 'gone'; docker context ls"):
            engine.address({"DOCKER_CONTEXT": "gone"})

    def _home(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
