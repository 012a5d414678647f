"""`python -m planes.sidecar --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.l7 import settings
    from planes.mesh.program import main
    from planes.sidecar.program import Sidecar

    sys.exit(main("sidecar", lambda loop, file: Sidecar(loop, settings.load(file)), sys.argv[1:]))
