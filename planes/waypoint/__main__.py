"""`python -m planes.waypoint --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.l7 import settings
    from planes.mesh.program import main
    from planes.waypoint.program import Waypoint

    sys.exit(main("waypoint", lambda loop, file: Waypoint(loop, settings.load(file)), sys.argv[1:]))
