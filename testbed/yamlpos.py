"""Shapes: one description of a YAML document from which come its strict reading, with positions, and its JSON Schema.

A shape reads a composed YAML node to an `Item` and notes every problem in a `Reader` instead of stopping at the
first; the same object gives `schema()`, so what an editor accepts and what we accept cannot drift. Nothing here knows
topologies.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

MOST_ALIASED = 100_000
"""Values that a document may come to by its aliases: 500 bytes can come to a billion."""
LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
"""A DNS label, as Kubernetes wants names."""


@dataclass(frozen=True, slots=True)
class Item:
    """A value as read, with the place it stood at. A mapping's value is a dict of Items, a sequence's a list."""

    value: Any
    mark: yaml.Mark
    keys: Mapping[str, yaml.Mark] = field(default_factory=dict)
    """Of a mapping: where each key stands."""

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a key that holds a scalar."""
        child = self.value.get(key)
        return default if child is None else child.value

    def child(self, key: str) -> Item | None:
        return self.value.get(key)

    def items(self, key: str) -> Iterator[tuple[str, Item]]:
        """Entries of the mapping under `key`; none when it is absent."""
        child = self.value.get(key)
        return iter(child.value.items() if child is not None else ())

    def each(self, key: str) -> list[Item]:
        """Elements of the sequence under `key`; none when it is absent."""
        child = self.value.get(key)
        return child.value if child is not None else []

    def plain(self) -> Any:
        """Without positions."""
        if isinstance(self.value, dict):
            return {k: v.plain() if isinstance(v, Item) else v for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() if isinstance(v, Item) else v for v in self.value]
        return self.value


@dataclass(slots=True)
class Reader:
    """Collects the problems of one or several files; `filename` is the one being read."""

    filename: str
    problems: list[str] = field(default_factory=list)

    def problem(self, mark: yaml.Mark, what: str, mend: str) -> None:
        self.problems.append(f"{self.filename}:{mark.line + 1}:{mark.column + 1}: {what}; {mend}")

    def documents(self, text: str) -> list[yaml.Node]:
        """The composed documents; a syntax error is a problem and ends the list."""
        nodes: list[yaml.Node] = []
        try:
            nodes.extend(node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None)
        except yaml.MarkedYAMLError as error:
            what, mark = f"not YAML: {error.problem or error.context}", error.problem_mark or error.context_mark
            if mark is None:
                self.problems.append(f"{self.filename}:1:1: {what}; mend the syntax")
            else:
                self.problem(mark, what, "mend the syntax there")
        except (yaml.YAMLError, RecursionError) as error:  # characters that YAML does not allow; endless nesting
            self.problems.append(
                f"{self.filename}:1:1: not YAML: {' '.join(str(error).split())}; save it as plain text"
            )
        for node in nodes:
            counted: dict[int, int] = {}
            size = _written_out(node, counted)
            if size > MOST_ALIASED and size > 10 * len(counted):
                self.problem(node.start_mark, f"aliases stand for {size} values", "write fewer aliases of aliases")
                return []
        return nodes


def _written_out(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many nodes there are with each alias replaced by what it stands for; one to itself counts once."""
    known = counted.get(id(node))
    if known is not None:
        return known
    counted[id(node)] = 1
    if isinstance(node, yaml.MappingNode):
        counted[id(node)] = 1 + sum(_written_out(k, counted) + _written_out(v, counted) for k, v in node.value)
    elif isinstance(node, yaml.SequenceNode):
        counted[id(node)] = 1 + sum(_written_out(held, counted) for held in node.value)
    return counted[id(node)]


class Shape(Protocol):
    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        """None after a problem that leaves nothing to go on with."""
        ...

    def schema(self) -> dict[str, Any]: ...


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: …`, the mend for a name that is not known."""
    names = sorted({str(name) for name in known})
    lowered = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    hint = f"did you mean {lowered[close[0]]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    what: str
    pattern: str | None = None
    mend: str = ""
    choices: tuple[str, ...] = ()

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        value = _scalar(node)
        if not isinstance(value, str):
            quoted = (
                f'write "{node.value}" in quotes' if isinstance(node, yaml.ScalarNode) and node.value else "write text"
            )
            reader.problem(node.start_mark, f"{self.what} must be text, not {_kind(node)} ({_show(node)})", quoted)
            return None
        if self.choices and value not in self.choices:
            reader.problem(node.start_mark, f"unknown {self.what} ({value!r})", suggestion(value, self.choices))
            return None
        if self.pattern and not re.search(self.pattern, value):
            reader.problem(
                node.start_mark, f"bad {self.what} ({value!r})", self.mend or f"it must match {self.pattern}"
            )
            return None
        return Item(value, node.start_mark)

    def schema(self) -> dict[str, Any]:
        result: dict[str, Any] = {"type": "string", "description": self.what}
        if self.choices:
            result["enum"] = list(self.choices)
        if self.pattern:
            result["pattern"] = self.pattern
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    what: str
    minimum: float
    maximum: float
    integer: bool = False
    above: Callable[[float], tuple[str, str]] | None = None
    """(what, mend) for a value over the maximum, where a usual mistake is behind it."""
    or_zero: bool = False
    """0 is allowed too, though below the minimum."""

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        value = _scalar(node)
        kind = "a whole number" if self.integer else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            # Not for 1e3, which YAML 1.1 takes for text: its 1 is another number
            plain = r"[-+]?[0-9.]*[0-9](?![eE0-9.])"
            digits = re.match(plain, node.value) if isinstance(node, yaml.ScalarNode) else None
            mend = f"write {digits[0]} without unit or quotes" if digits else f"write {kind}"
            reader.problem(node.start_mark, f"{self.what} must be {kind}, not {_kind(node)} ({_show(node)})", mend)
            return None
        if self.integer and value not in (float("inf"), float("-inf")) and value != int(value):
            reader.problem(node.start_mark, f"{self.what} must be a whole number ({value})", f"write {round(value)}")
            return None
        if value > self.maximum and self.above is not None:
            reader.problem(node.start_mark, *self.above(value))
            return None
        if not self.minimum <= value <= self.maximum and not (self.or_zero and value == 0):
            bounds = f"it must be {'0, or ' if self.or_zero else ''}from {self.minimum:g} to {self.maximum:g}"
            reader.problem(node.start_mark, f"{self.what} is out of range ({value:g})", bounds)
            return None
        return Item(int(value) if self.integer else float(value), node.start_mark)

    def schema(self) -> dict[str, Any]:
        kind = "integer" if self.integer else "number"
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        allowed = {"anyOf": [{"const": 0}, bounds]} if self.or_zero else bounds
        return {"type": kind, "description": self.what, **allowed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    what: str

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        value = _scalar(node)
        if not isinstance(value, bool):
            what = f"{self.what} must be true or false, not {_kind(node)} ({_show(node)})"
            reader.problem(node.start_mark, what, "write true or false without quotes")
            return None
        return Item(value, node.start_mark)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean", "description": self.what}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    what: str
    of: Shape
    minimum: int = 0
    maximum: int | None = None

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        if not isinstance(node, yaml.SequenceNode):
            mend = "write it as a list: [a, b] or lines that begin with -"
            reader.problem(node.start_mark, f"{self.what} must be a list, not {_kind(node)} ({_show(node)})", mend)
            return None
        if len(node.value) < self.minimum or (self.maximum is not None and len(node.value) > self.maximum):
            wanted = f"at least {self.minimum}" if self.maximum is None else f"{self.minimum} to {self.maximum}"
            wanted = str(self.minimum) if self.minimum == self.maximum else wanted
            reader.problem(node.start_mark, f"{self.what} has the wrong length ({len(node.value)})", f"give {wanted}")
            return None
        read = [self.of.read(child, reader) for child in node.value]
        return Item([item for item in read if item is not None], node.start_mark)

    def schema(self) -> dict[str, Any]:
        result: dict[str, Any] = {"type": "array", "description": self.what, "items": self.of.schema()}
        if self.minimum:
            result["minItems"] = self.minimum
        if self.maximum is not None:
            result["maxItems"] = self.maximum
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A mapping from names of the author's choice to one shape."""

    what: str
    of: Shape
    key: str = LABEL
    minimum: int = 0

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        pairs = _pairs(node, self.what, reader)
        if pairs is None:
            return None
        if len(pairs) < self.minimum:
            reader.problem(
                node.start_mark, f"{self.what} has the wrong length ({len(pairs)})", f"give at least {self.minimum}"
            )
        entries: dict[str, Item] = {}
        for name, (key, value) in pairs.items():
            if not re.search(self.key, name):
                mend = _label_mend(name) if self.key == LABEL else f"it must match {self.key}"
                reader.problem(key.start_mark, f"bad name in {self.what} ({name!r})", mend)
            item = self.of.read(value, reader)
            if item is not None:
                entries[name] = item
        return Item(entries, node.start_mark, {name: key.start_mark for name, (key, _) in pairs.items()})

    def schema(self) -> dict[str, Any]:
        result: dict[str, Any] = {"type": "object", "description": self.what, "additionalProperties": self.of.schema()}
        result["propertyNames"] = {"pattern": self.key}
        if self.minimum:
            result["minProperties"] = self.minimum
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A mapping with known keys. `one_of` names keys of which exactly one must be there; `at_most_one` of which not
    two may.
    """

    what: str
    fields: Mapping[str, Shape]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    at_most_one: tuple[tuple[str, str], ...] = ()

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        pairs = _pairs(node, self.what, reader)
        if pairs is None:
            return None
        entries: dict[str, Item] = {}
        for name, (key, value) in pairs.items():
            shape = self.fields.get(name)
            if shape is None:
                reader.problem(key.start_mark, f"unknown key in {self.what} ({name!r})", suggestion(name, self.fields))
            elif (item := shape.read(value, reader)) is not None:
                entries[name] = item
        for name in self.required:
            if name not in pairs:
                reader.problem(node.start_mark, f"{self.what} lacks a key ({name!r})", f"add {name}:")
        present = [name for name in self.one_of if name in pairs]
        if self.one_of and len(present) != 1:
            said = " and ".join(present) or "neither"
            mend = f"give exactly one of {', '.join(self.one_of)}"
            reader.problem(node.start_mark, f"{self.what} must have one of two keys ({said})", mend)
        for first, second in self.at_most_one:
            if first in pairs and second in pairs:
                what = f"{self.what} has two keys that exclude each other ({first}, {second})"
                reader.problem(pairs[second][0].start_mark, what, f"take one of them out: {first} or {second}")
        return Item(entries, node.start_mark, {name: key.start_mark for name, (key, _) in pairs.items()})

    def schema(self) -> dict[str, Any]:
        properties = {name: shape.schema() for name, shape in self.fields.items()}
        result: dict[str, Any] = {"type": "object", "description": self.what, "properties": properties}
        result["additionalProperties"] = False
        if self.required:
            result["required"] = list(self.required)
        if self.one_of:
            result["oneOf"] = [{"required": [name]} for name in self.one_of]
        if self.at_most_one:
            result["not"] = {"anyOf": [{"required": list(pair)} for pair in self.at_most_one]}
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Anything:
    """A value that is kept as it is: resources that we know by name only."""

    what: str
    mapping: bool = False

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        if self.mapping and _pairs(node, self.what, reader) is None:
            return None
        try:
            return Item(_construct(node), node.start_mark)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            reader.problem(
                node.start_mark, f"{self.what} cannot be read ({' '.join(str(error).split())})", "mend it there"
            )
            return None

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "description": self.what} if self.mapping else {"description": self.what}


def _pairs(node: yaml.Node, what: str, reader: Reader) -> dict[str, tuple[yaml.Node, yaml.Node]] | None:
    """Keys and values of a mapping; a key given twice or one that is not text is a problem."""
    if not isinstance(node, yaml.MappingNode):
        mend = "write it as keys and values, each key on its own line"
        reader.problem(node.start_mark, f"{what} must be a mapping, not {_kind(node)} ({_show(node)})", mend)
        return None
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            mend = f'write "{key.value}" in quotes' if isinstance(key, yaml.ScalarNode) else "use a plain name"
            reader.problem(key.start_mark, f"a key in {what} must be text, not {_kind(key)} ({_show(key)})", mend)
        elif key.value in pairs:
            first = pairs[key.value][0].start_mark.line + 1
            reader.problem(
                key.start_mark, f"key given twice in {what} ({key.value!r}, first on line {first})", "take one out"
            )
        else:
            pairs[key.value] = (key, value)
    return pairs


def _construct(node: yaml.Node) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    return constructor.construct_document(node)


def _scalar(node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        return _construct(node)
    except (yaml.YAMLError, ValueError):
        return None


_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true/false",
    "null": "nothing",
    "timestamp": "a date",
}


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return _KINDS.get(node.tag.rpartition(":")[2], node.tag)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _show(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value or "empty"
    return f"{len(node.value)} entries"


def _label_mend(name: str) -> str:
    mended = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63].strip("-")
    rule = "names are lower-case letters, digits and inner dashes, at most 63"
    return f"did you mean {mended!r}? {rule}" if mended and mended != name else rule
