"""How values are taken from the `Item`s of Istio's resources: times, lists, labels, patterns, once read by shapes."""

from __future__ import annotations

import re

from testbed.model.traffic import Labels
from testbed.yamlpos import Item, Reader

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def seconds(duration: str) -> float:
    """Of Go's notation, `1m30s`; its form has been checked."""
    return sum(float(n) * _UNITS_S[unit] for n, unit in re.findall(r"([0-9.]+)(h|ms|m|us|ns|s)", duration))


def time_s(item: Item, key: str) -> float | None:
    child = item.child(key)
    return seconds(child.value) if child is not None else None


def texts(item: Item, key: str) -> tuple[str, ...]:
    return tuple(v.value for v in item.each(key))


def labels(item: Item, key: str) -> Labels:
    return tuple(sorted((name, v.value) for name, v in item.items(key)))


def named(item: Item) -> tuple[str, str]:
    metadata = item.value["metadata"]
    return metadata.get("name"), metadata.get("namespace", "default")


def spec_of(item: Item) -> Item:
    return item.child("spec") or Item({}, item.mark)


def kept(item: Item, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if item.child(name) is not None)


def children(item: Item, key: str) -> list[Item]:
    child = item.child(key)
    return [child] if child is not None else []


def check_pattern(item: Item, reader: Reader) -> None:
    try:
        re.compile(item.value)
    except re.error as error:
        reader.problem(item.mark, f"not a regular expression ({item.value!r}: {error})", "write it in RE2's syntax")
