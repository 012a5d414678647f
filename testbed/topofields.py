"""The keys of a topology file, described once: what `topofile` reads strictly and what its JSON Schema says.

Only structure stands here, ranges and spellings of single values included. What refers to something else in the file
(names that must exist, a connected graph) is checked in `topofile`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from testbed import policyfile, schemadefs
from testbed.model.topology import LEAST_RATE_MBIT
from testbed.yamlpos import LABEL, Item, Number, Reader, Record, Sequence, Shape, Table, Text

MAX_DELAY_MS = 10_000.0


def _too_long(value: float) -> tuple[str, str]:
    mend = f"did you mean delayMs: {value / 1000:g}?" if value / 1000 <= MAX_DELAY_MS else "give at most 10000"
    return f"one-way delay {value / 1000:g}s is above the 10s this testbed supports ({value:g})", mend


def _name(what: str) -> Text:
    return Text(what=what, pattern=LABEL, mend="names are lower-case letters, digits and inner dashes, at most 63")


def _probability(what: str) -> Number:
    return Number(what=what, minimum=0, maximum=1, above=lambda v: (f"{what} is above 1 ({v:g})", _as_fraction(v)))


def _as_fraction(value: float) -> str:
    return f"it is a probability from 0 to 1; did you mean {value / 100:g}?" if value <= 100 else "give 0 to 1"


_DNS_NAME = r"^(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+$"
_FOLDER = "write an absolute path without colons and commas"
_PORT = Number(what="port", minimum=1, maximum=65535, integer=True)
_IMPAIRMENT: dict[str, Shape] = {
    "delayMs": Number(what="one-way delay in ms", minimum=0, maximum=MAX_DELAY_MS, above=_too_long),
    "jitterMs": Number(what="jitter in ms, a standard deviation", minimum=0, maximum=MAX_DELAY_MS),
    "loss": _probability("loss"),
    "gilbertElliott": Record(
        what="gilbertElliott",
        fields={
            "p": _probability("p (good to bad)"),
            "r": _probability("r (bad to good)"),
            "lossBad": _probability("lossBad"),
            "lossGood": _probability("lossGood"),
        },
        required=("p", "r"),
    ),
    "rateMbit": Number(what="rate in Mbit/s, 0 for unlimited", minimum=LEAST_RATE_MBIT, maximum=400_000, or_zero=True),
    "queueMs": Number(what="depth of the rate limiter's queue in ms", minimum=1, maximum=60_000),
}
_LOSSES = (("loss", "gilbertElliott"),)
_DIRECTION = Record(what="direction of a link", fields=_IMPAIRMENT, at_most_one=_LOSSES)


def _between(of: str) -> Sequence:
    return Sequence(what="between", of=Text(what=f"name of a {of}"), minimum=2, maximum=2)


_WAYPOINT = Record(
    what="waypoint",
    fields={
        "name": _name("name of a waypoint"),
        "node": Text(what="name of a node"),
        "replicas": Number(what="replicas", minimum=1, maximum=100, integer=True),
        "for": Text(what="what a waypoint is for", choices=("all", "service", "workload")),
    },
    required=("node",),
)

_ACCOUNT = Record(what="service account", fields={"waypoint": _WAYPOINT}, required=("waypoint",))
_NAMESPACE = Record(
    what="namespace",
    fields={"waypoint": _WAYPOINT, "serviceAccounts": Table(what="serviceAccounts", of=_ACCOUNT)},
)
_WORKLOAD = Record(
    what="workload",
    fields={
        "node": Text(what="name of a node"),
        "nodes": Sequence(what="nodes", of=Text(what="name of a node"), minimum=1),
        "namespace": _name("namespace"),
        "serviceAccount": _name("service account"),
        "replicas": Number(what="replicas", minimum=1, maximum=10_000, integer=True),
        "app": Record(
            what="app",
            fields={
                "kind": Text(what="kind of app"),
                "ports": Sequence(what="ports", of=_PORT),
                "serviceTimeMs": Number(what="service time in ms", minimum=0, maximum=60_000),
                "calls": Sequence(what="calls", of=Text(what="name of a service")),
                "image": Text(what="name of an image", pattern=r"^[a-z0-9][-a-z0-9._/:@]*\S*$"),
                "command": Sequence(what="command", of=Text(what="word of a command"), minimum=1),
                "environment": Table(what="environment", of=Text(what="value"), key=r"^[A-Za-z_][A-Za-z0-9_]*$"),
                "writable": Sequence(what="writable", of=Text(what="folder", pattern=r"^/[^:,\0]+$", mend=_FOLDER)),
                "userId": Number(what="user id", minimum=0, maximum=65_535, integer=True),
            },
            required=("kind",),
        ),
        "plane": Text(what="plane of a workload", choices=("ambient", "none", "sidecar")),
        "labels": Table(what="labels", of=Text(what="label value"), key=r"^\S+$"),
        "waypoint": _WAYPOINT,
        "hostname": Text(
            what="host name of a workload", pattern=_DNS_NAME, mend="write a whole one, such as files.example.com"
        ),
    },
    one_of=("node", "nodes"),
)
_SERVICE = Record(
    what="service",
    fields={
        "namespace": _name("namespace"),
        "ports": Sequence(
            what="ports",
            of=Record(
                what="service port",
                fields={
                    "port": _PORT,
                    "targetPort": _PORT,
                    "protocol": Text(what="protocol", choices=("grpc", "http", "http2", "tcp")),
                },
                required=("port",),
            ),
            minimum=1,
        ),
        "workloads": Sequence(what="workloads", of=Text(what="name of a workload"), minimum=1),
        "waypoint": _WAYPOINT,
        "trafficDistribution": Text(
            what="traffic distribution", choices=("any", "local", "prefer-same-node", "prefer-same-zone")
        ),
    },
    required=("ports", "workloads"),
)


@dataclass(frozen=True, slots=True)
class _PolicyShape:
    """An inline Istio resource, or `file:` with the name of one beside the topology."""

    file: Record = field(
        default_factory=lambda: Record(
            what="policy file", fields={"file": Text(what="name of a policy file")}, required=("file",)
        )
    )

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        if isinstance(node, yaml.MappingNode) and not any(key.value == "file" for key, _ in node.value):
            return policyfile.ResourceShape().read(node, reader)
        return self.file.read(node, reader)

    def schema(self) -> dict[str, Any]:
        return {"oneOf": [self.file.schema(), *policyfile.ResourceShape().schema()["oneOf"]]}


DOCUMENT = Record(
    what="topology",
    fields={
        "name": _name("name of the topology"),
        "trustDomain": Text(what="trust domain", pattern=r"^[a-z0-9]([-a-z0-9._]{0,253}[a-z0-9])?$"),
        "zones": Sequence(what="zones", of=_name("name of a zone")),
        "nodes": Table(what="nodes", of=Record(what="node", fields={"zone": Text(what="name of a zone")}), minimum=1),
        "namespaces": Table(what="namespaces", of=_NAMESPACE),
        "workloads": Table(what="workloads", of=_WORKLOAD),
        "services": Table(what="services", of=_SERVICE),
        "links": Sequence(
            what="links",
            of=Record(
                what="link",
                fields={"between": _between("node"), **_IMPAIRMENT, "forward": _DIRECTION, "backward": _DIRECTION},
                required=("between",),
                at_most_one=_LOSSES,
            ),
        ),
        "zoneLinks": Sequence(
            what="zoneLinks",
            of=Record(
                what="zone link",
                fields={
                    "between": _between("zone"),
                    "rttMs": Number(what="round trip in ms", minimum=0, maximum=2 * MAX_DELAY_MS),
                    **_IMPAIRMENT,
                },
                required=("between",),
                at_most_one=(*_LOSSES, ("rttMs", "delayMs")),
            ),
        ),
        "policies": Sequence(what="policies", of=_PolicyShape()),
    },
    required=("name", "nodes"),
)


def json_schema() -> dict[str, Any]:
    """What the structure of a topology file must be; names that refer to each other are beyond it."""
    return schemadefs.shared(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Meshbed topology",
            **DOCUMENT.schema(),
        }
    )
