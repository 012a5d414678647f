"""Where the engine is: found as the docker program finds it, with the standard library alone.

DOCKER_HOST, then the context of DOCKER_CONTEXT, then `currentContext` of the docker program's config.json, then the
usual socket. A context's file is named by the sha256 of its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

USUAL = "unix:///var/run/docker.sock"


def found(environ: Mapping[str, str] | None = None) -> str:
    """As DOCKER_HOST has it. Raises ValueError for a context that is not there or cannot be read, with the mend."""
    environ = os.environ if environ is None else environ
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    home = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = environ.get("DOCKER_CONTEXT") or _current(home / "config.json")
    if name in ("", "default"):
        return USUAL
    meta = home / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    try:
        host = json.loads(meta.read_text())["Endpoints"]["docker"].get("Host")
    except FileNotFoundError as error:
        raise ValueError(f"there is no Docker context {name!r}; docker context ls names those there are") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Docker context {name!r} cannot be read ({meta}: {error}); docker context use default"
        ) from error
    return str(host) if host else USUAL


def socket_path(host: str) -> str:
    """Empty where the engine is not behind a Unix socket of this machine."""
    return host.removeprefix("unix://") if host.startswith("unix://") else ""


def _current(config: Path) -> str:
    """Empty where nothing says so: a file that cannot be read is no reason to have no engine, the docker program
    goes on as well."""
    try:
        return str(json.loads(config.read_text()).get("currentContext") or "")
    except (OSError, ValueError, AttributeError):
        return ""
