"""An image made from a tar of files alone, without a builder: what `docker load` reads.

Configuration and layer hold no hour but the one given, so the image's id itself is the same for the same files.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from testbed.docker import layer
from testbed.docker.engine import Engine
from testbed.errors import MachineError

if TYPE_CHECKING:
    from docker.models.images import Image

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}


def load(
    engine: Engine,
    entries: Iterable[layer.Entry],
    *,
    tag: str,
    settings: Mapping[str, object],
    date_s: int | None = None,
) -> Image:
    """The entries as an image of one layer; `settings` are its `Env`, `Cmd`, `User`, `Labels`, … Gives the image."""
    from docker.errors import APIError, ImageLoadError

    date_s = layer.epoch_s() if date_s is None else date_s
    with tempfile.TemporaryDirectory(prefix="meshbed-image-") as folder:
        files, whole = Path(folder) / "layer.tar", Path(folder) / "image.tar"
        with open(files, "wb") as file:
            layer_sum = layer.write(entries, file, date_s=date_s)
        with open(whole, "wb") as file:
            write(file, files, layer_sum=layer_sum, tag=tag, settings=settings, date_s=date_s)
        files.unlink()
        try:
            with open(whole, "rb") as file:
                engine.client.images.load(file)
        except (APIError, ImageLoadError) as error:
            raise MachineError(
                f"image {tag}: the engine refused to load it ({error}); docker system df shows whether the disk is full"
            ) from error
    return engine.client.images.get(tag)


def write(
    file: IO[bytes], files: Path, *, layer_sum: str, tag: str, settings: Mapping[str, object], date_s: int
) -> str:
    """The archive of one layer, `files`, to `file`; the image's id."""
    config = configuration(layer_sum, settings=settings, date_s=date_s)
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{layer_sum}/layer.tar"]}]
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in ((f"{name}.json", config), ("manifest.json", json.dumps(manifest).encode())):
            tar.addfile(_header(path, len(data), date_s), io.BytesIO(data))
        with open(files, "rb") as content:
            tar.addfile(_header(f"{layer_sum}/layer.tar", files.stat().st_size, date_s), content)
    return f"sha256:{name}"


def configuration(layer_sum: str, *, settings: Mapping[str, object], date_s: int) -> bytes:
    machine = platform.machine()
    created = datetime.fromtimestamp(date_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "created": created,
        "config": dict(settings),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_sum}"]},
        "history": [{"created": created, "created_by": "meshbed"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def digest(attributes: Mapping[str, Any]) -> str:
    """What an image does and holds, from `docker inspect`; without its hour, its name and its maker's version."""
    config = attributes.get("Config") or {}
    told = {name: config.get(name) for name in ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels")}
    layers = (attributes.get("RootFS") or {}).get("Layers") or []
    text = json.dumps({"layers": layers, "config": told, "arch": attributes.get("Architecture")}, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def present(engine: Engine, reference: str) -> Image | None:
    """The image of that name in the engine, or None."""
    from docker.errors import ImageNotFound

    try:
        return engine.client.images.get(reference)
    except ImageNotFound:
        return None


def _header(path: str, size: int, date_s: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.size, header.mtime, header.mode = size, date_s, 0o644
    return header
