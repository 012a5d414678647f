"""Matches of routes, compiled: a `RequestMatch` to one test of a head and its path without query. Pure.

Envoy's meaning: paths are compared without query, each line of a header by itself (any may hold), query parameters as
written and by their first value; a regular expression must match the whole (Python's `re` stands for RE2, so an
expression that RE2 refuses, such as one with back references, works here, and may be slow).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from planes.l7.message import Fields, Request
from testbed.model.traffic import NamedMatch, RequestMatch, TextKind, TextMatch

Test = Callable[[Request, bytes], object]
BytesTest = Callable[[bytes], object]


def compiled(match: RequestMatch) -> Test | None:
    """None: it always holds. What concerns the client or the port (labels, namespace, gateways) is not asked here."""
    tests: list[Test] = []
    if match.uri is not None and not is_everything(match.uri):
        tests.append(_of_path(text_test(match.uri)))
    if match.method is not None:
        tests.append(_of(text_test(match.method), "method"))
    if match.scheme is not None:
        tests.append(_of(text_test(match.scheme), "scheme"))
    if match.authority is not None:
        tests.append(_of(text_test(match.authority), "authority"))
    tests += [_header(m) for m in match.headers]
    tests += [_without(m) for m in match.without_headers]
    tests += [_parameter(m) for m in match.query]
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]

    def every(request: Request, path: bytes) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs a frame per request
            if not test(request, path):
                return False
        return True

    return every


def is_everything(uri: TextMatch) -> bool:
    return uri.kind in (TextKind.PREFIX, TextKind.SEGMENTS) and uri.value in ("/", "")


def text_test(match: TextMatch) -> BytesTest:
    value = match.value.encode()
    if match.kind is TextKind.PRESENT:
        return lambda text: True
    if match.kind is TextKind.REGEX:
        # no IGNORECASE: Istio says that ignoreUriCase is for exact and prefix only
        return re.compile(value).fullmatch
    if match.ignore_case:
        plain = text_test(TextMatch(kind=match.kind, value=match.value.lower()))
        return lambda text: plain(text.lower())
    if match.kind is TextKind.EXACT:
        return value.__eq__
    if match.kind is TextKind.SEGMENTS:
        whole = value.rstrip(b"/")
        under = whole + b"/"
        return lambda text: text == whole or text.startswith(under)
    return lambda text: text.startswith(value)


def specificity(match: RequestMatch) -> tuple[int, int, bool, int, int]:
    """The greater goes first among an HTTPRoute's: exact, then longest path, then method, headers, parameters."""
    uri = match.uri or TextMatch(kind=TextKind.SEGMENTS, value="/")
    rank = {TextKind.EXACT: 3, TextKind.SEGMENTS: 2, TextKind.PREFIX: 2, TextKind.REGEX: 1}.get(uri.kind, 0)
    return rank, len(uri.value), match.method is not None, len(match.headers), len(match.query)


def _of_path(test: BytesTest) -> Test:
    return lambda request, path: test(path)


def _of(test: BytesTest, attribute: str) -> Test:
    if attribute == "method":
        return lambda request, path: test(request.method)
    if attribute == "scheme":
        return lambda request, path: test(request.scheme)
    return lambda request, path: test(request.authority)


def _without(match: NamedMatch) -> Test:
    """As istiod has it: but for bare presence, a header that is not there counts as an empty one."""
    holds = _header(match)
    if is_presence(match.text) or not text_test(match.text)(b""):
        return lambda request, path: not holds(request, path)
    name = match.name.lower().encode()
    if name in (b"host", b":authority", b":method"):
        return lambda request, path: not holds(request, path)
    return lambda request, path: any(key == name for key, _ in request.fields) and not holds(request, path)


def is_presence(text: TextMatch) -> bool:
    return text.kind is TextKind.PRESENT or (text.kind is TextKind.PREFIX and not text.value)


def _header(match: NamedMatch) -> Test:
    name, test = match.name.lower().encode(), text_test(match.text)
    if name in (b"host", b":authority"):
        return _of(test, "authority")
    if name == b":method":
        return _of(test, "method")

    def holds(request: Request, path: bytes) -> object:
        return any(key == name and test(value) for key, value in request.fields)

    return holds


def joined(fields: Fields, name: bytes) -> bytes | None:
    """The values of a field as one, with commas (RFC 9110 5.3); None where it is absent."""
    held = [value for key, value in fields if key == name]
    if len(held) < 2:
        return held[0] if held else None
    return b",".join(held)


def _parameter(match: NamedMatch) -> Test:
    name, test = match.name.encode(), text_test(match.text)

    def holds(request: Request, path: bytes) -> object:
        value = parameter(request.path, name)
        return value is not None and test(value)

    return holds


def parameter(path: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter, as written; None where it is absent."""
    _, mark, query = path.partition(b"?")
    if mark:
        for pair in query.split(b"&"):
            key, _, value = pair.partition(b"=")
            if key == name:
                return value
    return None


def most_specific_first(matches: Sequence[tuple[RequestMatch, object]]) -> list[tuple[RequestMatch, object]]:
    """Equals keep their order."""
    return sorted(matches, key=lambda pair: specificity(pair[0]), reverse=True)
