"""Reading JSON objects with all problems kept: each says where, which key, what is wrong and the mend."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

E = TypeVar("E", bound=StrEnum)
MISSING: object = object()
"""As a default: the key must be there."""


class Fields:
    """One JSON object: known keys only, each read by type. A wrong value is a problem and reads as a harmless one."""

    def __init__(
        self, problems: list[str], where: str, raw: object, known: Sequence[str], *, name_key: str | None = None
    ) -> None:
        """`name_key` names the value that identifies the object in messages, beside its position."""
        self.problems = problems
        self.where = where
        self.raw: Mapping[str, object] = {}
        if not isinstance(raw, Mapping):
            problems.append(f"{where}: expected an object, not {raw!r}")
            return
        self.raw = raw
        if name_key is not None and raw.get(name_key):
            self.where = f"{where} ({raw[name_key]})"
        for key in raw:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                self.problem(str(key), f"is not known; {mend}")

    def problem(self, key: str, what: str) -> None:
        self.problems.append(f"{self.where}: {key} {what}")

    def value(self, key: str, default: object) -> object:
        if key in self.raw and self.raw[key] is not None:
            return self.raw[key]
        if default is MISSING and self.raw:
            self.problem(key, "is missing; write it")
        return None if default is MISSING else default

    def text(self, key: str, default: object = "") -> str:
        value = self.value(key, default)
        if value is None or isinstance(value, str):
            return value or ""
        self.problem(key, f"must be text, not {value!r}")
        return ""

    def identity_part(self, key: str) -> str:
        """Text that becomes part of an identity: neither missing nor empty."""
        value = self.text(key, MISSING)
        if value == "" and self.raw.get(key) == "":
            self.problem(key, "is empty, and an identity with an empty part matches no certificate; write it")
        return value

    def number(self, key: str, default: object) -> int:
        value = self.value(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if value is not None:
            self.problem(key, f"must be a whole number, not {value!r}")
        return 0

    def flag(self, key: str) -> bool:
        value = self.value(key, False)
        if isinstance(value, bool):
            return value
        self.problem(key, f"must be true or false, not {value!r}")
        return False

    def items(self, key: str, default: object = ()) -> Sequence[object]:
        value = self.value(key, default)
        if value is None or isinstance(value, list | tuple):
            return value or ()
        self.problem(key, f"must be a list, not {value!r}")
        return ()

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(str(item) for item in self.items(key))

    def mapping(self, key: str, default: object = MISSING) -> Mapping[str, object]:
        value = self.value(key, default)
        if value is None or isinstance(value, Mapping):
            return value or {}
        self.problem(key, f"must be an object, not {value!r}")
        return {}

    def choice(self, key: str, kind: type[E], default: object) -> E:
        value = self.value(key, default)
        return next(iter(kind)) if value is None else self.one_of(key, kind, value)

    def one_of(self, key: str, kind: type[E], value: object) -> E:
        try:
            return kind(value)
        except ValueError:
            self.problem(key, f"is {value!r}; known: {', '.join(kind)}")
            return next(iter(kind))

    def port_map(self, key: str, value: object) -> dict[int, int]:
        """`{service port: target port}`; JSON writes the keys as text."""
        ports = {}
        for service_port, target in value.items() if isinstance(value, Mapping) else ():
            if str(service_port).isdecimal() and isinstance(target, int) and 0 <= target < 65536:
                ports[int(service_port)] = target
            else:
                self.problem(key, f"has {service_port!r}: {target!r}; ports are whole numbers up to 65535")
        if value is not None and not isinstance(value, Mapping):
            self.problem(key, f"must be an object of service port to target port, not {value!r}")
        return ports

    def address(self, key: str, value: object) -> str:
        """An IP address in the one spelling that lookups use."""
        try:
            return str(ipaddress.ip_address(str(value)))
        except ValueError:
            self.problem(key, f"has {value!r}, which is no IP address")
            return ""

    def network_address(self, key: str, value: object) -> tuple[str, str]:
        """`network/ip`; the network is often empty, and the slash is still written."""
        network, slash, address = str(value).partition("/")
        if not slash:
            self.problem(key, f'has {value!r}; write "network/ip", with an empty network "/{value}"')
            return "", ""
        return network, self.address(key, address)

    def cidr(self, key: str) -> str:
        value = self.text(key, MISSING)
        try:
            return str(ipaddress.ip_network(value))
        except ValueError as e:
            self.problem(key, f"is {value!r}: {e}")
            return "0.0.0.0/32"
