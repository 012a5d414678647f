"""L4 authorization as ztunnel enforces it: policies in its LOCAL config shape, and the verdict over one connection.

Pure. Meaning of every level, from ztunnel's `src/rbac.rs`: rules (any of) → clauses (all of) → matches (any of) →
fields (all of) → values (any of; `not_…`: none of). Three corners decide real outcomes and are kept as they are
there: a policy without rules never matches; a clause without matches does; a match with no field set is skipped, so a
clause that holds only such matches does not. Conversion from Istio's resources is in `policy`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from operator import methodcaller

from testbed.model.identity import Identity


class Scope(StrEnum):
    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class L4Action(StrEnum):
    ALLOW = "Allow"
    DENY = "Deny"


class MatchKind(StrEnum):
    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    kind: MatchKind
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> StringMatch:
        """Istio's notation: `*` presence, `*x` suffix, `x*` prefix, else exact; a leading star wins over a trailing
        one.
        """
        if text == "*":
            return cls(MatchKind.PRESENCE)
        if text.startswith("*"):
            return cls(MatchKind.SUFFIX, text[1:])
        if text.endswith("*"):
            return cls(MatchKind.PREFIX, text[:-1])
        return cls(MatchKind.EXACT, text)

    def predicate(self) -> Callable[[str], bool]:
        if self.kind is MatchKind.PRESENCE:
            return bool
        if self.kind is MatchKind.EXACT:
            return self.value.__eq__
        return methodcaller("startswith" if self.kind is MatchKind.PREFIX else "endswith", self.value)

    def to_local(self) -> dict[str, object]:
        return {str(self.kind): [] if self.kind is MatchKind.PRESENCE else self.value}

    @classmethod
    def from_local(cls, value: dict[str, object]) -> StringMatch:
        ((kind, text),) = value.items()
        return cls(MatchKind(kind), "" if kind == MatchKind.PRESENCE else str(text))


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    """Namespace and account together; the trust domain is not looked at."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class L4Match:
    """One match: every field that is set must hold. Addresses are CIDRs; ports are the workload's own, never 15008."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[str, ...] = ()
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not any(getattr(self, f.name) for f in fields(self))


Rules = tuple[tuple[tuple[L4Match, ...], ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What is known of a connection where it is judged: TCP peer, the workload's address and port, who proved to be
    calling.
    """

    source_ip: str
    destination_ip: str
    """The workload's, never a service's."""
    destination_port: int
    identity: Identity | None = None
    """From the peer's certificate; None for plaintext."""
    sni: str = ""
    """For L7 policies (`connection.sni`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    allowed: bool
    policy: str | None = None
    """`namespace/name` of the policy that decided; None when none did."""
    reason: str
    dry_run: tuple[str, ...] = ()
    """Dry-run policies that matched: to be logged, without effect."""
    audited: tuple[str, ...] = ()
    """AUDIT policies that matched, at L7 proxies: likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class L4Policy:
    name: str
    namespace: str
    scope: Scope
    action: L4Action
    rules: Rules = ()
    dry_run: bool = False
    matches: Callable[[Connection], bool] = field(init=False, repr=False, compare=False)
    """The rules, compiled once; whether they match a connection, whatever the action."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matches", _compile(self.rules))

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def to_local(self) -> dict[str, object]:
        """JSON in ztunnel's LOCAL config shape (`dryRun` is obligatory there; empty fields of a match are left out)."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "scope": str(self.scope),
            "action": str(self.action),
            "dryRun": self.dry_run,
            "rules": [[[_match_to_local(m) for m in clause] for clause in rule] for rule in self.rules],
        }

    @classmethod
    def from_local(cls, value: dict) -> L4Policy:
        """The inverse of `to_local`. Raises KeyError, TypeError or ValueError for anything not of that shape."""
        rules = tuple(
            tuple(tuple(_match_from_local(m) for m in clause) for clause in r) for r in value.get("rules", ())
        )
        return cls(
            name=value["name"],
            namespace=value["namespace"],
            scope=Scope(value["scope"]),
            action=L4Action(value["action"]),
            rules=rules,
            dry_run=bool(value.get("dryRun", False)),
        )


_NO_POLICY = Verdict(allowed=True, reason="no allow policy applies")


def decide(policies: Sequence[L4Policy], connection: Connection) -> Verdict:
    """ztunnel's order: any DENY that matches denies; no ALLOW at all allows; any ALLOW that matches allows; else deny.

    `policies` are those that apply to the destination (see `policy.applicable`). Dry-run ones are only reported.
    """
    allows: list[L4Policy] = []
    dry: tuple[str, ...] = ()
    for policy in policies:
        if policy.dry_run:
            if policy.matches(connection):
                dry = (*dry, policy.key)
        elif policy.action is L4Action.ALLOW:
            allows.append(policy)
        elif policy.matches(connection):
            return Verdict(allowed=False, policy=policy.key, reason=f"explicitly denied by {policy.key}", dry_run=dry)
    if not allows:
        return Verdict(allowed=True, reason=_NO_POLICY.reason, dry_run=dry) if dry else _NO_POLICY
    for policy in allows:
        if policy.matches(connection):
            return Verdict(allowed=True, policy=policy.key, reason=f"allowed by {policy.key}", dry_run=dry)
    return Verdict(allowed=False, reason="allow policies exist, but none allowed", dry_run=dry)


def applicable(policies: Iterable[L4Policy], *, namespace: str, attached: Iterable[str]) -> tuple[L4Policy, ...]:
    """Those that apply to a workload: Global, Namespace in its namespace, and the ones it names. Unknown names are
    skipped.
    """
    names = set(attached)
    return tuple(
        p
        for p in policies
        if p.scope is Scope.GLOBAL or (p.scope is Scope.NAMESPACE and p.namespace == namespace) or p.key in names
    )


# -- compiling: nested tuples to closures, so that a connection costs calls and no attribute walks

Test = Callable[[Connection], bool]


def _compile(rules: Rules) -> Test:
    return _any([_all([_clause(clause) for clause in rule]) for rule in rules])


def _clause(matches: tuple[L4Match, ...]) -> Test:
    if not matches:
        return lambda _: True
    return _any([_all(_field_tests(m)) for m in matches if not m.is_empty])


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda connection: any(test(connection) for test in tests)


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda connection: all(test(connection) for test in tests)


def _field_tests(match: L4Match) -> list[Test]:
    pairs: list[tuple[Callable[[tuple], Test], tuple, tuple]] = [
        (_ports, match.destination_ports, match.not_destination_ports),
        (_accounts, match.service_accounts, match.not_service_accounts),
        (_principals, match.principals, match.not_principals),
        (_namespaces, match.namespaces, match.not_namespaces),
        (_source_ips, match.source_ips, match.not_source_ips),
        (_destination_ips, match.destination_ips, match.not_destination_ips),
    ]
    tests: list[Test] = []
    for make, positive, negative in pairs:
        if positive:
            tests.append(make(positive))
        if negative:
            tests.append(_negated(make(negative)))
    return tests


def _negated(test: Test) -> Test:
    return lambda connection: not test(connection)


def _ports(values: tuple[int, ...]) -> Test:
    ports = frozenset(values)
    return lambda c: c.destination_port in ports


def _accounts(values: tuple[ServiceAccountMatch, ...]) -> Test:
    pairs = frozenset((v.namespace, v.service_account) for v in values)
    return lambda c: c.identity is not None and (c.identity.namespace, c.identity.service_account) in pairs


def _principals(values: tuple[StringMatch, ...]) -> Test:
    test = _strings(values)
    # Without an identity a positive never matches, presence included, so `not_principals: *` means "has no identity".
    return lambda c: c.identity is not None and test(c.identity.principal)


def _namespaces(values: tuple[StringMatch, ...]) -> Test:
    test = _strings(values)
    return lambda c: test(c.identity.namespace if c.identity is not None else "")


def _strings(values: tuple[StringMatch, ...]) -> Callable[[str], bool]:
    exact = frozenset(v.value for v in values if v.kind is MatchKind.EXACT)
    rest = [v.predicate() for v in values if v.kind is not MatchKind.EXACT]
    if not rest:
        return exact.__contains__
    return lambda text: text in exact or any(test(text) for test in rest)


def _source_ips(values: tuple[str, ...]) -> Test:
    test = networks_test(values)
    return lambda c: test(c.source_ip)


def _destination_ips(values: tuple[str, ...]) -> Test:
    test = networks_test(values)
    return lambda c: test(c.destination_ip)


def networks_test(values: tuple[str, ...]) -> Callable[[str], bool]:
    """Of an address as text. It raises ValueError for what is none."""
    ranges = []
    for value in values:
        network = ipaddress.ip_network(value, strict=False)
        ranges.append((network.version, int(network.network_address), int(network.broadcast_address)))

    def contains(address: str) -> bool:
        version, number = _address(address)
        return any(v == version and low <= number <= high for v, low, high in ranges)

    return contains


@lru_cache(maxsize=4096)
def _address(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return address.version, int(address)


# -- LOCAL config shape

_STRING_FIELDS = {"namespaces", "not_namespaces", "principals", "not_principals"}
_ACCOUNT_FIELDS = {"service_accounts", "not_service_accounts"}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_LOCAL_NAMES = {_camel(f.name): f.name for f in fields(L4Match)}


def _match_to_local(match: L4Match) -> dict[str, object]:
    local: dict[str, object] = {}
    for key, name in _LOCAL_NAMES.items():
        values = getattr(match, name)
        if not values:
            continue
        if name in _STRING_FIELDS:
            local[key] = [v.to_local() for v in values]
        elif name in _ACCOUNT_FIELDS:
            local[key] = [{"namespace": v.namespace, "serviceAccount": v.service_account} for v in values]
        else:
            local[key] = list(values)
    return local


def _match_from_local(value: dict) -> L4Match:
    unknown = set(value) - set(_LOCAL_NAMES)
    if unknown:
        raise ValueError(f"unknown match fields {sorted(unknown)}; known: {', '.join(_LOCAL_NAMES)}")
    read: dict[str, tuple] = {}
    for key, values in value.items():
        name = _LOCAL_NAMES[key]
        if name in _STRING_FIELDS:
            read[name] = tuple(StringMatch.from_local(v) for v in values)
        elif name in _ACCOUNT_FIELDS:
            read[name] = tuple(ServiceAccountMatch(v["namespace"], v["serviceAccount"]) for v in values)
        else:
            read[name] = tuple(values)
    return L4Match(**read)
