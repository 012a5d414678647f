"""What containers stand on, resolved: the image and how our programs are started in it."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.runtime.dockerplan import Ground
from testbed.runtime.netns import PROJECT

if TYPE_CHECKING:
    from docker import DockerClient

HOST_IMAGE = "meshbed-host:1"


def host(client: DockerClient) -> Ground:
    """An all but empty image over this machine's own /usr, interpreter and project, shown read-only: for work on the
    runtime itself, for it is made in a moment and is this machine's to the byte."""
    from docker.errors import ImageNotFound

    try:
        client.api.inspect_image(HOST_IMAGE)
    except ImageNotFound:
        client.api.import_image_from_data(_skeleton(), repository=HOST_IMAGE.split(":")[0], tag="1")
    shown = ["/usr", "/etc/alternatives", "/etc/ssl", sys.prefix, sys.base_prefix, str(PROJECT)]
    return Ground(
        image=HOST_IMAGE,
        interpreter=sys.executable,
        code=str(PROJECT),
        shown=tuple(path for path in dict.fromkeys(shown) if Path(path).is_dir()),
    )


def _skeleton() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(link)
        text = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(text)
        tar.addfile(passwd, io.BytesIO(text))
    return out.getvalue()
