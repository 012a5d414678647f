"""What a proxy writes into a request of its own, and what it takes out."""

from __future__ import annotations

import random
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planes.l7.edit import FieldEdit, certificate_entry, continue_trace, new_request_id, new_trace, stamp, with_attempt
from testbed.model.traffic import HeaderEdits

BITS = random.Random(1).getrandbits
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def stamped(*fields: tuple[bytes, bytes], **more: object) -> dict[bytes, bytes]:
    return dict(stamp(list(fields), secure=False, random_bits=BITS, **more))  # type: ignore[arg-type]


def test_a_request_without_id_is_given_a_uuid() -> None:
    """Version 4, another each time."""
    first, second = (stamped()[b"x-request-id"].decode() for _ in range(2))

    assert uuid.UUID(first).version == 4
    assert str(uuid.UUID(first)) == first != second


@given(st.integers(0, 2**128 - 1))
def test_request_ids_are_uuids_whatever_the_bits(bits: int) -> None:
    """Version and variant are in their places."""
    found = uuid.UUID(new_request_id(lambda _: bits).decode())
    assert (found.version, found.variant) == (4, uuid.RFC_4122)


def test_an_id_is_kept_inside_and_replaced_at_the_edge() -> None:
    """Envoy keeps even one that is no UUID."""
    own = (b"x-request-id", b"mine")

    assert stamped(own)[b"x-request-id"] == b"mine"
    assert stamped(own, edge=True)[b"x-request-id"] != b"mine"
    assert stamped((b"x-request-id", b""))[b"x-request-id"] != b""


def test_forwarded_proto_is_kept_or_told() -> None:
    """By whether the client's connection was TLS."""
    assert stamped()[b"x-forwarded-proto"] == b"http"
    assert dict(stamp([], secure=True, random_bits=BITS))[b"x-forwarded-proto"] == b"https"
    assert stamped((b"x-forwarded-proto", b"https"))[b"x-forwarded-proto"] == b"https"
    assert stamped((b"x-forwarded-proto", b"https"), edge=True)[b"x-forwarded-proto"] == b"http"


def test_forwarded_for_and_others_pass_in_order() -> None:
    """Istio's proxies inside the mesh do not append to x-forwarded-for; a caller's fields are not touched in place."""
    fields = [(b"x-forwarded-for", b"1.2.3.4"), (b"a", b"1"), (b"a", b"2")]
    before = list(fields)

    assert stamp(fields, secure=False, random_bits=BITS)[:3] == before == fields


@pytest.mark.parametrize("name", [b"x-envoy-retry-on", b"x-envoy-max-retries", b"x-envoy-upstream-rq-timeout-ms"])
def test_orders_to_envoy_are_taken_out(name: bytes) -> None:
    """A client cannot set a proxy's retries."""
    assert name not in stamped((name, b"5"))


def test_who_called_is_told_by_certificate_only() -> None:
    """Without mutual TLS whatever the client said of itself is dropped; with it an entry is added behind."""
    said = (b"x-forwarded-client-cert", b"By=x")
    entry = certificate_entry("spiffe://t/ns/n/sa/b", "ab" * 32, "spiffe://t/ns/n/sa/a")

    assert b"x-forwarded-client-cert" not in stamped(said)
    assert stamped(client_cert=entry)[b"x-forwarded-client-cert"] == (
        b"By=spiffe://t/ns/n/sa/b;Hash=" + b"ab" * 32 + b';Subject="";URI=spiffe://t/ns/n/sa/a'
    )
    assert stamped(said, client_cert=entry)[b"x-forwarded-client-cert"] == b"By=x," + entry


def test_a_trace_is_continued_with_a_span_of_our_own() -> None:
    """Same trace, same flags, tracestate along."""
    found = stamped((b"traceparent", TRACE), (b"tracestate", b"a=b"), sampled=False)

    version, trace, span, flags = found[b"traceparent"].split(b"-")
    assert (version, trace, flags) == (b"00", TRACE[3:35], b"01")
    assert span != TRACE[36:52] and re.fullmatch(rb"[0-9a-f]{16}", span)
    assert found[b"tracestate"] == b"a=b"


@pytest.mark.parametrize(
    "parent",
    [
        b"", b"x", TRACE.upper(), TRACE[:-1], TRACE + b"-x", b"ff" + TRACE[2:], TRACE.replace(TRACE[3:35], b"0" * 32),
        TRACE.replace(TRACE[36:52], b"0" * 16), b"01" + TRACE[2:] + b"x", TRACE.replace(b"-", b"_"),
    ],
)  # fmt: skip
def test_an_invalid_trace_is_begun_anew(parent: bytes) -> None:
    """W3C Trace Context 3.2.2; its tracestate goes with it."""
    assert continue_trace(parent, BITS) is None
    found = stamped((b"traceparent", parent), (b"tracestate", b"a=b"), sampled=True)
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", found[b"traceparent"])
    assert found[b"traceparent"][3:35] != TRACE[3:35]
    assert b"tracestate" not in found


def test_a_later_version_is_read_by_its_known_part() -> None:
    """And written as ours."""
    continued = continue_trace(b"01" + TRACE[2:] + b"-more", BITS)
    assert continued is not None and continued.startswith(TRACE[:36])


def test_without_tracing_trace_fields_pass() -> None:
    """Nothing is begun either."""
    assert stamped((b"traceparent", TRACE))[b"traceparent"] == TRACE
    assert b"traceparent" not in stamped()
    assert new_trace(BITS, sampled=False).endswith(b"-00")


def test_attempts_are_counted_for_the_upstream() -> None:
    """One field, whatever came (stamping drops a client's); the timeout beside it in milliseconds."""
    assert b"x-envoy-attempt-count" not in stamped((b"x-envoy-attempt-count", b"9"))
    assert with_attempt([(b"a", b"1")], 2, 1.5) == [
        (b"a", b"1"), (b"x-envoy-attempt-count", b"2"), (b"x-envoy-expected-rq-timeout-ms", b"1500"),
    ]  # fmt: skip
    assert with_attempt([], 1) == [(b"x-envoy-attempt-count", b"1")]


def test_field_edits_remove_set_and_add() -> None:
    """Set replaces every one of its name, add leaves them."""
    edit = FieldEdit(HeaderEdits(set=(("A", "1"),), add=(("b", "2"),), remove=("C",)))
    fields = [(b"a", b"0"), (b"b", b"0"), (b"c", b"0"), (b"a", b"0")]

    assert edit.apply(fields) == [(b"b", b"0"), (b"a", b"1"), (b"b", b"2")]
    assert edit.authority is None
    assert FieldEdit(HeaderEdits(set=((":authority", "x"),))).authority == b"x"
