"""Which protocol a connection speaks, from the first bytes of its client. Pure: bytes and waited time in, a name out.

The shell collects bytes until an answer comes and then replays them to whoever serves the connection. Where the server
speaks first (MySQL, SMTP) no byte ever comes: only time tells. The shell asks again once `limit_s` is over, with what
it has, possibly nothing, and is then told TCP; Istio's default is to wait for ever (`protocolDetectionTimeout` 0 s),
which such protocols do not survive, hence port names like `mysql-…` there.

What looks like HTTP/1 but is malformed is called HTTP/1 all the same, so that it meets its codec's refusal; called
TCP, it would pass by every policy on layer 7. The other way round, text that cannot become a request line is called TCP
at its first wrong byte, so that an echo of `hello` does not wait for a line that never ends. What is in between, a word
in capitals that is no method we know, waits for its line (or the limit).
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
FIRST_LINE_MAX_BYTES = 15 << 10
"""Until here the end of a line is waited for. Less than `accept.PEEK_BYTES`, where looking ends and all else is TCP."""
_EMPTY_LINES = re.compile(rb"(?:\r\n){0,8}")
_WORD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{0,32}")
_CAPITALS = re.compile(rb"[A-Z][A-Z0-9_\-]*")
_METHODS = tuple(
    b"ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY "
    b"OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK "
    b"UNLOCK UNSUBSCRIBE".split()
)
"""In any case of letters: a lenient server may not mind, and policies should see it."""
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
    return _detect_request_line(data[_EMPTY_LINES.match(data).end() :])


def _detect_request_line(line: bytes) -> Detected | None:
    if line in (b"", b"\r"):
        return None
    word = _WORD.match(line)[0]
    method, after = word.upper(), line[len(word) :]
    if not after:
        if len(word) < 32 and (_CAPITALS.fullmatch(word) or any(known.startswith(method) for known in _METHODS)):
            return None
        return Detected.TCP
    # What follows may refuse only what it would have refused of any shorter part: the first answer is the last,
    # however the bytes are cut.
    if not 0 < len(word) < 32 or after[0] not in b" \t":
        return Detected.TCP
    known = method in _METHODS
    target = after.lstrip(b" \t")
    if not known and (not _CAPITALS.fullmatch(word) or (target and target[0] not in b"/*hH")):
        return Detected.TCP
    end = after.find(b"\n")
    if end >= 0:
        return Detected.HTTP1 if _VERSION_AT_END.search(after, 0, end) else Detected.TCP
    if len(line) < FIRST_LINE_MAX_BYTES:
        return None
    return Detected.HTTP1 if known else Detected.TCP
