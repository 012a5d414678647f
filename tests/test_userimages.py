"""A workload that is an image of the user's own: where it runs, and as what it is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import lab, topofile
from testbed.errors import UsageError
from testbed.runtime.netns import NetnsRuntime

TOPOLOGY = """
name: own
nodes: {a: {}}
workloads:
  store:
    node: a
    app: {kind: image, image: "redis:7", command: [redis-server, --save, ""], writable: [/data], ports: [6379]}
"""


def test_without_containers_an_image_is_refused_before_anything_is_made() -> None:
    """The namespaces of netns share this machine's files; the error names the runtime that can."""
    with pytest.raises(UsageError, match=r"workload store is the image redis:7.*netns cannot.*--runtime docker"):
        NetnsRuntime().up(topofile.parse(TOPOLOGY, "own.yml"), name="own")


def test_an_image_starts_with_its_own_words_and_as_any_application() -> None:
    """None of our arguments or variables are added; its user id is the applications', never a proxy's."""
    (workload,) = topofile.parse(TOPOLOGY, "own.yml").workloads

    spawn = lab.from_image(workload, Path("/folder"))

    assert (spawn.name, spawn.sandbox, spawn.image) == ("app.store", "store", "redis:7")
    assert list(spawn.argv) == ["redis-server", "--save", ""]
    assert (dict(spawn.env), spawn.uid, list(spawn.writable)) == ({}, lab.APP_UID, ["/data"])
    assert list(spawn.capabilities) == []
