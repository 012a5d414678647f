"""A Docker engine connected, or one clear error that says what is wrong and what mends it.

All trouble is a MachineError (exit code 5): no engine, not permitted, an API too old or too new, no answer, or an
engine of another machine, whose containers' namespaces we could not wire. `diagnose` and `settle` are pure; `connect`
is the only place that opens a socket. The address is found as the docker program finds it: DOCKER_HOST, then the
current context, then the usual socket.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import MachineError
from testbed.runtime import dockerhost

if TYPE_CHECKING:
    from docker import DockerClient

NEEDED_API = "1.41"
"""Docker 20.10 (Debian 12's docker.io); older ones have no private cgroup namespaces."""
ANSWER_WITHIN_S = 5.0
"""An engine that is well says its version in milliseconds, under load in tenths of a second."""
CALL_WITHIN_S = 120.0
"""Limit of a single call once connected; loading an image into a busy engine takes tens of seconds."""
OTHER_WAY = "--runtime netns needs no Docker"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    host: str
    version: str
    api: str
    """The API version that both sides speak: calls use this one."""
    cgroup_driver: str
    """`cgroupfs` or `systemd`; under `systemd` a parent cgroup must be named `*.slice`."""
    cgroup_version: str
    storage: str
    rootless: bool
    kernel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A connection and who is at its other end."""

    client: DockerClient
    info: EngineInfo

    def close(self) -> None:
        self.client.close()


def address(environ: Mapping[str, str] | None = None) -> str:
    """Where the engine is looked for. Raises MachineError for a context that does not exist."""
    try:
        return dockerhost.found(environ)
    except ValueError as error:
        raise MachineError(str(error)) from error


def connect(host: str = "", *, answer_within_s: float = ANSWER_WITHIN_S) -> Engine:
    """Raises MachineError, saying what is wrong with the engine at `host` (or where `address` finds one)."""
    import docker

    host = host or address()
    if not host.startswith("unix://"):
        raise MachineError(
            f"Docker engine {host}: links are made in namespaces of this machine, so only an engine of this machine "
            f"will do; unset DOCKER_HOST, or set it to unix://<socket> (docker context use default). {OTHER_WAY}"
        )
    asking = None
    try:
        asking = docker.APIClient(base_url=host, version=NEEDED_API, timeout=answer_within_s)
        said = asking.version(api_version=False)
        api = settle(said, newest=docker.constants.DEFAULT_DOCKER_API_VERSION, host=host)
    except MachineError:
        raise
    except Exception as error:  # requests, urllib3, docker and OSError each have their own; `diagnose` knows them
        raise diagnose(error, host=host, waited_s=answer_within_s) from error
    finally:
        if asking is not None:
            asking.close()
    client = docker.DockerClient(base_url=host, version=api, timeout=CALL_WITHIN_S)
    try:
        info = described(client.info(), host=host, api=api)
    except Exception as error:
        client.close()
        raise diagnose(error, host=host, waited_s=CALL_WITHIN_S) from error
    if info.kernel and info.kernel != os.uname().release:
        client.close()
        raise MachineError(
            f"Docker engine {host}: it runs on another kernel ({info.kernel}; here {os.uname().release}), as Docker "
            f"Desktop's does in its virtual machine, and its namespaces are out of reach; install docker.io on this "
            f"machine, or run inside that one. {OTHER_WAY}"
        )
    return Engine(client=client, info=info)


@contextmanager
def answering(engine: Engine) -> Iterator[None]:
    """Where an engine that was connected stops answering, or refuses, the same clear error as at first."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException) as error:
        raise diagnose(error, host=engine.info.host, waited_s=CALL_WITHIN_S) from error


# -- pure


def described(said: Mapping[str, object], *, host: str, api: str) -> EngineInfo:
    """From the answer of GET /info."""
    options = said.get("SecurityOptions") or []
    return EngineInfo(
        host=host,
        version=str(said.get("ServerVersion", "unknown")),
        api=api,
        cgroup_driver=str(said.get("CgroupDriver", "unknown")),
        cgroup_version=str(said.get("CgroupVersion") or "1"),
        storage=str(said.get("Driver", "unknown")),
        rootless=any("name=rootless" in str(option) for option in options if isinstance(options, list)),
        kernel=str(said.get("KernelVersion", "")),
    )


def settle(said: object, *, newest: str, host: str) -> str:
    """The API version to speak: the newest that both know. Raises MachineError where there is none.

    `said` is the answer of GET /version, `newest` what the docker package knows.
    """
    theirs = said.get("ApiVersion") if isinstance(said, dict) else None
    if not isinstance(theirs, str) or not numbers(theirs):
        raise MachineError(
            f"Docker engine {host}: what answers there is no Docker engine ({str(said)[:80]}); set DOCKER_HOST to the "
            f"engine's socket. {OTHER_WAY}"
        )
    if numbers(theirs) < numbers(NEEDED_API):
        raise MachineError(
            f"Docker engine {host}: its API {theirs} (Docker {said.get('Version', '?')}) is too old, {NEEDED_API} is "
            f"needed; install Docker 20.10 or newer (Debian: apt-get install docker.io). {OTHER_WAY}"
        )
    least = said.get("MinAPIVersion")
    if isinstance(least, str) and numbers(least) > numbers(newest):
        raise MachineError(
            f"Docker engine {host}: it wants API {least} at least (Docker {said.get('Version', '?')}), the docker "
            f"package here speaks {newest}; install a newer docker package, or an engine that speaks that. {OTHER_WAY}"
        )
    return min(theirs, newest, key=numbers)


def numbers(version: str) -> tuple[int, ...]:
    """`1.41` as (1, 41); empty for what is no version."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def diagnose(error: BaseException, *, host: str, waited_s: float) -> MachineError:
    """Whose fault it is that no answer came, from what the docker package raised."""
    from docker.errors import APIError
    from requests.exceptions import Timeout

    where = f"Docker engine {host}"
    chain = list(_causes(error))
    number = next((e.errno for e in chain if isinstance(e, OSError) and e.errno is not None), None)
    if number in (errno.EACCES, errno.EPERM):
        return MachineError(
            f"{where}: not permitted ({os.strerror(number)}); run as root, or join the socket's group and log in again "
            f"(sudo usermod -aG docker $USER). {OTHER_WAY}"
        )
    if number in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK):
        why = "nothing listens at its socket" if number == errno.ECONNREFUSED else os.strerror(number)
        return MachineError(
            f"{where}: none runs there ({why}); install and start one (Debian: apt-get install docker.io, then "
            f"systemctl start docker, or dockerd where there is no systemd), or name another by DOCKER_HOST. "
            f"{OTHER_WAY}"
        )
    refused = next((e for e in chain if isinstance(e, APIError)), None)
    if refused is not None and refused.status_code == 400 and "too old" in str(refused.explanation or refused):
        return MachineError(f"{where}: {refused.explanation or refused}; install a newer docker package. {OTHER_WAY}")
    if refused is not None:
        said = f"HTTP {refused.status_code}: {str(refused.explanation or refused).strip()[:200]}"
    elif any(isinstance(e, Timeout | TimeoutError) for e in chain):
        said = f"nothing within {waited_s:g} s"
    else:
        said = str(chain[-1])[:200] or type(chain[-1]).__name__
    return MachineError(
        f"{where}: it does not answer as it should ({said}); see its log (journalctl -u docker, or dockerd's "
        f"output) and restart it. {OTHER_WAY}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, also where libraries keep it as an argument."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        now = waiting.pop(0)
        if now is None or any(now is one for one in seen):
            continue
        seen.append(now)
        yield now
        waiting += [now.__cause__, now.__context__, getattr(now, "reason", None)]
        waiting += [argument for argument in now.args if isinstance(argument, BaseException)]
        waiting = [one for one in waiting if isinstance(one, BaseException)]
