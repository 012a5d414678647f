"""Header blocks received, and what makes a CONNECT or its answer malformed (RFC 9113 §8.2, §8.3, §8.5)."""

from __future__ import annotations

import re

from planes.mesh.frames import STATUS_200

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]\Z")
_CONNECTION_SPECIFIC = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))


class MalformedRequest(ValueError):
    """A stream error, answered with RST_STREAM(PROTOCOL_ERROR)."""


class MalformedResponse(ValueError):
    """A stream error as well."""


class HeaderReader:
    """Decodes the blocks of one direction; the hpack library is loaded by the first block that needs it."""

    __slots__ = ("_decoder", "_limit")

    def __init__(self, max_list_bytes: int) -> None:
        self._limit = max_list_bytes
        self._decoder = None

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Raises OverflowError for too long a list, ValueError for bytes that are no header block."""
        if block == STATUS_200:
            return [(b":status", b"200")]
        import hpack

        if self._decoder is None:
            self._decoder = hpack.Decoder(max_header_list_size=self._limit)
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as cause:
            raise OverflowError("header list") from cause
        except (hpack.HPACKError, UnicodeDecodeError, IndexError) as cause:
            raise ValueError("header block") from cause


def _pseudo_fields(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Raises ValueError where names or order break §8.2 and §8.3."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo:
                raise ValueError("a pseudo-header field is late or double")
            pseudo[name] = value
            continue
        regular = True
        if not _NAME.fullmatch(name) or name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
            raise ValueError(f"field {name!r} is not allowed")
        if _BAD_VALUE.search(value):
            raise ValueError(f"value of {name!r} is not allowed")
    return pseudo


def check_request(fields: list[tuple[bytes, bytes]]) -> None:
    """A CONNECT without `:authority` passes: answered with 400 (facts/hbone 1.5) by the inbound side."""
    try:
        pseudo = _pseudo_fields(fields)
    except ValueError as cause:
        raise MalformedRequest(str(cause)) from cause
    if b":method" not in pseudo or not _REQUEST_PSEUDO.issuperset(pseudo):
        raise MalformedRequest("pseudo-header fields of a request are missing or unknown")
    if pseudo[b":method"] == b"CONNECT" and not pseudo.keys().isdisjoint((b":scheme", b":path", b":protocol")):
        raise MalformedRequest("CONNECT must not carry :scheme, :path or :protocol")


def check_response(fields: list[tuple[bytes, bytes]]) -> int:
    try:
        pseudo = _pseudo_fields(fields)
    except ValueError as cause:
        raise MalformedResponse(str(cause)) from cause
    status = pseudo.get(b":status", b"")
    if len(pseudo) != 1 or len(status) != 3 or not status.isdigit():
        raise MalformedResponse("a response has exactly one :status of three digits")
    return int(status)
