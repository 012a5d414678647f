"""AuthorizationPolicy as an L7 proxy enforces it: DENY, then ALLOW, over a connection and the head of a request.

Pure. Meaning from istiod's `pilot/pkg/security/authz/model` and Envoy's RBAC filter: a policy's rules are alternatives;
a rule's `from`, `to` and each `when` must all hold; sources and operations are alternatives, their fields must all
hold, values are alternatives, `not…`: none of them. `:authority` is compared as it came, port and all, without regard
to case; paths are compared without their query, normalised before (`httppath`).

What a connection decides is decided once: `PolicySet.judge(connection)` evaluates everything about addresses, ports,
identities and names, and leaves a `Judge` that holds the questions about requests only. CUSTOM is not evaluated, and
without JWTs no `request.auth` value matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from testbed.model.l4policy import Connection, Verdict
from testbed.model.l7rules import Clause, Fields, Head, Remote, RequestTest, clauses
from testbed.model.policy import Action, AuthorizationPolicy


class _Compiled:
    """One policy, its rules as clauses of alternatives, and the verdict it gives."""

    __slots__ = ("action", "dry_run", "key", "rules", "tcp_rules", "verdict")

    def __init__(self, policy: AuthorizationPolicy, trust_domain: str) -> None:
        self.key = key = f"{policy.namespace}/{policy.name}"
        self.action = policy.action
        self.dry_run = policy.dry_run
        self.rules = tuple(clauses(rule, policy.namespace, trust_domain) for rule in policy.rules)
        self.tcp_rules = tuple(
            t for r in self.rules if (t := _over_tcp(r, allow=policy.action is Action.ALLOW)) is not None
        )
        if policy.action is Action.DENY:
            self.verdict = Verdict(allowed=False, policy=key, reason=f"explicitly denied by {key}")
        else:
            self.verdict = Verdict(allowed=True, policy=key, reason=f"allowed by {key}")


_NO_POLICY = Verdict(allowed=True, reason="no allow policy applies")
_NONE_ALLOWED = Verdict(allowed=False, reason="allow policies exist, but none allowed")


class PolicySet:
    """The policies of one enforcement point, in whatever order; those of action CUSTOM are left out."""

    __slots__ = ("_compiled", "names")

    def __init__(self, policies: Iterable[AuthorizationPolicy], *, trust_domain: str = "cluster.local") -> None:
        self._compiled = tuple(_Compiled(p, trust_domain) for p in policies if p.action is not Action.CUSTOM)
        self.names = tuple(c.key for c in self._compiled)

    def judge(self, connection: Connection) -> Judge:
        """For all requests of a connection; keep it as long as the connection."""
        return Judge([(c, _left(c.rules, connection)) for c in self._compiled])

    def decide_tcp(self, connection: Connection) -> Verdict:
        """For a connection that is not HTTP. As in Istio, an ALLOW rule that asks for HTTP never holds there, and of a
        DENY rule only what a connection can answer is asked: what held nothing else denies everything.
        """
        return Judge([(c, _left(c.tcp_rules, connection)) for c in self._compiled]).decide(_NOTHING)


class _Nothing:
    method = authority = path = b""
    fields: Fields

    def __init__(self) -> None:
        self.fields = []


_NOTHING = _Nothing()

_Left = Sequence[tuple[tuple[tuple[RequestTest, ...], ...], ...]]
"""Rules of clauses of alternatives of tests; an empty rule holds always."""


class Judge:
    """The verdict over requests of one connection."""

    __slots__ = ("_allow", "_denials", "_grants", "_notes", "_otherwise", "fixed")

    def __init__(self, policies: Sequence[tuple[_Compiled, _Left]]) -> None:
        self._notes = [(c, _any_rule(rules)) for c, rules in policies if rules and _is_note(c)]
        acting = [(c, rules) for c, rules in policies if not _is_note(c)]
        self._denials = [(c.verdict, _any_rule(rules)) for c, rules in acting if rules and c.action is Action.DENY]
        self._grants = [(c.verdict, _any_rule(rules)) for c, rules in acting if rules and c.action is Action.ALLOW]
        has_allow = any(c.action is Action.ALLOW for c, _ in acting)
        self._otherwise = _NONE_ALLOWED if has_allow else _NO_POLICY
        self.fixed = self._settle(acting)
        """The verdict, where no request can change it; None otherwise."""

    def _settle(self, acting: Sequence[tuple[_Compiled, _Left]]) -> Verdict | None:
        if self._notes:
            return None
        for c, rules in acting:
            if c.action is Action.DENY and () in rules:
                return c.verdict
        if self._denials:
            return None
        for c, rules in acting:  # in order: the first that may grant must do so always
            if c.action is Action.ALLOW and rules:
                return c.verdict if () in rules else None
        return self._otherwise

    def decide(self, head: Head) -> Verdict:
        """`head.path` must be normalised already: what is judged is what is forwarded."""
        if self.fixed is not None:
            return self.fixed
        path = head.path
        if b"?" in path:
            path = path[: path.index(b"?")]
        verdict = self._verdict(head, path)
        return verdict if not self._notes else self._noted(verdict, head, path)

    def _verdict(self, head: Head, path: bytes) -> Verdict:
        for verdict, matches in self._denials:
            if matches(head, path):
                return verdict
        for verdict, matches in self._grants:
            if matches(head, path):
                return verdict
        return self._otherwise

    def _noted(self, verdict: Verdict, head: Head, path: bytes) -> Verdict:
        seen = [c for c, matches in self._notes if matches(head, path)]
        if not seen:
            return verdict
        return Verdict(
            allowed=verdict.allowed, policy=verdict.policy, reason=verdict.reason,
            dry_run=tuple(c.key for c in seen if c.dry_run),
            audited=tuple(c.key for c in seen if not c.dry_run),
        )  # fmt: skip


def _is_note(c: _Compiled) -> bool:
    return c.dry_run or c.action is Action.AUDIT


# -- what a connection leaves of the rules


def _left(rules: Sequence[tuple[Clause, ...]], connection: Connection) -> _Left:
    found = []
    for rule in rules:
        kept = []
        for clause in rule:
            alternatives = [
                tuple(a.bound(connection) if isinstance(a, Remote) else a for a in asks)
                for tests, asks in clause
                if all(test(connection) for test in tests)
            ]
            if not alternatives:
                break
            if () not in alternatives:  # one that holds already settles the clause
                kept.append(tuple(alternatives))
        else:
            found.append(tuple(kept))
    return found


def _over_tcp(rule: tuple[Clause, ...], *, allow: bool) -> tuple[Clause, ...] | None:
    """A rule without its questions about requests; None where that drops it."""
    if allow and any(asks for clause in rule for _, asks in clause):
        return None
    return tuple(tuple((tests, ()) for tests, _ in clause) for clause in rule)


def _any_rule(rules: _Left) -> RequestTest:
    return _any([_all([_any([_all(asks) for asks in clause]) for clause in rule]) for rule in rules])


def _any(tests: Sequence[RequestTest]) -> RequestTest:
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda head, path: first(head, path) or second(head, path)

    def some(head: Head, path: bytes) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs a frame per request
            if test(head, path):
                return True
        return False

    return some


def _all(tests: Sequence[RequestTest]) -> RequestTest:
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda head, path: first(head, path) and second(head, path)

    def every(head: Head, path: bytes) -> bool:
        for test in tests:  # noqa: SIM110
            if not test(head, path):
                return False
        return True

    return every
