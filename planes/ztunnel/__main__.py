"""`python -m planes.ztunnel --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.mesh import suites

    suites.restrict()  # before anything loads OpenSSL, asyncio too
    from planes.mesh.program import main
    from planes.ztunnel import settings
    from planes.ztunnel.program import Ztunnel

    sys.exit(main("ztunnel", lambda loop, file: Ztunnel(loop, settings.load(file)), sys.argv[1:]))
