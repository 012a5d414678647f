"""Which protocol a connection speaks, from the first bytes of its client. Pure: bytes and waited time in, a name out.

The shell collects bytes until an answer comes and then replays them to whoever serves the connection. Where the server
speaks first (MySQL, SMTP) no byte ever comes: only time tells. The shell asks again once `limit_s` is over, with what
it has, possibly nothing, and is then told TCP; Istio's default is to wait for ever (`protocolDetectionTimeout` 0 s),
which such protocols do not survive, hence port names like `mysql-…` there.

What looks like HTTP/1 but is malformed is called HTTP/1 all the same, so that it meets its codec's refusal; called
TCP, it would pass by every policy on layer 7.
"""

from __future__ import annotations

import re
from enum import Enum

from planes.l7.clienthello import NotTls, read_client_hello


class Detected(Enum):
    HTTP1 = "http/1"
    HTTP2 = "http/2"
    TLS = "tls"
    TCP = "tcp"


HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_LINE_MAX_BYTES = 64 * 1024
"""Until here the end of a line is waited for; the codec refuses shorter ones than this already."""
_METHOD_MAX_BYTES = 32

_METHOD_SO_FAR = re.compile(rb"(?:\r\n){0,8}\r?[!#$%&'*+\-.^_`|~0-9A-Za-z]{0,32}")
_METHOD = re.compile(rb"(?:\r\n){0,8}[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}[ \t]")
_KNOWN = re.compile(rb"(?:\r\n){0,8}(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE) (?:/|\*|http|[\w.\[:\-]+:\d)")
_VERSION_AT_END = re.compile(rb"[ \t]HTTP/[0-9]+(?:\.[0-9]+)?[ \t]*\r?$")


def detect(first_bytes: bytes, *, waited_s: float = 0.0, limit_s: float | None = None) -> Detected | None:
    """None: more bytes are needed. Never None once `waited_s` has reached `limit_s` (None: no limit)."""
    found = _detect(first_bytes)
    if found is None and limit_s is not None and waited_s >= limit_s:
        return Detected.TCP
    return found


def _detect(data: bytes) -> Detected | None:
    if not data:
        return None
    if data[0] == 0x16:
        try:
            return None if read_client_hello(data) is None else Detected.TLS
        except NotTls:
            return Detected.TCP
    if data.startswith(HTTP2_PREFACE):
        return Detected.HTTP2
    if HTTP2_PREFACE.startswith(data):
        return None
    if _METHOD_SO_FAR.fullmatch(data):
        return None
    method = _METHOD.match(data)
    if method is None:
        return Detected.TCP
    end = data.find(b"\n", method.end())
    if end >= 0:
        return Detected.HTTP1 if _VERSION_AT_END.search(data, method.end() - 1, end) else Detected.TCP
    if len(data) < FIRST_LINE_MAX_BYTES:
        return None
    return Detected.HTTP1 if _KNOWN.match(data) else Detected.TCP
