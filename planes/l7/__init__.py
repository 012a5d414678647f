"""The L7 core that sidecar and waypoint share. Reading order: message -> codec -> http1, http2 -> route -> exchange.

Messages are version-neutral values; a codec turns bytes into them and back, without I/O; `route`, `balance`, `retry`
and the policy of `testbed.model` decide; an exchange joins one downstream stream to one upstream stream and moves what
comes.
"""
