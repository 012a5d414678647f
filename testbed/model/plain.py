"""Frozen values to plain JSON and back, by their annotations: what a placement hands to a proxy's process.

Fields at their default are left out. Reading is strict: an unknown key or a value of another type raises ValueError
with its path, for only our own writer should have made it.
"""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar


def to_plain(value: object) -> Any:
    if is_dataclass(value):
        return {
            f.name: to_plain(held) for f in fields(value) if f.init and (held := getattr(value, f.name)) != _default(f)
        }
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    return value


T = TypeVar("T")


def from_plain(kind: type[T], raw: object, where: str = "") -> T:
    """The inverse of `to_plain` for a value of type `kind`."""
    return _read(kind, raw, where or kind.__name__)


def _default(f: Field) -> object:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else MISSING


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.init}


def _read(kind: Any, raw: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or origin is types.UnionType:
        if raw is None and types.NoneType in arguments:
            return None
        (kind,) = (a for a in arguments if a is not types.NoneType)  # unions of several kinds are not written
        return _read(kind, raw, where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ValueError(f"{where}: must be a list, not {raw!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(raw))
        if len(arguments) != len(raw):
            raise ValueError(f"{where}: must have {len(arguments)} entries, not {len(raw)}")
        return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, raw, strict=True)))
    if is_dataclass(kind):
        return _value(kind, raw, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError:
            raise ValueError(f"{where}: {raw!r} is none of {[m.value for m in kind]}") from None
    if kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not kind:
        raise ValueError(f"{where}: must be {kind.__name__}, not {raw!r}")
    return raw


def _value(kind: Any, raw: Any, where: str) -> Any:
    hints = _hints(kind)
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: must be an object, not {raw!r}")
    if unknown := set(raw) - set(hints):
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}; known: {', '.join(hints)}")
    try:
        return kind(**{name: _read(hints[name], held, f"{where}.{name}") for name, held in raw.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
