"""docs/traffic-fields.md: each field of the traffic resources, tried alone, and what planes say of it.

    python -m tests.fieldtable > docs/traffic-fields.md

A field is found by walking the shapes that files are read by, so that none is forgotten; an example with nothing but
this field is read, and `testbed.honoured` asked.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from testbed import policyfile, trafficshapes
from testbed.errors import TopologyError
from testbed.honoured import not_honoured
from testbed.yamlpos import Anything, Flag, Number, Record, Sequence, Shape, Table, Text

PLANES = ("sidecar", "ambient", "envoy-sidecar", "envoy-ambient")
KINDS = {
    "VirtualService": ("networking.istio.io/v1", trafficshapes.VIRTUAL_SERVICE),
    "DestinationRule": ("networking.istio.io/v1", trafficshapes.DESTINATION_RULE),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", trafficshapes.HTTP_ROUTE),
}
_SAME = ("portLevelSettings", "subsets.trafficPolicy", "backendRefs.filters")
"""Hold what is tried elsewhere in the same resource."""
_VALUES = {
    "host": "web", "destinationSubnets": "10.0.0.0/8", "grpcStatus": "UNAVAILABLE", "regex": "a.*", "match": "a.*",
    "kind": "Service", "value": "/x", "replaceFullPath": "/x", "replacePrefixMatch": "/x",
}  # fmt: skip
_OTHERS = {"grpcStatus": "ABORTED", "kind": "Gateway"}
_HEAD = """# Fields of the traffic resources

Each field that a file may hold, tried alone: **done** · **reported** (a run says so at its start, with the reason).
Nothing else is possible: a field that is not known is an error, and `tests/test_field_table.py` asks the code for every
row. `python -m tests.fieldtable` writes this page anew. Values are told apart where they are words. What hangs under
`portLevelSettings`, a subset's `trafficPolicy` and a backend's `filters` is as where it stands alone. `hybrid` and
`node-l7` are as `sidecar`.

Resources that are not here: PeerAuthentication and AuthorizationPolicy hold as docs/sidecar.md (3, 4), docs/waypoint.md
(3) and docs/hbone-conformance.md say, with CUSTOM, AUDIT and whatever takes a JWT reported; a GRPCRoute is read as an
HTTPRoute; RequestAuthentication, Telemetry, Sidecar and ServiceEntry are read and reported whole.
"""


def leaves(shape: Shape, path: str = "", name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(path, two examples that hold this leaf, with values that differ, and what must stand beside it)."""
    if isinstance(shape, Record):
        for key, inner in shape.fields.items():
            here = f"{path}.{key}".lstrip(".")
            if any(here.endswith(same) for same in _SAME):
                continue
            beside = {k: _least(shape.fields[k], k) for k in shape.required if k != key}
            for found, values in leaves(inner, here, key):
                yield found, tuple({**copy.deepcopy(beside), key: value} for value in values)  # type: ignore[misc]
    elif isinstance(shape, Sequence):
        yield from ((found, ([one], [other])) for found, (one, other) in leaves(shape.of, path, name))
    elif isinstance(shape, Table):
        yield from ((found, ({"k": one}, {"k": other})) for found, (one, other) in leaves(shape.of, path, name))
    elif isinstance(shape, Text) and shape.choices:
        for choice in shape.choices:
            yield f"{path}: {choice}", (choice, next(other for other in shape.choices if other != choice))
    else:
        value = _least(shape, name)
        yield path, (value, _OTHERS.get(name, _other(shape, value)))


def _other(shape: Shape, value: Any) -> Any:
    if isinstance(shape, Number):
        return value + 1 if value < shape.maximum else value - 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {}
    return {"1s": "2s", "10.0.0.0/8": "10.1.0.0/16"}.get(value, f"{value}y")


def _least(shape: Shape, name: str) -> Any:
    if isinstance(shape, Record):
        return {key: _least(shape.fields[key], key) for key in shape.required}
    if isinstance(shape, Sequence):
        return [_least(shape.of, name)]
    if isinstance(shape, Table):
        return {"k": _least(shape.of, name)}
    if isinstance(shape, Number):
        return int(max(shape.minimum, min(shape.maximum, 5)))
    if isinstance(shape, Flag):
        return True
    if isinstance(shape, Anything):
        return {"a": "b"}
    assert isinstance(shape, Text)
    return shape.choices[0] if shape.choices else "1s" if shape.pattern else _VALUES.get(name, "x")


def _complete(kind: str, spec: dict) -> dict:
    """What a resource needs to mean anything; nothing that is reported."""
    if kind == "VirtualService":
        spec.setdefault("hosts", ["web"])
        for rule in spec.get("http", ()):
            for match in rule.get("match", ()):
                if "ignoreUriCase" in match:
                    match["uri"] = {"exact": "/a"}
            if not {"route", "redirect", "directResponse", "delegate"} & set(rule):
                rule["route"] = [{"destination": {"host": "web"}}]
            if {"mirrorPercentage", "mirrorPercent"} & set(rule):
                rule["mirror"] = {"host": "web"}
            abort = rule.get("fault", {}).get("abort")
            if abort is not None and not {"httpStatus", "grpcStatus"} & set(abort):
                abort["httpStatus"] = 500
    if kind == "DestinationRule" and "tls" in spec.get("trafficPolicy", {}):
        spec["trafficPolicy"]["tls"].setdefault("mode", "ISTIO_MUTUAL")
    if kind == "HTTPRoute":
        spec.setdefault("parentRefs", [{"kind": "Service", "group": "", "name": "web"}])
        for parent in spec["parentRefs"]:
            parent.setdefault("kind", "Service")
        for rule in spec.get("rules", ()):
            for held in rule.get("filters", ()):
                _complete_filter(held)
    return spec


def _complete_filter(held: dict) -> None:
    by_key = {key: type_ for type_, key in trafficshapes.FILTER_KEYS.items()}
    held["type"] = next((by_key[key] for key in held if key in by_key), held["type"])
    least = {"requestMirror": {"backendRef": {"name": "web", "port": 80}}, "urlRewrite": {"hostname": "x"}}
    key = trafficshapes.FILTER_KEYS[held["type"]]
    held.setdefault(key, least.get(key, {}))
    if key == "requestMirror":
        held[key]["backendRef"].setdefault("port", 80)
    path = held[key].get("path")
    if path is not None:
        if "replaceFullPath" in path or "replacePrefixMatch" in path:
            path["type"] = "ReplaceFullPath" if "replaceFullPath" in path else "ReplacePrefixMatch"
        else:
            path["replaceFullPath" if path["type"] == "ReplaceFullPath" else "replacePrefixMatch"] = "/x"


def examples() -> Iterator[tuple[str, str, object, object]]:
    """(kind, path, the resource as read, and with another value; None where no other can be read)."""
    for kind, (_, shape) in KINDS.items():
        for path, specs in leaves(shape):
            one, other = specs
            try:
                yield kind, path, _read(kind, path, one), _read(kind, path, other)
            except TopologyError:
                yield kind, path, _read(kind, path, one), None


def _read(kind: str, path: str, spec: dict) -> object:
    metadata = {"name": "r", "namespace": "default"}
    text = json.dumps(
        {"apiVersion": KINDS[kind][0], "kind": kind, "metadata": metadata, "spec": _complete(kind, spec)}
    )
    (resource,) = policyfile.parse(text, f"{kind} {path}")
    return resource


def reasons(resource: object, plane: str) -> list[str]:
    return [entry.why for entry in not_honoured([resource], plane)]


def page() -> str:
    lines = [_HEAD]
    last = ""
    for kind, path, resource, _ in examples():
        if kind != last:
            lines += [""] if last else []
            lines += [f"## {kind}", "", f"| field | {' | '.join(PLANES)} | reason |", "|---" * (len(PLANES) + 2) + "|"]
            last = kind
        told = {plane: reasons(resource, plane) for plane in PLANES}
        cells = ["reported" if told[plane] else "done" for plane in PLANES]
        why = "; ".join(dict.fromkeys(reason for plane in PLANES for reason in told[plane]))
        lines.append(f"| `{path}` | {' | '.join(cells)} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
