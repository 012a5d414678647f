"""`python -m planes.sidecar --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.l7.program import main
    from planes.sidecar.program import Sidecar

    sys.exit(main("sidecar", Sidecar, sys.argv[1:]))
