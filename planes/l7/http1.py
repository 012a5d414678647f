"""The HTTP/1 codec, both roles, without I/O. Rooms: fields (heads read) -> write (heads written) -> chunks ->
connection (what both roles share) -> server, client.

What it holds to, point by point, is in docs/http-conformance.md. It fits the Protocols of `codec`, and tells its shell
two things more: `half_close` (write EOF once `out` is written and go on reading; only ever after a 101 or CONNECT) and
`abort` (with `closing`: end by RST, since a FIN would pass for the proper end of what was being sent).
"""

from __future__ import annotations

from planes.l7.http1_client import Http1Client, Http1ClientStream
from planes.l7.http1_server import Http1Server, Http1ServerStream

__all__ = ["Http1Client", "Http1ClientStream", "Http1Server", "Http1ServerStream"]
