"""A plug-in with a fault: a request that bears a mark ends the process, and with it all that the process serves.

Off unless a configuration names the mark (`crash_header`), which only an experiment does.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from planes.l7.codec import ServerStream
from planes.l7.connection import HttpConnection
from planes.l7.exchange import Exchange
from planes.l7.message import Request, field

EXIT_CODE = 86


def exchange(mark: bytes, side: Any, connection: HttpConnection, stream: ServerStream, request: Request) -> Exchange:
    """As `Exchange`, for requests without the mark."""
    if field(request.fields, mark) is not None:
        print("a plug-in has crashed this proxy, as it was asked to", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)
    return Exchange(side, connection, stream, request)
