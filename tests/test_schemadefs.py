"""A schema with definitions says what it said without."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema
import pytest
import yaml

from testbed import schemadefs, topofields, topofile

PORT = {"type": "integer", "description": "port of a service", "minimum": 1, "maximum": 65535}
PAIR = {"type": "object", "description": "a pair", "properties": {"a": PORT, "b": {"type": "string"}}}
SHIPPED = sorted(topofile.shipped())


def test_what_stands_twice_stands_once_under_its_name() -> None:
    """The rest stays where it is; the port, which stands in one thing only, stays inside that."""
    schema = {"type": "object", "properties": {"x": PAIR, "y": {"type": "array", "items": PAIR}, "z": {"type": "null"}}}

    ref = {"$ref": "#/$defs/aPair"}
    assert schemadefs.shared(schema) == {
        "type": "object",
        "properties": {"x": ref, "y": {"type": "array", "items": ref}, "z": {"type": "null"}},
        "$defs": {"aPair": PAIR},
    }


def test_definitions_refer_to_definitions_and_names_do_not_meet() -> None:
    """A port that also stands alone is shared inside the pair, too; another `a pair` gets a number."""
    other = PAIR | {"required": ["a", "b"], "title": "a pair"}
    schema = {"oneOf": [PAIR, other, {"items": PAIR}, {"items": other}, PORT]}

    made = schemadefs.shared(schema)
    assert set(made["$defs"]) == {"aPair", "aPair2", "portOfAService"}
    assert made["$defs"]["aPair"]["properties"]["a"] == {"$ref": "#/$defs/portOfAService"}


def test_keys_that_only_look_like_a_schema_are_left_alone() -> None:
    """Values of `enum`, `const` and `default` are data."""
    schema = {"properties": {"x": {"enum": [PAIR]}, "y": {"const": PAIR}, "z": {"default": {"properties": PAIR}}}}

    assert schemadefs.shared(schema) == schema


def test_a_short_one_is_not_worth_a_reference() -> None:
    """`{"type": "string"}` reads better where it is."""
    schema = {"properties": {"x": {"type": "string"}, "y": {"type": "string"}}}

    assert schemadefs.shared(schema) == schema


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_topology_is_valid_by_both(name: str) -> None:
    """And with a key that nobody knows, at each depth of workloads, by neither."""
    document = yaml.safe_load((topofile.FOLDER / f"{name}.yml").read_text())
    with_defs = jsonschema.Draft202012Validator(topofile.json_schema())
    without = jsonschema.Draft202012Validator(topofields.DOCUMENT.schema())

    assert [error.message for error in with_defs.iter_errors(document)] == []
    assert without.is_valid(document)
    document["workloads"][next(iter(document["workloads"]))]["extra"] = 1
    assert not with_defs.is_valid(document) and not without.is_valid(document)


def test_nothing_long_stands_twice_in_the_shipped_schema() -> None:
    """What made it five times its size."""
    exported = json.loads((topofile.FOLDER / "schema.json").read_text())
    seen: Counter[str] = Counter()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "type" in value or "oneOf" in value:
                seen[json.dumps(value, sort_keys=True)] += 1
            for below in value.values():
                walk(below)
        elif isinstance(value, list):
            for below in value:
                walk(below)

    walk(exported)
    assert len(exported["$defs"]) > 20
    assert [text for text, times in seen.items() if times > 1 and len(text) >= schemadefs.LEAST_LENGTH] == []


@pytest.mark.parametrize("value", [{}, [], {"a": [1, 2.5, None, True, "ü"]}, [{"a": "x" * 200}, ["y" * 60] * 3], "z"])
def test_text_reads_back_as_it_was(value: object) -> None:
    """Whatever the width; lines stay within it where a value can be broken."""
    for width in (1, 20, 200):
        assert json.loads(schemadefs.as_text(value, width=width)) == value
    assert max(map(len, schemadefs.as_text(["y" * 10] * 9, width=40).splitlines())) <= 40
