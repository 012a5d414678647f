"""A JSON Schema in which what stands several times stands once, under `$defs`. It says the same as before. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

LEAST_LENGTH = 80
"""Shorter ones are easier to read in place than by reference."""
_OF_ONE = ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else", "contains")
_OF_MANY = ("oneOf", "anyOf", "allOf", "prefixItems")
_OF_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs")


def shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Each schema of `LEAST_LENGTH` characters that stands in two places becomes a definition, named by what it says.

    What stands twice only because it is inside something that does stays where it is.
    """
    places: Counter[str] = Counter()
    first: dict[str, Mapping[str, Any]] = {}

    def count(held: Mapping[str, Any]) -> None:
        text = json.dumps(held, sort_keys=True)
        places[text] += 1
        if text not in first:
            first[text] = held
            for below in _below(held):
                count(below)

    for below in _below(schema):
        count(below)
    wanted = [text for text in first if places[text] > 1 and len(text) >= LEAST_LENGTH]
    names: dict[str, str] = {}
    for text in wanted:
        names[text] = _free_name(first[text], set(names.values()))

    def referring(held: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
        name = None if root else names.get(json.dumps(held, sort_keys=True))
        return {"$ref": f"#/$defs/{name}"} if name else _mapped(held, referring)

    defined = {names[text]: referring(first[text], root=True) for text in wanted}
    return {**referring(schema, root=True), **({"$defs": dict(sorted(defined.items()))} if defined else {})}


def _free_name(schema: Mapping[str, Any], taken: set[str]) -> str:
    said = str(schema.get("title") or schema.get("description") or schema.get("type") or "part")
    words = re.findall(r"[A-Za-z0-9]+", said.split(";")[0])[:6]
    name = words[0] + "".join(word[0].upper() + word[1:] for word in words[1:]) if words else "part"
    number = 1
    while (free := name if number == 1 else f"{name}{number}") in taken:
        number += 1
    return free


def _below(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in _OF_ONE:
        if isinstance(schema.get(key), Mapping):
            yield schema[key]
    for key in _OF_MANY:
        yield from (held for held in schema.get(key, ()) if isinstance(held, Mapping))
    for key in _OF_NAMED:
        yield from (held for held in schema.get(key, {}).values() if isinstance(held, Mapping))


def _mapped(schema: Mapping[str, Any], change: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_ONE and isinstance(value, Mapping):
            made[key] = change(value)
        elif key in _OF_MANY:
            made[key] = [change(held) if isinstance(held, Mapping) else held for held in value]
        elif key in _OF_NAMED:
            made[key] = {name: change(held) if isinstance(held, Mapping) else held for name, held in value.items()}
        else:
            made[key] = value
    return made


def as_text(value: Any, *, width: int = 110, indent: int = 0) -> str:
    """JSON, a line for whatever fits into one: as one would write it by hand."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= width or not isinstance(value, dict | list) or not value:
        return flat
    inner, end = " " * (indent + 1), " " * indent
    if isinstance(value, list):
        lines = [inner + as_text(held, width=width, indent=indent + 1) for held in value]
        return "[\n" + ",\n".join(lines) + f"\n{end}]"
    lines = [
        f"{inner}{json.dumps(key)}: " + as_text(held, width=width, indent=indent + 1) for key, held in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{end}}}"
