"""Istio's security resources as values, and istiod's conversion of them to what ztunnel enforces.

Pure. `PeerAuthentication` and `AuthorizationPolicy` hold every field of the resources, L7 ones too, so that an L7
plane can take them from here; `to_l4` drops and keeps exactly what istiod does for ambient (facts:
`pilot/pkg/serviceregistry/ambient/ {authorization,policies}.go`), including the corners that surprise: see
`_rule_to_l4`. The L4 model itself is in `l4policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network

from testbed.model.l4policy import (
    Connection,
    L4Action,
    L4Match,
    L4Policy,
    MatchKind,
    Rules,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    Verdict,
    applicable,
    decide,
)
from testbed.model.topology import ROOT_NAMESPACE, Topology, Workload

__all__ = [
    "Action",
    "AuthorizationPolicy",
    "Condition",
    "Connection",
    "L4Action",
    "L4Match",
    "L4Policy",
    "MatchKind",
    "Mode",
    "Operation",
    "PeerAuthentication",
    "Rule",
    "Scope",
    "ServiceAccountMatch",
    "Source",
    "StringMatch",
    "TargetRef",
    "Verdict",
    "applicable",
    "decide",
    "peer_mode",
    "policies_for_view",
    "selects",
    "to_l4",
]

STATIC_STRICT = "istio_converted_static_strict"
Labels = tuple[tuple[str, str], ...]


class Mode(StrEnum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    """Which peers a workload takes: `selector` None means the namespace, or the mesh in the root namespace."""

    name: str
    namespace: str
    mode: Mode = Mode.UNSET
    selector: Labels | None = None
    port_modes: tuple[tuple[int, Mode], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who calls. All fields must hold; within one, any value. `service_accounts` are `ns/sa` or `sa`."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked of whom."""

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`from` and `to` (any of each) and `when` (all). An empty rule matches everything."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRef:
    kind: str
    name: str
    group: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy:
    name: str
    namespace: str
    action: Action = Action.ALLOW
    selector: Labels | None = None
    rules: tuple[Rule, ...] = ()
    target_refs: tuple[TargetRef, ...] = ()
    """Set: for waypoints only, never sent to ztunnel."""
    provider: str | None = None
    dry_run: bool = False


Resource = PeerAuthentication | AuthorizationPolicy

_L7_SOURCE = (
    *("request_principals", "not_request_principals", "remote_ip_blocks", "not_remote_ip_blocks"),
    *("trust_domains", "not_trust_domains"),
)
_L7_OPERATION = ("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths")
L4_CONDITIONS = ("source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port")


def l7_attributes(rule: Rule) -> list[str]:
    """Names of the attributes in a rule that no L4 proxy can see, as fields of the dataclasses above or as `when`
    keys.
    """
    found = [name for source in rule.sources for name in _L7_SOURCE if getattr(source, name)]
    found += [name for operation in rule.operations for name in _L7_OPERATION if getattr(operation, name)]
    found += [condition.key for condition in rule.conditions if condition.key not in L4_CONDITIONS]
    return sorted(set(found))


def to_l4(
    resources: Sequence[Resource], workloads: Iterable[Workload], root_namespace: str = ROOT_NAMESPACE
) -> tuple[tuple[L4Policy, ...], dict[str, tuple[str, ...]]]:
    """What istiod would send: all policies, and per workload the names it carries in `authorizationPolicies`.

    Resources count as created in the order given; where Istio says that the oldest wins, the first does.
    """
    authorizations = [r for r in resources if isinstance(r, AuthorizationPolicy)]
    peers = [r for r in resources if isinstance(r, PeerAuthentication)]
    policies = [p for r in authorizations if (p := _authorization_to_l4(r, root_namespace)) is not None]
    by_peer: dict[PeerAuthentication, L4Policy] = {}
    for peer in peers:
        strict = _parent_strict(peers, peer.namespace, root_namespace)
        if (converted := _peer_to_l4(peer, strict, root_namespace)) is not None:
            by_peer[peer] = converted
    policies += by_peer.values()
    if peers:
        policies.append(_static_strict(root_namespace))

    sent = {policy.key for policy in policies}
    attachments: dict[str, tuple[str, ...]] = {}
    for workload in workloads:
        names = {
            f"{r.namespace}/{r.name}"
            for r in authorizations
            if r.selector is not None and selects(r.selector, r.namespace, workload, root_namespace)
        }
        names.update(_peer_policies(peers, by_peer, workload, root_namespace))
        attachments[workload.name] = tuple(sorted(names & sent))
    return tuple(policies), attachments


def policies_for_view(topology: Topology) -> tuple[list[dict], dict[str, list[str]]]:
    """The topology's policies in a view's shape: (`policies`, workload name → its `authorizationPolicies`)."""
    resources = [r for r in topology.policies if isinstance(r, PeerAuthentication | AuthorizationPolicy)]
    policies, attachments = to_l4(resources, topology.workloads)
    return [p.to_local() for p in policies], {name: list(keys) for name, keys in attachments.items()}


def effective_mode(
    resources: Sequence[Resource], workload: Workload, port: int, root_namespace: str = ROOT_NAMESPACE
) -> Mode:
    """STRICT or PERMISSIVE, as it comes out in ambient for one port of one workload."""
    peers = [r for r in resources if isinstance(r, PeerAuthentication)]
    strict = peer_mode(peers, workload, port, root_namespace) is Mode.STRICT
    return Mode.STRICT if strict else Mode.PERMISSIVE


def peer_mode(
    peers: Sequence[PeerAuthentication], workload: Workload, port: int | None, root_namespace: str = ROOT_NAMESPACE
) -> Mode:
    """STRICT, PERMISSIVE or DISABLE at a workload with a sidecar, for one of its ports (None: for all others)."""
    said = [
        next((p.mode for p in peers if not p.selector and p.namespace == level), Mode.UNSET)
        for level in dict.fromkeys((root_namespace, workload.namespace))
    ]
    own = _workload_peer(peers, workload, root_namespace)
    if own is not None:
        said += [own.mode, dict(own.port_modes).get(port, Mode.UNSET) if port is not None else Mode.UNSET]
    return next((mode for mode in reversed(said) if mode is not Mode.UNSET), Mode.PERMISSIVE)


# -- AuthorizationPolicy


def _authorization_to_l4(resource: AuthorizationPolicy, root_namespace: str) -> L4Policy | None:
    if resource.target_refs or resource.action not in (Action.ALLOW, Action.DENY):
        return None
    if resource.selector is not None:
        scope = Scope.WORKLOAD_SELECTOR
    else:
        scope = Scope.GLOBAL if resource.namespace == root_namespace else Scope.NAMESPACE
    action = L4Action.ALLOW if resource.action is Action.ALLOW else L4Action.DENY
    rules = (_rule_to_l4(action, rule, resource.namespace) for rule in resource.rules)
    return L4Policy(
        name=resource.name,
        namespace=resource.namespace,
        scope=scope,
        action=action,
        rules=tuple(rule for rule in rules if rule is not None),
        dry_run=resource.dry_run,
    )


def _rule_to_l4(action: L4Action, rule: Rule, namespace: str) -> tuple[tuple[L4Match, ...], ...] | None:
    """One rule's clauses; None when the rule is dropped.

    An ALLOW rule with any L7 attribute is dropped whole (fail closed). In a DENY rule only the attribute goes; where
    that leaves a match with no field, ztunnel skips the match, so a clause of L7 attributes alone turns the whole
    rule off (fail open). Only L4 and L7 attributes in one `source` or one `operation` become the broader deny that
    Istio's docs promise.
    """
    if action is L4Action.ALLOW and l7_attributes(rule):
        return None
    clauses: list[tuple[L4Match, ...]] = []
    if rule.operations:
        clauses.append(tuple(_operation_match(o) for o in rule.operations))
    if rule.sources:
        clauses.append(tuple(_source_match(s, namespace) for s in rule.sources))
    clauses += [(_condition_match(c),) for c in rule.conditions]
    return tuple(clauses)


def _operation_match(operation: Operation) -> L4Match:
    return L4Match(destination_ports=_ports(operation.ports), not_destination_ports=_ports(operation.not_ports))


def _source_match(source: Source, namespace: str) -> L4Match:
    return L4Match(
        principals=_strings(source.principals),
        not_principals=_strings(source.not_principals),
        namespaces=_strings(source.namespaces),
        not_namespaces=_strings(source.not_namespaces),
        service_accounts=_accounts(source.service_accounts, namespace),
        not_service_accounts=_accounts(source.not_service_accounts, namespace),
        source_ips=_networks(source.ip_blocks),
        not_source_ips=_networks(source.not_ip_blocks),
    )


def _condition_match(condition: Condition) -> L4Match:
    positive, negative = condition.values, condition.not_values
    match condition.key:
        case "source.ip":
            return L4Match(source_ips=_networks(positive), not_source_ips=_networks(negative))
        case "source.namespace":
            return L4Match(namespaces=_strings(positive), not_namespaces=_strings(negative))
        case "source.principal":
            return L4Match(principals=_strings(positive), not_principals=_strings(negative))
        case "destination.ip":
            return L4Match(destination_ips=_networks(positive), not_destination_ips=_networks(negative))
        case "destination.port":
            return L4Match(destination_ports=_ports(positive), not_destination_ports=_ports(negative))
    return L4Match()


def _strings(values: Iterable[str]) -> tuple[StringMatch, ...]:
    return tuple(StringMatch.parse(value) for value in values)


def _accounts(values: Iterable[str], namespace: str) -> tuple[ServiceAccountMatch, ...]:
    pairs = (value.split("/", 1) if "/" in value else (namespace, value) for value in values)
    return tuple(ServiceAccountMatch(ns, account) for ns, account in pairs)


def _ports(values: Iterable[str]) -> tuple[int, ...]:
    return tuple(int(v) for v in values if v.isascii() and v.isdigit() and int(v) <= 65535)


def _networks(values: Iterable[str]) -> tuple[str, ...]:
    networks = []
    for value in values:
        try:
            networks.append(str(ip_network(value, strict=False)))
        except ValueError:
            continue  # istiod leaves out what it cannot parse; `policyfile` has refused it before
    return tuple(networks)


# -- PeerAuthentication

_NO_IDENTITY = L4Match(not_principals=(StringMatch(MatchKind.PRESENCE),))


def _strict(mode: Mode, inherited: bool) -> bool:
    """DISABLE is PERMISSIVE in ambient: ztunnel takes both then."""
    return inherited if mode is Mode.UNSET else mode is Mode.STRICT


def _parent_strict(peers: Sequence[PeerAuthentication], namespace: str, root_namespace: str) -> bool:
    """What a workload of the namespace inherits: mesh, overridden by namespace; the oldest of each level."""
    strict = False
    for level in dict.fromkeys((root_namespace, namespace)):
        oldest = next((p for p in peers if not p.selector and p.namespace == level), None)
        if oldest is not None:
            strict = _strict(oldest.mode, strict)
    return strict


def _workload_peer(
    peers: Sequence[PeerAuthentication], workload: Workload, root_namespace: str
) -> PeerAuthentication | None:
    for peer in peers:
        if (
            peer.selector
            and peer.namespace != root_namespace
            and selects(peer.selector, peer.namespace, workload, root_namespace)
        ):
            return peer
    return None


def _peer_policies(
    peers: Sequence[PeerAuthentication],
    converted: dict[PeerAuthentication, L4Policy],
    workload: Workload,
    root_namespace: str,
) -> set[str]:
    strict = _parent_strict(peers, workload.namespace, root_namespace)
    own = _workload_peer(peers, workload, root_namespace)
    if own is not None:
        strict = _strict(own.mode, strict)
        if own in converted:
            # It already holds the STRICT default beside its exceptions; the static policy would undo the exceptions.
            return {converted[own].key}
    return {f"{root_namespace}/{STATIC_STRICT}"} if strict else set()


def _peer_to_l4(peer: PeerAuthentication, parent_strict: bool, root_namespace: str) -> L4Policy | None:
    """A DENY for port-level settings that differ from the workload's own mode; None when they change nothing."""
    if not peer.selector or peer.namespace == root_namespace:
        return None
    default = _strict(peer.mode, parent_strict)
    differing = [port for port, mode in peer.port_modes if _strict(mode, default) != default]
    if not differing:
        return None
    rules: Rules
    if default:
        rules = (((_NO_IDENTITY,), *((L4Match(not_destination_ports=(port,)),) for port in differing)),)
    else:
        rules = tuple(
            ((L4Match(not_principals=_NO_IDENTITY.not_principals, destination_ports=(port,)),),) for port in differing
        )
    return L4Policy(
        name=f"converted_peer_authentication_{peer.name}",
        namespace=peer.namespace,
        scope=Scope.WORKLOAD_SELECTOR,
        action=L4Action.DENY,
        rules=rules,
    )


def _static_strict(root_namespace: str) -> L4Policy:
    return L4Policy(
        name=STATIC_STRICT,
        namespace=root_namespace,
        scope=Scope.WORKLOAD_SELECTOR,
        action=L4Action.DENY,
        rules=(((_NO_IDENTITY,),),),
    )


def selects(selector: Labels, namespace: str, workload: Workload, root_namespace: str) -> bool:
    labels = dict(workload.labels)
    return namespace in (workload.namespace, root_namespace) and all(labels.get(k) == v for k, v in selector)
