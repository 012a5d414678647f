"""Requests and answers in the bytes of one connection, however they are wrapped: ids, and where they stand. Pure.

HTTP/1.1 and HTTP/2 are read in clear, inside opened TLS, and inside CONNECT streams (HBONE), each level by what the
judge reads with. A place is a range of the TCP stream, so that the same bytes can be found again wherever the
connection was captured, also where nothing was opened. Source: RFC 9112 §6 (framing), RFC 9113 §8.1, §8.5.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from testbed.observe import h2frames
from testbed.observe.h2frames import Body, Conversation, Exchange
from testbed.observe.keylog import Plaintext
from testbed.observe.streams import ByteStream
from testbed.verify.evidence import Heard

REQUEST_ID = "x-request-id"
Span = tuple[int, int]
_ID = re.compile(rb"\r\n" + REQUEST_ID.encode() + rb":[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.IGNORECASE)
WITHOUT_BODY = (b"204", b"304")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One request and its answer, as ranges of the two directions' TCP streams."""

    request: str
    """Its id; empty where it bears none."""
    asked: tuple[Span, ...]
    answered: tuple[Span, ...] = ()
    """Empty where no whole answer is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Bytes of one direction at some level, and where each range of them is in the TCP stream."""

    data: bytes
    ranges: Callable[[int, int], list[Span]]


def of_stream(stream: ByteStream) -> Layer:
    """As far as the stream is whole: behind a gap nobody knows where a message begins."""
    return Layer(data=stream.data[: stream.whole_until()], ranges=lambda start, stop: [(start, stop)])


def of_tls(inside: Plaintext) -> Layer:
    """A byte is there once its whole record is: no receiver has it before."""

    def ranges(start: int, stop: int) -> list[Span]:
        first = bisect_right(inside.starts, start) - 1
        last = max(first, bisect_right(inside.starts, stop - 1) - 1)
        return [(inside.records[first][0], inside.records[last][1])]

    return Layer(data=inside.data, ranges=ranges)


def of_body(body: Body, below: Layer) -> Layer:
    def ranges(start: int, stop: int) -> list[Span]:
        return [span for outer in body.spans(start, stop) for span in below.ranges(*outer)]

    return Layer(data=body.data, ranges=ranges)


def said(heard: Heard) -> list[Said]:
    """Whatever could be read of the connection; nothing of one that could not be opened."""
    connection = heard.connection
    if heard.tls is not None:
        client, server = of_tls(heard.tls.client), of_tls(heard.tls.server)
    else:
        client, server = of_stream(connection.forward), of_stream(connection.backward)
    if heard.conversation is not None:
        return list(_http2(heard.conversation, client, server))
    return list(_read(client, server))


def _read(client: Layer, server: Layer) -> Iterator[Said]:
    if h2frames.begins_h2(client.data):
        yield from _http2(h2frames.converse(client.data, server.data), client, server)
    else:
        yield from _http1(client, server)


def _http2(conversation: Conversation, client: Layer, server: Layer) -> Iterator[Said]:
    for exchange in conversation.exchanges:
        if exchange.is_connect:
            yield from _read(of_body(exchange.sent, client), of_body(exchange.received, server))
            continue
        answered = _exchange_spans(exchange, sent=False) if exchange.status is not None else []
        yield Said(
            request=exchange.header(REQUEST_ID) or "",
            asked=_below(client, _exchange_spans(exchange, sent=True)),
            answered=_below(server, answered),
        )


def _exchange_spans(exchange: Exchange, *, sent: bool) -> list[Span]:
    body = exchange.sent if sent else exchange.received
    blocks = exchange.asked if sent else exchange.answered
    return [*(block.span for block in blocks), *body.spans(0, len(body.data))]


def _below(layer: Layer, spans: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(found for span in spans for found in layer.ranges(*span))


def _http1(client: Layer, server: Layer) -> Iterator[Said]:
    """Answers come in the order of requests (RFC 9112 §9.3)."""
    answers = iter(list(http1_messages(server.data, answers=True)))
    for start, stop, head in http1_messages(client.data, answers=False):
        found = _ID.search(head)
        answer = next(answers, None)
        yield Said(
            request=found[1].decode("latin-1") if found else "",
            asked=tuple(client.ranges(start, stop)),
            answered=tuple(server.ranges(answer[0], answer[1])) if answer else (),
        )


def http1_messages(data: bytes, *, answers: bool) -> Iterator[tuple[int, int, bytes]]:
    """(start, stop, head) of each whole message; ends before the first that is not whole or no HTTP. Interim answers
    (1xx) are passed over: they belong to the answer that follows."""
    at = 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        head = data[at : end + 4]
        first = head[: head.find(b"\r\n")]
        if first.startswith(b"HTTP/1.") != answers or not (answers or first.endswith((b" HTTP/1.1", b" HTTP/1.0"))):
            return
        status = first[9:12] if answers else b""
        if status[:1] == b"1":
            at = end + 4
            continue
        stop = _body_end(data, end + 4, head, empty=status in WITHOUT_BODY, answers=answers)
        if stop is None:
            return
        yield at, stop, head
        at = stop


def _body_end(data: bytes, at: int, head: bytes, *, empty: bool, answers: bool) -> int | None:
    """Where the body that begins at `at` ends; None where its end is not there."""
    if empty:
        return at
    if _CHUNKED.search(head):
        return _chunks_end(data, at)
    length = _LENGTH.search(head)
    if length is None:
        return None if answers else at  # an answer that ends with its connection: its end is nobody's to tell here
    stop = at + int(length[1])
    return stop if stop <= len(data) else None


def _chunks_end(data: bytes, at: int) -> int | None:
    while (line := data.find(b"\r\n", at)) >= 0:
        try:
            size = int(data[at:line].partition(b";")[0], 16)
        except ValueError:
            return None
        if size:
            at = line + 2 + size + 2
            continue
        at = line + 2
        while (line := data.find(b"\r\n", at)) > at:  # trailers
            at = line + 2
        return line + 2 if line >= 0 else None
    return None
