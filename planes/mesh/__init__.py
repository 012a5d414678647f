"""What every proxy is made of. Read `local`, `view` (what is known), `route` (where next), then what moves the bytes.

Pure here: `fields`, `local`, `view`, `route`, `names`, `dns`, `crl`, `proxyprotocol`, `baggage`, `accesslog`,
`metrics`: no socket, no clock, no chance of their own. A program holds one `MeshView`, asks `route.next_hop` for each
captured connection, `route.inbound_target` for each CONNECT, and puts a new view in the old one's place when its
configuration changes. Bytes: `frames`, `hbone` (pure), then `session`, `relay` and, for busy tunnels, `bulk`; `suites`
is called before anything loads OpenSSL.
"""
