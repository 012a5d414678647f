"""Images of nginx and redis-server without any registry: a Debian package, with what it depends on, unpacked.

    .venv/bin/python -m examples.own_programs.images

Fetched by apt as it would install them on an empty system, without the packages that only scripts of packages need.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.docker import archive, engine, offlinebase
from testbed.docker.layer import Entry
from testbed.errors import MachineError, TestbedError

FOR_SCRIPTS = re.compile(
    r"^(perl.*|libperl.*|debconf|dpkg|tar|adduser|passwd|usrmerge|init-system-helpers|sysvinit-utils|lsb-base|"
    r"libpam.*|libsemanage.*|libsepol.*|libaudit.*|lib(file-find|number|text-glob).*perl)$"
)
NGINX = b"""
worker_processes 1; daemon off; pid /tmp/nginx.pid; error_log stderr;
events {}
http {
  access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
  uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  server { listen 80; location / { return 200 "nginx itself\\n"; } }
}
"""


def nginx(within: engine.Engine) -> str:
    """Answers any GET at port 80; may run as any user, with /tmp to write to."""
    return make(
        within,
        "nginx",
        command=["/usr/sbin/nginx", "-c", "/etc/meshbed-nginx.conf"],
        more=[Entry(path="etc/meshbed-nginx.conf", content=NGINX), Entry(path="var/log/nginx")],
    )


def redis(within: engine.Engine) -> str:
    """Listens at port 6379, keeps nothing, asks for no password."""
    command = ["/usr/bin/redis-server", "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0"]
    return make(within, "redis-server", command=command)


def make(within: engine.Engine, package: str, *, command: Sequence[str], more: Sequence[Entry] = ()) -> str:
    """The image's name. Raises MachineError where the archive cannot be reached."""
    tag = f"meshbed-example-{package}:1"
    if archive.present(within, tag) is None:
        entries = [*more, *unpacked(package)]
        entries += offlinebase.added(entries)
        settings = {"Cmd": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
        archive.load(within, entries, tag=tag, settings=settings)
    return tag


def unpacked(package: str) -> list[Entry]:
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise MachineError(f"{package}: it comes by apt, which is not here; docker pull an image of it instead")
    with tempfile.TemporaryDirectory(prefix="meshbed-apt-") as folder:
        os.chmod(folder, 0o755)  # apt fetches as a user of its own
        return list(_fetched(package, Path(folder)))


def _fetched(package: str, folder: Path) -> Iterator[Entry]:
    (folder / "status").write_text("")
    options = [f"Dir::State::status={folder}/status", f"Dir::Cache::archives={folder}", "Debug::NoLocking=1"]
    words = [word for option in options for word in ("-o", option)]
    said = _run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "--print-uris", *words, package], folder)
    names = [line.split()[1].partition("_")[0] for line in said.splitlines() if line.startswith("'")]
    _run(["apt-get", "download", "-qq", *(name for name in names if not FOR_SCRIPTS.search(name))], folder)
    for file in sorted(folder.glob("*.deb")):
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(file)], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            yield from offlinebase.kept(tar)


def _run(argv: Sequence[str], folder: Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    if done.returncode != 0:
        raise MachineError(
            f"{' '.join(argv[:2])}: Debian's archive does not give it ({done.stderr.strip()[-200:]}); apt-get update"
        )
    return done.stdout


def main() -> int:
    try:
        within = engine.connect()
        print(nginx(within), redis(within), sep="\n")
    except TestbedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
