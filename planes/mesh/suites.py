"""Which TLS 1.3 suites a proxy speaks: ztunnel's two, no ChaCha20 (facts/hbone 1.2).

OpenSSL reads its configuration once, when it is loaded: `restrict` comes before the first `import ssl` of a process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from testbed.errors import Bug

CONFIGURATION = Path(__file__).with_name("openssl.cnf")


def restrict() -> None:
    if "ssl" in sys.modules:
        raise Bug("suites.restrict() after ssl was imported: OpenSSL has read its configuration by then")
    os.environ["OPENSSL_CONF"] = str(CONFIGURATION)
