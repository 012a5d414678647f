"""`python -m planes.node_l7 --config <folder>/config.json`"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from planes.l7 import settings
    from planes.mesh.program import main
    from planes.node_l7.program import NodeL7

    sys.exit(main("node_l7", lambda loop, file: NodeL7(loop, settings.load(file)), sys.argv[1:]))
