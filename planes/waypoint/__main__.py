"""`python -m planes.waypoint --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.l7.program import main
    from planes.waypoint.program import Waypoint

    sys.exit(main("waypoint", Waypoint, sys.argv[1:]))
