"""Edits of heads: field modifiers of routes. Pure; a head's `fields` are never changed in place."""

from __future__ import annotations

from planes.l7.message import Fields
from testbed.model.traffic import HeaderEdits


class FieldEdit:
    """A compiled `HeaderEdits`: remove, then set, then add (Envoy's order where one name is in several)."""

    __slots__ = ("_added", "_dropped", "authority")

    def __init__(self, edits: HeaderEdits) -> None:
        pairs = [
            (name.lower().encode(), value.encode(), kept)
            for kept, group in ((False, edits.set), (True, edits.add))
            for name, value in group
        ]
        self.authority = next((v for name, v, _ in pairs if name in (b":authority", b"host")), None)
        """`host` and `:authority` are no fields here; setting them rewrites the authority."""
        pairs = [p for p in pairs if p[0] not in (b":authority", b"host")]
        self._dropped = frozenset(name.lower().encode() for name in edits.remove) | {
            n for n, _, kept in pairs if not kept
        }
        self._added = [(name, value) for name, value, _ in pairs]

    def apply(self, fields: Fields) -> Fields:
        dropped = self._dropped
        kept = [f for f in fields if f[0] not in dropped] if dropped else fields
        return kept + self._added
