"""The rules of AuthorizationPolicy as tests: what a connection answers apart from what a request does. Pure.

`l7policy` puts them together. Each field's meaning is istiod's `pilot/pkg/security/authz/model/generator.go`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Protocol

from testbed.model.httppath import is_template, template
from testbed.model.l4policy import Connection, networks_test
from testbed.model.policy import Condition, Operation, Rule, Source

Fields = list[tuple[bytes, bytes]]


class Head(Protocol):
    """What is asked of a request's head; `planes.l7.message.Request` is one."""

    method: bytes
    authority: bytes
    path: bytes
    fields: Fields


ConnectionTest = Callable[[Connection], bool]
RequestTest = Callable[[Head, bytes], object]
"""Of a head and its path without query."""
Alternative = tuple[tuple[ConnectionTest, ...], tuple[RequestTest, ...]]
"""One source, operation or condition: tests that a connection answers, and tests that a request does."""
Clause = tuple[Alternative, ...]


def clauses(rule: Rule, namespace: str, trust_domain: str) -> tuple[Clause, ...]:
    found: list[Clause] = []
    if rule.sources:
        found.append(tuple(_source(s, namespace, trust_domain) for s in rule.sources))
    if rule.operations:
        found.append(tuple(_operation(o) for o in rule.operations))
    found += [(_condition(c, trust_domain),) for c in rule.conditions]
    return tuple(found)


class _Tests:
    """Gathers the tests of one source, operation or condition; an empty list of values asks nothing."""

    def __init__(self) -> None:
        self.connection: list[ConnectionTest] = []
        self.request: list[RequestTest] = []

    def of_connection(
        self, make: Callable[[Sequence[str]], ConnectionTest], positive: Sequence[str], negative: Sequence[str]
    ) -> None:
        if positive:
            self.connection.append(make(positive))
        if negative:
            test = make(negative)
            self.connection.append(lambda c: not test(c))

    def of_request(
        self, make: Callable[[Sequence[str]], RequestTest], positive: Sequence[str], negative: Sequence[str]
    ) -> None:
        if positive:
            self.request.append(make(positive))
        if negative:
            test = make(negative)
            self.request.append(lambda head, path: not test(head, path))

    def done(self) -> Alternative:
        return tuple(self.connection), tuple(self.request)


def _source(s: Source, namespace: str, trust_domain: str) -> Alternative:
    t = _Tests()
    t.of_connection(lambda v: _principals(v, trust_domain), s.principals, s.not_principals)
    t.of_connection(_namespaces, s.namespaces, s.not_namespaces)
    t.of_connection(lambda v: _accounts(v, namespace), s.service_accounts, s.not_service_accounts)
    t.of_connection(_trust_domains, s.trust_domains, s.not_trust_domains)
    t.of_connection(_source_ips, s.ip_blocks, s.not_ip_blocks)
    t.of_request(_unproven, s.request_principals, s.not_request_principals)
    done = t.done()
    return _with_remote(done, s.remote_ip_blocks, s.not_remote_ip_blocks)


def _operation(o: Operation) -> Alternative:
    t = _Tests()
    t.of_connection(_ports, o.ports, o.not_ports)
    t.of_request(_methods, o.methods, o.not_methods)
    t.of_request(_paths, o.paths, o.not_paths)
    t.of_request(_hosts, o.hosts, o.not_hosts)
    return t.done()


def _condition(c: Condition, trust_domain: str) -> Alternative:
    t = _Tests()
    match c.key:
        case "source.ip":
            t.of_connection(_source_ips, c.values, c.not_values)
        case "source.namespace":
            t.of_connection(_namespaces, c.values, c.not_values)
        case "source.principal":
            t.of_connection(lambda v: _principals(v, trust_domain), c.values, c.not_values)
        case "destination.ip":
            t.of_connection(_destination_ips, c.values, c.not_values)
        case "destination.port":
            t.of_connection(_ports, c.values, c.not_values)
        case "connection.sni":
            t.of_connection(_snis, c.values, c.not_values)
        case "remote.ip":
            return _with_remote(((), ()), c.values, c.not_values)
        case key if (name := _bracketed(key, "request.headers")) is not None:
            t.of_request(lambda v: _header(name, v), c.values, c.not_values)
        case _:  # request.auth.…: no token is proven; experimental.…: nobody writes such metadata here
            t.of_request(_unproven, c.values, c.not_values)
    return t.done()


# -- tests that a connection answers


def _principals(values: Sequence[str], trust_domain: str) -> ConnectionTest:
    # istiod reads the default trust domain in a policy as the mesh's own, whatever that is called
    test = strings(v if trust_domain == "cluster.local" else _own_domain(v, trust_domain) for v in values)
    return lambda c: c.identity is not None and test(c.identity.principal)


def _own_domain(value: str, trust_domain: str) -> str:
    domain, slash, rest = value.partition("/")
    return f"{trust_domain}/{rest}" if slash and domain == "cluster.local" else value


def _namespaces(values: Sequence[str]) -> ConnectionTest:
    pattern = re.compile("|".join(f"(?:{'.*'.join(map(re.escape, v.split('*')))})" for v in values)).fullmatch
    return lambda c: c.identity is not None and pattern(c.identity.namespace) is not None


def _accounts(values: Sequence[str], namespace: str) -> ConnectionTest:
    pairs = frozenset(tuple(v.split("/", 1)) if "/" in v else (namespace, v) for v in values)
    return lambda c: c.identity is not None and (c.identity.namespace, c.identity.service_account) in pairs


def _trust_domains(values: Sequence[str]) -> ConnectionTest:
    test = strings(values)
    return lambda c: c.identity is not None and test(c.identity.trust_domain)


def _source_ips(values: Sequence[str]) -> ConnectionTest:
    test = networks_test(tuple(values))
    return lambda c: test(c.source_ip)


def _destination_ips(values: Sequence[str]) -> ConnectionTest:
    test = networks_test(tuple(values))
    return lambda c: test(c.destination_ip)


def _ports(values: Sequence[str]) -> ConnectionTest:
    ports = frozenset(int(v) for v in values if v.isascii() and v.isdigit())
    return lambda c: c.destination_port in ports


def _snis(values: Sequence[str]) -> ConnectionTest:
    test = strings(values)
    return lambda c: bool(c.sni) and test(c.sni)


def strings(values: Iterable[str]) -> Callable[[str], bool]:
    """Istio's notation: `*` anything that is not empty, `*x` suffix, `x*` prefix, else exact."""
    exact, tails, heads, anything = _sorted_out(values)
    if not tails and not heads and not anything:
        return exact.__contains__
    return lambda text: (anything and bool(text)) or text in exact or text.startswith(heads) or text.endswith(tails)


def _sorted_out(values: Iterable[str]) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...], bool]:
    values = tuple(values)
    rest = [v for v in values if v != "*"]
    tails = tuple(v[1:] for v in rest if v.startswith("*"))
    heads = tuple(v[:-1] for v in rest if v.endswith("*") and not v.startswith("*"))
    exact = frozenset(v for v in rest if not v.startswith("*") and not v.endswith("*"))
    return exact, tails, heads, "*" in values


# -- tests that a request answers


def _methods(values: Sequence[str]) -> RequestTest:
    test = _bytes_test(values)
    return lambda head, path: test(head.method)


def _hosts(values: Sequence[str]) -> RequestTest:
    test = _bytes_test(v.lower() for v in values)
    return lambda head, path: test(head.authority.lower())


def _paths(values: Sequence[str]) -> RequestTest:
    plain = _bytes_test(v for v in values if not is_template(v))
    templates = [template(v) for v in values if is_template(v)]
    if not templates:
        return lambda head, path: plain(path)
    return lambda head, path: plain(path) or any(matches(path) for matches in templates)


def _header(name: bytes, values: Sequence[str]) -> RequestTest:
    test = _bytes_test(values)
    if name in (b":authority", b"host"):
        return lambda head, path: test(head.authority)
    if name == b":method":
        return lambda head, path: test(head.method)
    if name == b":path":
        return lambda head, path: test(head.path)
    if "*" in values:  # asks for presence, and an empty value is present
        return lambda head, path: any(key == name for key, _ in head.fields)
    # each line by itself: joined with commas, a second line would hide the first one's value from a DENY
    # (CVE-2026-26308; Envoy's RBAC compares so since 1.37.1)
    return lambda head, path: any(key == name and test(value) for key, value in head.fields)


def _unproven(values: Sequence[str]) -> RequestTest:
    return lambda head, path: False


def _bytes_test(values: Iterable[str]) -> Callable[[bytes], bool]:
    exact, tails, heads, anything = _sorted_out(values)
    names = frozenset(v.encode() for v in exact)
    ends, starts = tuple(v.encode() for v in tails), tuple(v.encode() for v in heads)
    if anything:
        return bool
    if not ends and not starts:
        return names.__contains__
    if not ends and not names:
        return lambda text: text.startswith(starts)
    return lambda text: text in names or text.startswith(starts) or text.endswith(ends)


# -- remote addresses: what the last entry of x-forwarded-for says, else the connection's peer


class Remote:
    """A question about a request that needs its connection too."""

    __slots__ = ("_test", "_wanted")

    def __init__(self, values: Sequence[str], wanted: bool) -> None:
        self._test = networks_test(tuple(values))
        self._wanted = wanted

    def bound(self, connection: Connection) -> RequestTest:
        test, wanted, peer = self._test, self._wanted, _holds(self._test, connection.source_ip)

        def matches(head: Head, path: bytes) -> bool:
            said = remote_address(head.fields)
            return (peer if said is None else _holds(test, said)) is wanted

        return matches

    def __call__(self, head: Head, path: bytes) -> bool:
        raise AssertionError("BUG: a question about a remote address was not bound to its connection")


def remote_address(fields: Fields) -> str | None:
    """The rightmost address of x-forwarded-for, which Envoy trusts where no hops are told to it; None without one."""
    for name, value in reversed(fields):
        if name == b"x-forwarded-for":
            text = value.rpartition(b",")[2].strip().decode("latin-1")
            try:
                return str(ip_address(text))
            except ValueError:
                return None
    return None


def _holds(test: Callable[[str], bool], address: str) -> bool:
    try:
        return test(address)
    except ValueError:
        return False


def _with_remote(done: Alternative, positive: Sequence[str], negative: Sequence[str]) -> Alternative:
    asks = [*done[1], *(Remote(values, wanted) for values, wanted in ((positive, True), (negative, False)) if values)]
    return done[0], tuple(asks)


def _bracketed(key: str, prefix: str) -> bytes | None:
    """`x` of `request.headers[x]`, in lower case."""
    if key.startswith(prefix + "[") and key.endswith("]"):
        return key[len(prefix) + 1 : -1].lower().encode()
    return None
