"""Images without a builder: the same files give the same id, and a digest that no hour changes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from testbed.docker import archive, layer
from testbed.docker.layer import Entry

SETTINGS = {"Cmd": ["/bin/sh"]}


def made(folder: Path, content: bytes = b"x", date_s: int = 86_400) -> tuple[str, dict[str, bytes]]:
    folder.mkdir(exist_ok=True)
    with open(folder / "layer.tar", "wb") as file:
        total = layer.write([Entry(path="etc/a", content=content)], file, date_s=date_s)
    whole = io.BytesIO()
    name = archive.write(whole, folder / "layer.tar", layer_sum=total, tag="t:1", settings=SETTINGS, date_s=date_s)
    whole.seek(0)
    with tarfile.open(fileobj=whole) as tar:
        return name, {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def test_an_archive_says_of_itself_what_is_in_it(tmp_path: Path) -> None:
    """The id is the configuration's sum, the layer's sum is the layer's: what an engine checks when it loads."""
    name, files = made(tmp_path)
    (manifest,) = json.loads(files["manifest.json"])
    config = files[manifest["Config"]]

    assert name == f"sha256:{hashlib.sha256(config).hexdigest()}"
    assert json.loads(config)["rootfs"]["diff_ids"] == [
        f"sha256:{hashlib.sha256(files[manifest['Layers'][0]]).hexdigest()}"
    ]
    assert (manifest["RepoTags"], json.loads(config)["created"]) == (["t:1"], "1970-01-02T00:00:00Z")


def test_twice_is_the_same_and_anything_else_is_another(tmp_path: Path) -> None:
    again, other, later = made(tmp_path / "b"), made(tmp_path / "c", b"y"), made(tmp_path / "d", date_s=1)

    assert made(tmp_path / "a") == again
    assert len({again[0], other[0], later[0]}) == 3


def test_a_digest_is_of_layers_and_settings_alone() -> None:
    """Two builds of one thing differ in hour, id and name; that must not show."""
    image = {"Id": "1", "Created": "now", "RootFS": {"Layers": ["a", "b"]}, "Config": {"Env": ["A=1"], "Hostname": "x"}}

    assert archive.digest(image) == archive.digest({**image, "Id": "2", "Created": "then", "RepoTags": ["t"]})
    for change in (
        {"RootFS": {"Layers": ["b", "a"]}},
        {"Config": {"Env": ["A=2"]}},
        {"Config": {"Env": ["A=1"], "User": "0"}},
    ):
        assert archive.digest(image) != archive.digest({**image, **change})
