"""What is tried from inside a component: attempts as data, made from a topology, a placement and where files lie. Pure.

An attempt's name is what `model` knows it by. Some give rows of their own: a search for keys one for each identity, an
ear on the wires one for each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.attack.model import APP, NEIGHBOUR, UNPROVEN, Component, World
from testbed.model.identity import Identity
from testbed.model.placement import Proxy
from testbed.model.topology import Service, Workload
from testbed.pki import CERTIFICATE_FILE, KEY_FILE

PROXY_UID = 1337
MARK = 0x539
SOL_SOCKET, SOL_IP, SO_MARK, IP_TRANSPARENT = 1, 0, 36, 19
ADMIN_PORT, HBONE_PORT = 15000, 15008
OPEN_PORTS = (15020, 15021, 15090)
CA_PORTS = (15010, 15012)
UDP_PORT = 9999
"""Where the harness answers datagrams inside workloads."""
SOURCE_FIELD = "meshbed-source"
ISTIO_ALPN = ["istio-http/1.1", "istio", "http/1.1"]
SECRET = "/secret"
LISTEN_S, DEAF_S = 12.0, 1.2
"""How long it listens where something is to be heard, and where nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    name: str
    what: str
    """In words, for a finding's statement."""
    job: Mapping[str, object]
    """For `insider`, without the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the lab's files lie, as the component would see them."""

    state: str
    """Of all labs."""
    own: str
    """The component's own folder."""
    agents: tuple[str, ...] = ()
    """Sockets of node agents."""


def attempts(world: World, component: Component, place: Place) -> list[Attempt]:
    """All but those that listen (`listening`), for these need others to talk meanwhile."""
    found = [*_files(world, component, place), *_ports(world, component), *_certificates(world, component)]
    found += [*_reach(world, component), *_forged(world, component), *_rights(world, component)]
    if component.role == APP:
        found += _leave(world, component)
    return found


def _files(world: World, component: Component, place: Place) -> Iterator[Attempt]:
    yield Attempt(name="keys", what="reads the private keys in its own folder", job=_op("keys", roots=[place.own]))
    others = {"roots": [place.state], "spare": place.own}
    yield Attempt(name="keys-others", what="reads private keys of others", job=_op("keys", **others))
    yield Attempt(
        name="keys-uncovered", what="unmounts what hides others' folders, and reads their keys",
        job=_op("keys", uncover=[place.state], **others),
    )  # fmt: skip
    yield Attempt(name="memory-others", what="opens the memory of another process", job=_op("processes"))
    yield Attempt(name="environment", what="finds a secret in its environment", job=_op("environment"))
    yield Attempt(
        name="sockets-others", what="connects to a Unix socket of others",
        job=_op("sockets", roots=[place.state], spare=place.own),
    )  # fmt: skip
    for path in place.agents[:1]:
        yield Attempt(
            name="agent", what="has the node agent hand it workloads' namespaces", job=_op("agent", path=path)
        )


def _ports(world: World, component: Component) -> Iterator[Attempt]:
    local = [["127.0.0.1", ADMIN_PORT]]
    yield Attempt(
        name="admin-own", what="dumps the configuration of the proxy beside it",
        job=_op("ports", targets=local, path="/config_dump"),
    )  # fmt: skip
    yield Attempt(
        name="admin-keys", what="finds a private key in that dump",
        job=_op("ports", targets=local, path="/config_dump", needle="PRIVATE KEY"),
    )  # fmt: skip
    others = list(_addresses(world, component))
    yield Attempt(
        name="admin-others", what="calls an admin port of others",
        job=_op("ports", targets=[[a, ADMIN_PORT] for a in others], path="/config_dump"),
    )  # fmt: skip
    workloads = [w.address for w in world.topology.workloads if w.name != component.sandbox]
    yield Attempt(
        name="open-ports", what="reads metrics or readiness of others' proxies",
        job=_op("ports", targets=[[a, port] for a in workloads for port in OPEN_PORTS], path="/healthz/ready"),
    )  # fmt: skip


def _addresses(world: World, component: Component) -> Iterator[str]:
    for workload in world.topology.workloads:
        if workload.name != component.sandbox:
            yield workload.address
    for node in world.topology.nodes:
        if node.name != component.sandbox:
            yield node.address
    for proxy in world.proxies:
        if proxy.own_address and proxy.name != component.name:
            yield proxy.own_address


def _certificates(world: World, component: Component) -> Iterator[Attempt]:
    """Its own identity's, one of its own node, one of another."""
    topology = world.topology
    own = [str(i) for i in component.identities] or [str(topology.workload(s).identity(topology.trust_domain))
                                                     for s in component.serves[:1]]  # fmt: skip
    near = [w for w in topology.on_node(component.node) if w.name not in component.serves and w.app.ports]
    far = [w for w in topology.workloads if w.node != component.node and w.app.ports]
    targets = [[a, port] for a in _addresses(world, component) for port in CA_PORTS]
    targets += [["127.0.0.1", port] for port in CA_PORTS]
    asked = {"own": own[:1], "neighbour": _identities(world, near), "other-node": _identities(world, far)}
    for whose, identities in asked.items():
        for identity in identities[:1]:
            yield Attempt(
                name=f"certificate/{whose}", what=f"has a CA sign a certificate for {identity}",
                job=_op("sign", identity=identity, targets=targets),
            )  # fmt: skip


def _identities(world: World, workloads: Sequence[Workload]) -> list[str]:
    return [str(w.identity(world.topology.trust_domain)) for w in workloads]


def _serving(world: World, component: Component) -> list[Workload]:
    return [w for w in world.topology.workloads if w.app.ports and w.name != component.sandbox]


def _reach(world: World, component: Component) -> Iterator[Attempt]:
    own = component.serves[0] if component.role == APP and world.guard(component.serves[0]) != "none" else UNPROVEN
    for workload in _serving(world, component):
        port = workload.app.ports[0]
        yield Attempt(
            name=f"reach/plain/{own}/{workload.name}", what=f"calls {workload.name} by its address, without a key",
            job=_op("call", attempt={"name": "a", "kind": "http", "address": workload.address, "port": port}),
        )  # fmt: skip
        yield from _by_service(world, component, workload, own)
        for identity in component.identities:
            yield from _with_key(world, component, workload, identity)
    yield from _foreign(world, component)
    yield from _secret_by_key(world, component)


def _by_service(world: World, component: Component, workload: Workload, own: str) -> Iterator[Attempt]:
    service = _service(world, workload)
    if component.role == APP:
        yield Attempt(
            name=f"reach/service/{own}/{workload.name}", what=f"calls {workload.name} by its service, without a key",
            job=_op("call", attempt={
                "name": "a", "kind": "http", "address": service.address, "port": service.ports[0].port,
                "headers": {"host": service.hostname},
            }),
        )  # fmt: skip


def _secret_by_key(world: World, component: Component) -> Iterator[Attempt]:
    """What L7 policy denies, asked of the pod itself by whoever L4 policy lets in."""
    for workload in _serving(world, component):
        if not _service(world, workload).waypoint or world.guard(workload.name) in ("none", "node"):
            continue
        for identity in component.identities:
            source = world.called(identity)
            if world.allowed(source, workload.name):
                yield Attempt(
                    name=f"secret-key/{source}>{workload.name}",
                    what=f"gets {SECRET} of {workload.name} with the key of {source}",
                    job=_op("call", attempt={**to_guard(world, workload, _own_leaf(identity)), "path": SECRET}),
                )
                break


def _with_key(world: World, component: Component, workload: Workload, identity: Identity) -> Iterator[Attempt]:
    source, guard = world.called(identity), world.guard(workload.name)
    leaf = _own_leaf(identity)
    if guard == "node":
        foreign = [w for w in world.topology.workloads if w.node != component.node and w.name != workload.name]
        for told in [*world.topology.on_node(component.node), *foreign[:1]]:
            if told.name != workload.name:
                yield Attempt(
                    name=f"reach/told/{told.name}/{workload.name}",
                    what=f"calls {workload.name} in the name of {told.name}, which it only says",
                    job=_op("call", attempt=to_guard(world, workload, leaf, told=told)),
                )
    elif guard != "none" and source != workload.name:
        yield Attempt(
            name=f"reach/as/{source}/{workload.name}", what=f"calls {workload.name} with the key of {source}",
            job=_op("call", attempt=to_guard(world, workload, leaf)),
        )  # fmt: skip


def _foreign(world: World, component: Component) -> Iterator[Attempt]:
    """A tunnel to one pod that asks for another: the pod's proxy must not become a way around the other's policy."""
    ambient = [w for w in _serving(world, component) if world.guard(w.name) == "ambient"]
    for identity in component.identities[:1]:
        for one in ambient[:1]:
            for other in ambient[1:]:
                yield Attempt(
                    name=f"authority/{one.name}>{other.name}",
                    what=f"asks the tunnel of {one.name} for {other.name}",
                    job=_op("call", attempt={
                        **to_guard(world, one, _own_leaf(identity)),
                        "authority": f"{other.address}:{other.app.ports[0]}",
                    }),
                )  # fmt: skip


def _forged(world: World, component: Component) -> Iterator[Attempt]:
    """Leaves that the harness puts beside it: by a CA of its own, with a name that may, and of another trust domain."""
    for source, destination in world.flows:
        workload = world.topology.workload(destination)
        if world.guard(destination) == "none" or destination == component.sandbox or destination == source:
            continue
        for kind in ("forged", "stranger"):
            yield Attempt(
                name=f"{kind}/{source}>{destination}", what=f"calls {destination} as {source} by a {kind} certificate",
                job=_op("call", attempt=to_guard(
                    world, workload, {"cert": f"@{kind}.{source}.cert.pem", "key": f"@{kind}.{source}.key.pem"},
                    told=world.topology.workload(source),
                )),
            )  # fmt: skip
        return


def to_guard(
    world: World, workload: Workload, leaf: Mapping[str, str], *, told: Workload | None = None
) -> dict[str, object]:
    """A call to what takes mutual TLS for the workload, as a proxy would make it."""
    port = workload.app.ports[0]
    guard = world.guard(workload.name)
    if guard == "sidecar":
        service = next(s for s in world.topology.services if workload.name in s.endpoints)
        return {
            "name": "a", "kind": "mtls", "address": workload.address, "port": port, "alpn": ISTIO_ALPN,
            "server_name": f"outbound_.{service.ports[0].port}_._.{service.hostname}",
            "headers": {"host": service.hostname}, **leaf,
        }  # fmt: skip
    address = world.topology.node(workload.node).address if guard == "node" else workload.address
    fields = {SOURCE_FIELD: f"{told.namespace}/{told.name}"} if guard == "node" and told else {}
    return {
        "name": "a", "kind": "hbone", "address": address, "port": HBONE_PORT, "connect_headers": fields,
        "authority": f"{workload.address}:{port}", **leaf,
    }  # fmt: skip


def _own_leaf(identity: Identity) -> dict[str, str]:
    folder = f"identities/{identity.trust_domain}.{identity.namespace}.{identity.service_account}"
    return {"cert": f"{folder}/{CERTIFICATE_FILE}", "key": f"{folder}/{KEY_FILE}"}


def _rights(world: World, component: Component) -> Iterator[Attempt]:
    yield Attempt(
        name="mark", what="gives a socket the mark that capture lets through",
        job=_op("option", level=SOL_SOCKET, option=SO_MARK, value=MARK),
    )  # fmt: skip
    yield Attempt(
        name="transparent", what="makes a socket transparent, for any source address",
        job=_op("option", level=SOL_IP, option=IP_TRANSPARENT, value=1),
    )  # fmt: skip
    for family in ("ip", "packet"):
        yield Attempt(name=f"raw/{family}", what=f"opens a raw {family} socket", job=_op("raw", family=family))
    if component.role != NEIGHBOUR:
        uids = {n + PROXY_UID: p for n, p in enumerate(world.proxies) if p.name != component.name}
        uid = next((u for u, p in uids.items() if p.sandbox == component.sandbox), PROXY_UID + len(world.proxies))
        for kind in ("uid", "gid"):
            yield Attempt(
                name=f"become/{kind}", what=f"takes the {kind} of a proxy, whose traffic is let through",
                job=_op("become", **{kind: uid}),
            )  # fmt: skip


def _leave(world: World, component: Component) -> Iterator[Attempt]:
    """Ways past the proxy that captures an application."""
    target = next((w for w in _serving(world, component) if _service(world, w).waypoint), None)
    target = target or _serving(world, component)[-1]
    service, port = _service(world, target), target.app.ports[0]
    yield Attempt(
        name=f"udp/{target.name}", what=f"sends {target.name} a datagram",
        job=_op("udp", address=target.address, port=UDP_PORT, say="meshbed"),
    )  # fmt: skip
    yield Attempt(name="icmp", what="sends an ICMP echo request", job=_op("icmp", address=target.address))
    yield Attempt(name="ipv6", what="goes by IPv6", job=_op("ipv6", address=target.address, port=port))
    for number in (15001, 15006, HBONE_PORT):
        own = world.topology.workload(component.sandbox).address
        yield Attempt(
            name=f"proxy-port/{number}", what=f"gets an answer from port {number} of a proxy, without a certificate",
            job=_op("ports", targets=[["127.0.0.1", number], [own, number], [target.address, number]]),
        )  # fmt: skip
    for by, address, number in (("service", service.address, service.ports[0].port), ("pod", target.address, port)):
        yield Attempt(
            name=f"secret/{target.name}/{by}", what=f"gets {SECRET} of {target.name} by the {by}'s address",
            job=_op("call", attempt={
                "name": "a", "kind": "http", "address": address, "port": number, "path": SECRET
            }),
        )  # fmt: skip
    for source in (w for w in world.topology.workloads if w.name != component.sandbox):
        yield Attempt(
            name=f"spoof/{source.name}>{target.name}", what=f"calls {target.name} from the address of {source.name}",
            job=_op("spoof", source=source.address, address=target.address, port=port),
        )  # fmt: skip
        break


def _service(world: World, workload: Workload) -> Service:
    return next(s for s in world.topology.services if workload.name in s.endpoints)


def listening(world: World, component: Component, place: Place, tokens: Mapping[str, str], hoped: int) -> Attempt:
    """`tokens`: flow -> canary. It ends early once it has heard as many as are `hoped` for, and goes on for longer."""
    return Attempt(
        name="read", what="reads what others say to each other",
        job=_op(
            "read", tokens=list(tokens.values()), limit_s=LISTEN_S if hoped else DEAF_S, enough=hoped,
            agent=place.agents[0] if component.role == "ztunnel" and place.agents else "",
        ),
    )  # fmt: skip


def quitting() -> Attempt:
    return Attempt(
        name="quit", what="ends the proxy beside it by its admin port",
        job=_op("ports", targets=[["127.0.0.1", ADMIN_PORT]], path="/quitquitquit"),
    )  # fmt: skip


def _op(operation: str, **words: object) -> dict[str, object]:
    return {"what": operation, **words}


def agents_of(proxies: Sequence[Proxy], folder: Mapping[str, str]) -> list[str]:
    """Paths of node agents' sockets, one a proxy that enters workloads."""
    return [f"{folder[p.name]}/ztunnel.sock" for p in proxies if p.enters]
