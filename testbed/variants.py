"""Topologies as a cell of a sweep names them: a file's or a family's name, and what is varied in it.

`two-zones:l4_policies=1000` is the shipped topology with a thousand more policies, `crowd:per_node=8` one of
`topologies.families`; the grammar is that of a plane with options (`planespec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from testbed import planespec, topofile
from testbed.errors import UsageError
from testbed.model.policy import Action, AuthorizationPolicy, Operation, Rule, Source, TargetRef
from testbed.model.topology import Topology

Family = Callable[..., Topology]
STRANGERS_A_POLICY = 10
"""Principals in each made policy, as ztunnel's own benchmark has rules in one."""


@cache
def resolve(spec: str) -> Topology:
    """Raises UsageError for a name, an option or a value that is not known."""
    name, options = planespec.split(spec)
    varied = {key: _number(spec, key, options.pop(key)) for key in [*options] if key in VARIATIONS}
    if name in _families():
        numbers = {key: _number(spec, key, text) for key, text in options.items()}
        try:
            topology = _families()[name](**numbers)
        except TypeError as error:
            raise UsageError(f"topology {spec}: {error}") from error
    elif options:
        raise UsageError(f"topology {spec}: no option is called {min(options)!r}; known: {', '.join(VARIATIONS)}")
    else:
        topology = topofile.load(topofile.find(name))
    for key, count in varied.items():
        topology = VARIATIONS[key](topology, count)
    return topology


def _families() -> dict[str, Family]:
    from topologies import families

    return families.BY_NAME


def _number(spec: str, key: str, text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"topology {spec}: {key} takes a whole number, not {text!r}")
    return int(text)


def with_l4_policies(topology: Topology, count: int) -> Topology:
    """Each forbids some who never call to call anybody of `default`: all are looked at before a call is allowed."""
    rules = (Rule(sources=(_strangers(topology, number),)) for number in range(count))
    return _denying(topology, "strangers", rules)


def with_l7_policies(topology: Topology, count: int) -> Topology:
    """The same by path, before the service `server`: for whoever reads HTTP there."""
    rules = (
        Rule(sources=(_strangers(topology, number),), operations=(Operation(paths=(f"/hidden/{number}/*",)),))
        for number in range(count)
    )
    return _denying(topology, "strange-paths", rules, at=(TargetRef(kind="Service", name="server"),))


def _denying(topology: Topology, name: str, rules: Iterable[Rule], *, at: tuple[TargetRef, ...] = ()) -> Topology:
    """A policy of `default` for each of the rules."""
    more = tuple(
        AuthorizationPolicy(
            name=f"{name}-{number}", namespace="default", action=Action.DENY, rules=(rule,), target_refs=at
        )
        for number, rule in enumerate(rules)
    )
    return replace(topology, policies=(*topology.policies, *more))


def _strangers(topology: Topology, number: int) -> Source:
    domain = topology.trust_domain
    return Source(
        principals=tuple(f"{domain}/ns/far/sa/stranger-{number}-{one}" for one in range(STRANGERS_A_POLICY))
    )


VARIATIONS = {"l4_policies": with_l4_policies, "l7_policies": with_l7_policies}
