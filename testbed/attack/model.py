"""What must come of each attempt: attempt x component x plane -> got or refused, and why where that may surprise. Pure.

It follows from who stands where (the placement) and what policy allows (the topology), never from a plane's name. Where
Istio's own planes are as open as this, the reason says so: such a row is no fault of ours, and is counted all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.model.identity import Identity
from testbed.model.placement import Proxy
from testbed.model.policy import Action, AuthorizationPolicy
from testbed.model.topology import ROOT_NAMESPACE, Topology, Workload

APP, NEIGHBOUR, NODE_ROLE = "app", "neighbour", "node-l7"
PRIVILEGED = ("ztunnel", NEIGHBOUR)
"""Roles that keep net_admin and net_raw: a ztunnel marks and spoofs, a neighbour owns his machine."""
UNPROVEN = "nobody"
"""Source of a call that proves no identity."""
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Where an attacker's code runs."""

    name: str
    role: str
    """`app`, `neighbour`, or the role of a proxy, ours or another's."""
    sandbox: str
    node: str
    serves: tuple[str, ...] = ()
    """Workloads, of a waypoint services; an app's is its own."""
    identities: tuple[Identity, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    got: bool
    because: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A topology under a plane."""

    topology: Topology
    proxies: tuple[Proxy, ...]

    def guard(self, workload: str) -> str:
        """Who takes what is sent to it: `sidecar`, `ambient`, `node` (tunnels only, the pod stands open) or `none`."""
        roles = {p.role.removeprefix("envoy-") for p in self.proxies if workload in p.serves and not p.own_address}
        kinds = (("sidecar", "sidecar"), ("ztunnel", "ambient"), (NODE_ROLE, "node"))
        return next((kind for role, kind in kinds if role in roles), "none")

    @property
    def waypoint(self) -> Proxy | None:
        return next((p for p in self.proxies if p.own_address), None)

    def allowed(self, source: str, destination: str) -> bool:
        """Whether L4 policy lets this service account call that workload: any ALLOW that applies must name it."""
        workload = self.topology.workload(destination)
        policies = [p for p in self.topology.policies if isinstance(p, AuthorizationPolicy) and _applies(p, workload)]
        principals = {name for p in policies for rule in p.rules for s in rule.sources for name in s.principals}
        return not policies or str(self.account(source)).removeprefix("spiffe://") in principals

    def account(self, name: str) -> Identity | None:
        """The identity that a workload, or a waypoint's service account, has."""
        for workload in self.topology.workloads:
            if workload.name == name:
                return workload.identity(self.topology.trust_domain)
        owned = [i for p in self.proxies for i in p.identities if i.service_account == name]
        return owned[0] if owned else None

    def called(self, identity: Identity) -> str:
        """The workload, or the service account of a proxy, that an identity stands for."""
        owners = [w.name for w in self.topology.workloads if w.identity(self.topology.trust_domain) == identity]
        return owners[0] if owners else identity.service_account

    @property
    def flows(self) -> tuple[Pair, ...]:
        """Calls that policy allows between workloads: what is listened to, and what a loss is counted in."""
        names = [w.name for w in self.topology.workloads]
        serving = [name for s in self.topology.services for name in s.endpoints]
        return tuple((a, b) for a in names for b in serving if a != b and self.allowed(a, b))


def _applies(policy: AuthorizationPolicy, workload: Workload) -> bool:
    if policy.action is not Action.ALLOW or policy.target_refs:
        return False
    near = policy.namespace in (workload.namespace, ROOT_NAMESPACE)
    return near and set(policy.selector or ()) <= set(workload.labels)


def components(world: World, *, app: str, neighbour: str) -> list[Component]:
    """One of each role: an application, the proxies that serve it, those with an address of their own, who lies
    between."""
    workload = world.topology.workload(app)
    found = [Component(name=f"app.{app}", role=APP, sandbox=app, node=workload.node, serves=(app,))]
    for proxy in world.proxies:
        beside = app in proxy.serves if not proxy.own_address else True
        if beside and proxy.role not in [c.role for c in found]:
            found.append(
                Component(
                    name=proxy.name, role=proxy.role, sandbox=proxy.sandbox, node=proxy.node, serves=proxy.serves,
                    identities=proxy.identities,
                )
            )  # fmt: skip
    return [*found, Component(name=f"{NEIGHBOUR}.{neighbour}", role=NEIGHBOUR, sandbox=neighbour, node=neighbour)]


NEVER = Expected(got=False)


def expected(world: World, component: Component, attempt: str) -> Expected:
    """By the attempt's name, `group` or `group/subject`."""
    group, _, subject = attempt.partition("/")
    if rule := RULES.get(group):
        return rule(world, component, subject)
    return NEVER


def _key(world: World, component: Component, subject: str) -> Expected:
    held = {world.called(identity) for identity in component.identities}
    return Expected(got=subject in held, because="who serves a workload has its key" if subject in held else "")


def _agent(_world: World, component: Component, _subject: str) -> Expected:
    return Expected(got=component.role == "ztunnel", because="a ztunnel enters the workloads of its node")


def _admin_own(world: World, component: Component, _subject: str) -> Expected:
    there = any(p.sandbox == component.sandbox for p in world.proxies)
    because = "the proxy's admin port is on the loopback that it shares with its application, as Istio's is"
    return Expected(got=there, because=because if component.role == APP else "")


def _open_others(world: World, component: Component, _subject: str) -> Expected:
    """15020, 15021 and 15090 are exempt from a sidecar's capture, for who scrapes and probes has no identity."""
    others = [w.name for w in world.topology.workloads if w.name != component.sandbox]
    return Expected(
        got=any(world.guard(name) == "sidecar" for name in others),
        because="metrics and readiness of a sidecar are open to all, as Istio's are",
    )


def _privileged(_world: World, component: Component, _subject: str) -> Expected:
    return Expected(got=component.role in PRIVILEGED)


def _udp(_world: World, _component: Component, _subject: str) -> Expected:
    return Expected(got=True, because="only TCP is captured: UDP passes the mesh by (facts 7, row 34)")


def _secret(world: World, component: Component, subject: str) -> Expected:
    """`GET /secret` of a service that L7 policy denies, by its service's address or by the pod's own."""
    destination, by = subject.split("/")
    guard, own = world.guard(destination), world.guard(component.serves[0])
    if guard in ("sidecar", "node"):
        return NEVER
    if guard == "ambient" and by == "service" and world.waypoint is not None and own == "ambient":
        return NEVER
    because = "a call to the pod's own address goes around its service's waypoint (facts 7, row 5)"
    if guard == "none" or world.waypoint is None:
        because = "nobody here reads HTTP: of a DENY about it a ztunnel keeps nothing (facts 7, row 2)"
    return Expected(got=True, because=because)


def _reach(world: World, component: Component, subject: str) -> Expected:
    """`plain` and `service`: by the pod's or the service's address, without a key; `as`: with a key in hand; `told`: in
    a workload's name. Then source and destination."""
    how, *names = subject.split("/")
    destination = names[-1]
    guard = world.guard(destination)
    if how in ("plain", "service"):
        own = world.guard(component.serves[0]) if component.role == APP else "none"
        if own == "sidecar" and how == "plain" and guard != "none":
            return Expected(got=False, because="a sidecar knows services: to a pod's own address it passes plain text")
        if own != "none":
            return Expected(got=guard == "none" or world.allowed(component.serves[0], destination))
        because = "a node's proxy takes what workloads send; nobody stands before a pod" if guard == "node" else ""
        return Expected(got=guard in ("none", "node"), because=because)
    may = world.allowed(names[0], destination)
    if how == "told":
        may = may and world.topology.workload(names[0]).node == component.node
    return Expected(got=may, because="policy lets whoever has this key" if may else "")


def _read(world: World, component: Component, subject: str) -> Expected:
    source, destination = subject.split(">")
    if component.role == APP:
        return Expected(got=destination in component.serves)
    if component.role == NEIGHBOUR:
        apart = world.topology.workload(source).node != world.topology.workload(destination).node
        return Expected(got=apart and "none" in (world.guard(source), world.guard(destination)))
    return Expected(got=_through(world, component, source, destination))


def _through(world: World, component: Component, source: str, destination: str) -> bool:
    if component.role.removeprefix("envoy-") == "waypoint":
        behind = {e for s in world.topology.services if s.name in component.serves for e in s.endpoints}
        return destination in behind and world.guard(source) == "ambient"
    return source in component.serves or destination in component.serves


def _lost(world: World, component: Component, subject: str) -> Expected:
    source, destination = subject.split(">")
    if component.role == APP:
        return Expected(got=destination in component.serves)
    return Expected(got=_through(world, component, source, destination))


def _on_path(world: World, _component: Component, subject: str) -> Expected:
    source, destination = subject.split(">")
    return Expected(got="none" in (world.guard(source), world.guard(destination)))


def _spoof(world: World, component: Component, subject: str) -> Expected:
    if component.role != NEIGHBOUR:
        return NEVER
    return Expected(got=world.guard(subject.split(">")[1]) in ("none", "node"))


def _secret_key(world: World, _component: Component, subject: str) -> Expected:
    """`GET /secret` by a key that L4 policy lets in, straight to the pod."""
    source, destination = subject.split(">")
    if world.guard(destination) != "ambient" or not world.allowed(source, destination):
        return NEVER
    return Expected(got=True, because="who has a key goes around the waypoint, whose DENY is nowhere else")


def _quit(world: World, component: Component, subject: str) -> Expected:
    return _admin_own(world, component, subject)


RULES = {
    "key": _key, "agent": _agent, "admin-own": _admin_own, "open-ports": _open_others,
    "mark": _privileged, "transparent": _privileged, "raw": _privileged, "udp": _udp, "secret": _secret,
    "secret-key": _secret_key,
    "reach": _reach, "read": _read, "lost": _lost, "tamper": _on_path, "replay": _on_path, "spoof": _spoof,
    "quit": _quit,
}  # fmt: skip
"""What is not here must never be got: others' keys, memory, environment and sockets, certificates by asking, forged
identities, other user ids, foreign authorities."""
