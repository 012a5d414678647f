"""Edits of heads: what routes ask for, and what a proxy writes of its own. Pure; no `fields` is changed in place."""

from __future__ import annotations

import re
from collections.abc import Callable

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


# -- what a proxy itself writes into a request

RandomBits = Callable[[int], int]
_OVERRIDES = frozenset(
    b"x-envoy-" + name
    for name in (
        b"retry-on", b"retry-grpc-on", b"max-retries", b"upstream-alt-stat-name", b"upstream-rq-timeout-ms",
        b"upstream-rq-per-try-timeout-ms", b"upstream-rq-timeout-alt-response", b"expected-rq-timeout-ms",
        b"force-trace", b"ip-tags", b"retriable-status-codes", b"retriable-header-names", b"hedge-on-per-try-timeout",
    )
)  # fmt: skip
"""Envoy's orders by header; it drops them from requests it does not hold for internal, which without
`use_remote_address` and `x-forwarded-for` is every one. None of them is obeyed here."""
_WATCHED = _OVERRIDES | {
    b"x-request-id", b"x-forwarded-proto", b"x-forwarded-client-cert", b"traceparent", b"tracestate",
    b"x-envoy-attempt-count",
}  # fmt: skip


def stamp(
    fields: Fields,
    *,
    secure: bool,
    random_bits: RandomBits,
    client_cert: bytes | None = None,
    edge: bool = False,
    sampled: bool | None = None,
) -> Fields:
    """A request's fields as they go on: with request id, x-forwarded-proto, and who called.

    As in Istio's sidecars and waypoints (`use_remote_address: false`): x-forwarded-for is left as it is; a request id
    is kept whatever it says, but at the `edge`; x-forwarded-proto is kept, or tells whether the client's connection was
    `secure`. `client_cert` is an entry for x-forwarded-client-cert (`certificate_entry`); None drops the field.
    `sampled` None: no tracing, trace fields pass; else a trace is continued, or begun with that flag.
    """
    watched, kept, found = _WATCHED, [], {}
    for pair in fields:
        if pair[0] in watched:
            found[pair[0]] = pair[1]
        else:
            kept.append(pair)
    identifier = b"" if edge else found.get(b"x-request-id", b"")
    proto = b"" if edge else found.get(b"x-forwarded-proto", b"")
    kept.append((b"x-request-id", identifier or new_request_id(random_bits)))
    kept.append((b"x-forwarded-proto", proto or (b"https" if secure else b"http")))
    if client_cert is not None:
        before = found.get(b"x-forwarded-client-cert")
        kept.append((b"x-forwarded-client-cert", before + b"," + client_cert if before else client_cert))
    parent, state = found.get(b"traceparent"), found.get(b"tracestate")
    if sampled is not None:
        continued = continue_trace(parent, random_bits) if parent is not None else None
        state = state if continued is not None else None
        parent = continued or new_trace(random_bits, sampled=sampled)
    if parent is not None:
        kept.append((b"traceparent", parent))
    if state is not None:
        kept.append((b"tracestate", state))
    return kept


def new_request_id(random_bits: RandomBits) -> bytes:
    """A random UUID (version 4) as text."""
    bits = random_bits(128) & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
    text = bits.to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


def certificate_entry(own_uri: str, certificate_sha256: str, peer_uri: str) -> bytes:
    """What a sidecar says of its mTLS client to its application, in Envoy's form."""
    return f'By={own_uri};Hash={certificate_sha256};Subject="";URI={peer_uri}'.encode()


_FIRST = (b"x-envoy-attempt-count", b"1")


def with_attempt(fields: Fields, tries: int, timeout_s: float | None = None) -> Fields:
    """For one try towards an upstream: which one it is, and how long there is at most.

    `fields` went through `stamp`, which drops what came.
    """
    kept = [*fields, _FIRST if tries == 1 else (b"x-envoy-attempt-count", b"%d" % tries)]
    if timeout_s:
        kept.append((b"x-envoy-expected-rq-timeout-ms", b"%d" % round(timeout_s * 1000)))
    return kept


# -- W3C trace context

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def continue_trace(parent: bytes, random_bits: RandomBits) -> bytes | None:
    """The same trace and flags with a span of our own; None where `parent` is not valid (Trace Context 3.2.2)."""
    match = _PARENT.fullmatch(parent)
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or not trace.strip(b"0") or not span.strip(b"0"):
        return None
    # of a later version we know these four fields only, and so write ours
    return b"00-%b-%b-%b" % (trace, _span(random_bits), flags)


def new_trace(random_bits: RandomBits, *, sampled: bool) -> bytes:
    return b"00-%032x-%b-%b" % (random_bits(128) or 1, _span(random_bits), b"01" if sampled else b"00")


def _span(random_bits: RandomBits) -> bytes:
    return b"%016x" % (random_bits(64) or 1)
