"""What a connection's first bytes are taken for: more of them never changes an answer once given.

Else a client could be judged as one protocol by how its bytes were cut, and served as another.
"""

from __future__ import annotations

from planes.l7.clienthello import NotTls, read_client_hello
from planes.l7.detect import Detected, detect


def _hello(data: bytes) -> object:
    try:
        return read_client_hello(data)
    except NotTls:
        return "no TLS"


def _first(answers: list[object]) -> object:
    return next((answer for answer in answers if answer is not None), None)


def hello(data: bytes) -> None:
    whole = _hello(data)
    step = max(1, len(data) // 300)
    told = _first([_hello(data[:end]) for end in (*range(0, len(data), step), len(data))])
    assert told == whole, f"{told} by parts, {whole} at once"


def protocol(data: bytes) -> None:
    whole = detect(data)
    step = max(1, len(data) // 300)
    told = _first([detect(data[:end]) for end in (*range(0, len(data), step), len(data))])
    assert told == whole, f"{told} by parts, {whole} at once"
    assert detect(data, waited_s=1.0, limit_s=1.0) is not None, "no answer though the time is over"
    if _hello(data) not in (None, "no TLS"):
        assert whole is Detected.TLS, "a ClientHello that is no TLS"
