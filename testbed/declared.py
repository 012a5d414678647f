"""What a lab was asked to be, and in which parts another wish differs from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.encoded import as_json
from testbed.model.topology import Topology

SHOWN = 8
ANY = "auto"
"""A runtime or link kind that is not named is the one that the lab has."""


def declaration(topology: Topology, *, plane: str, runtime: str, link: str, keylog: bool) -> dict[str, Any]:
    """Everything that decides what comes up, as plain JSON; comments and the order of keys in a file do not."""
    made = as_json(topology)
    made["policies"] = [{"kind": type(p).__name__} | as_json(p) for p in topology.policies]
    return {"plane": plane, "runtime": runtime, "link kind": link, "keylog": keylog, "topology": made}


def differences(was: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line a part, such as `workloads client: service_account: a → b`; empty when both are the same."""
    found = []
    for key in ("plane", "runtime", "link kind", "keylog"):
        if was[key] != wanted[key] and wanted[key] != ANY:
            found.append(f"{key}: {_shown(was[key])} → {_shown(wanted[key])}")
    return found + _below("", was["topology"], wanted["topology"])


IMPAIRMENTS = ("a_to_b", "b_to_a")
OF_THE_PLANE = {
    "workloads": ("namespace", "service_account", "plane", "labels", "waypoint"),
    "services": ("waypoint", "traffic_distribution"),
}
"""Fields of a topology that only proxies are told of, besides policies, the trust domain and the protocols of ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has to be done to a lab that is up, so that it is what is asked for now."""

    rest: tuple[str, ...]
    """Differences that only a new lab can have, one line each; empty: it can be changed as it is."""
    links: tuple[str, ...]
    """Names of links whose impairments are others."""
    plane: bool
    """Whether proxies are to be replaced: another plane, or other things that proxies are told."""


def change(was: Mapping[str, Any], wanted: Mapping[str, Any]) -> Change:
    old, new = ({k["a"] + "--" + k["b"]: k for k in made["topology"]["links"]} for made in (was, wanted))
    links = [
        name for name in old if name in new and any(old[name][side] != new[name][side] for side in IMPAIRMENTS)
    ]  # fmt: skip
    options = differences(was, {**wanted, "topology": was["topology"]})
    for_proxies = [line for line in options if line.startswith(("plane: ", "keylog: "))]
    rest = [line for line in options if line not in for_proxies]
    rest += _below("", _structure(was["topology"]), _structure(wanted["topology"]))
    of_plane = _without_impairments(was["topology"]) != _without_impairments(wanted["topology"])
    return Change(rest=tuple(rest), links=tuple(links), plane=bool(for_proxies) or of_plane)


def _without_impairments(topology: Mapping[str, Any]) -> dict[str, Any]:
    links = [{key: value for key, value in link.items() if key not in IMPAIRMENTS} for link in topology["links"]]
    return {**topology, "links": links}


def _structure(topology: Mapping[str, Any]) -> dict[str, Any]:
    """What namespaces, addresses, routes and applications are made of."""
    made = {**_without_impairments(topology), "policies": [], "trust_domain": ""}
    for part, fields in OF_THE_PLANE.items():
        made[part] = [{key: value for key, value in one.items() if key not in fields} for one in made[part]]
    for service in made["services"]:
        service["ports"] = [{**port, "protocol": ""} for port in service["ports"]]
    return made


def told(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])


def _below(path: str, was: Any, wanted: Any) -> list[str]:
    if was == wanted:
        return []
    if isinstance(was, Mapping) and isinstance(wanted, Mapping):
        return [line for key in {**was, **wanted} for line in _below(_join(path, key), was.get(key), wanted.get(key))]
    before, after = _by_name(was), _by_name(wanted)
    if before is None or after is None:
        return [f"{path}: {_shown(was)} → {_shown(wanted)}"]
    lines = []
    for name in {**before, **after}:
        if name not in after:
            lines.append(f"{path} {name}: no longer there")
        elif name not in before:
            lines.append(f"{path} {name}: new")
        else:
            lines += _below(f"{path} {name}", before[name], after[name])
    return lines or [f"{path}: another order"]


def _by_name(items: Any) -> dict[str, Any] | None:
    """Items of a list that have names of their own; None where it is not such a list."""
    if not isinstance(items, Sequence) or isinstance(items, str):
        return None
    named: dict[str, Any] = {}
    for item in items:
        if not isinstance(item, Mapping):
            return None
        if "a_to_b" in item:
            name = f"{item['a']}--{item['b']}"
        else:
            parts = [item.get(key) for key in ("kind", "namespace", "name") if key in item]
            name = "/".join(map(str, parts))
        if not name or name in named:
            return None
        named[name] = item
    return named


def _join(path: str, key: str) -> str:
    return f"{path}: {key}" if path else key


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
