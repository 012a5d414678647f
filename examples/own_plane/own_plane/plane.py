"""Where the forwarders go, what is caught into them, and what must then be seen on the wire. Data in, data out."""

from testbed.errors import UsageError
from testbed.model.placement import Capture, CaptureKind, Claim, Encryption, Placement, Proxy


class OwnPlane:
    def place(self, topology, options):
        if options:
            raise UsageError(f"plane own: no option is called {sorted(options)[0]!r}; this plane takes none")
        identity = {w.name: w.identity(topology.trust_domain) for w in topology.workloads}
        address = {w.name: w.address for w in topology.workloads}
        config = {
            "routes": {
                f"{service.address}:{port.port}": [[address[name], port.target_port] for name in service.endpoints]
                for service in topology.services
                for port in service.ports
            },
            "peers": {address[name]: str(identity[name]) for name in identity},
        }
        proxies = [
            Proxy(
                name=f"forwarder.{w.name}", role="forwarder", node=w.node, sandbox=w.name,
                program="own_plane.forwarder", serves=(w.name,), identities=(identity[w.name],),
                view={}, options=config,
            )
            for w in topology.workloads
        ]  # fmt: skip
        captures = [Capture(workload=p.sandbox, kind=CaptureKind.SIDECAR, proxy=p.name) for p in proxies]
        claims = [
            Claim(
                source=client, destination=server, segment="wire", encryption=Encryption.MTLS,
                client_identity=identity[client], server_identity=identity[server],
            )
            for client in identity
            for server in {name for service in topology.services for name in service.endpoints} - {client}
        ]  # fmt: skip
        return Placement(plane="own", proxies=tuple(proxies), captures=tuple(captures), claims=tuple(claims))


PLANE = OwnPlane()
