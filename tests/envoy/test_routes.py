"""Our routes beside a live Envoy's, in a sidecar and in a waypoint: what is answered, who is asked, and what it sees.

Rules made by hypothesis, as VirtualService and as HTTPRoute, then a table of what takes time or chance: weights,
timeouts, retries, faults, mirrors. Every service has resources of its own, so one pair of proxies holds many cases.
`DIFFERENCES` are known, and taken off before the two are compared. One more is gone round: a connection that was used
before and ends without a byte of an answer is taken for stale by ours, and a request that its method lets repeat goes
again (RFC 9110 9.2.2), where Envoy answers 503; so requests that meet a reset are POSTs here.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from testbed.model.traffic import (
    Destination,
    DestinationRule,
    DirectResponse,
    Fault,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    Mirror,
    NamedMatch,
    ParentRef,
    Redirect,
    RequestMatch,
    Retries,
    Rewrite,
    Subset,
    TextKind,
    TextMatch,
    TrafficPolicy,
    VirtualService,
    WeightedDestination,
)
from tests.envoy.routescene import ROLES, Answer, Asked, RouteScene, Seen, is_mirror
from tests.envoy.test_interop import wait_for
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
SETS = 20
EARLY_S = 0.02
"""By how much a timer of an event loop may fire too early: its clock is that of the turn's beginning."""
DIFFERENCES = {
    "date": "in answers: Envoy adds it where the application wrote none",
    "server": "in answers: of Envoy's own, it says `envoy`; ours say nothing",
    "x-envoy-upstream-service-time": "in answers: Envoy's measurement",
    "connection": "in answers: Envoy ends a connection whose request it did not read, ours reads a short rest",
    "content-length": "in answers without a body: our own to HEAD have none",
    "transfer-encoding": "in answers to HEAD: Envoy says `chunked` of a body that it never sends",
    "x-envoy-internal": "in a mirror's copy: Envoy's own client says that it is inside",
    "x-forwarded-for": "in a mirror's copy: Envoy's own address",
    "x-envoy-original-path": "in requests whose path was rewritten: Envoy keeps the old one there",
    "x-envoy-original-host": "likewise, of requests whose authority was rewritten",
}
_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# -- one comparison


def normal(answer: Answer, seen: Sequence[Seen]) -> dict[str, object]:
    """What must be the same; fields by name, lines of one name in their order."""
    return {
        "status": answer.status,
        "answer": [f for f in _fields(answer.fields) if f[0] != "content-length" or answer.body],
        "body": answer.body,
        "seen": [(s.by, s.method, s.path, s.body, _fields(s.fields)) for s in seen if not is_mirror(s)],
    }


def _fields(fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    kept = []
    for name, value in fields:
        if (name in DIFFERENCES and name != "content-length") or name == "x-id":
            continue
        if name == "x-envoy-expected-rq-timeout-ms" and dict(fields).get("x-envoy-attempt-count", "1") != "1":
            value = "what is left"
        if name == "x-request-id":
            value = "made" if _REQUEST_ID.fullmatch(value) else value
        kept.append((name, value))
    return sorted(kept, key=lambda pair: pair[0])


def both(scene: RouteScene, role: str, service: str, asked: Asked) -> tuple[dict, dict]:
    return tuple(  # type: ignore[return-value]
        normal(*scene.ask(implementation, role, service, asked)) for implementation in ("ours", "envoy")
    )


# -- rules by chance

PATHS = (
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/ab",
    "/A/B",
    "/b?q=1",
    "/a/b?q=1&r=&q=2",
    "/a%2fb",
    "/b/c/d?x=/a",
    "/a//b",
    "/c/../b",
)
ASKED = [
    Asked(),
    *(Asked(path=path) for path in PATHS[1:]),
    Asked(path="/a", method="POST", body=b"given", fields=(("x-user", "jane"),)),
    Asked(path="/a/b", method="PUT", fields=(("x-user", "jane"), ("x-user", "joe"))),
    Asked(path="/b", method="HEAD", fields=(("x-user", ""),)),
    Asked(path="/ab", authority="{service}.default.svc.cluster.local", fields=(("x-version", "v10"),)),
    Asked(path="/a", authority="{service}:80", fields=(("x-version", "v1"), ("x-old", "there"))),
    Asked(path="/a", authority="{service}.default:80", fields=(("cookie", "a=b; c=d"), ("x-gone", "1"))),
]


def texts(
    *values: str, kinds: Sequence[TextKind] = (TextKind.EXACT, TextKind.PREFIX, TextKind.REGEX)
) -> st.SearchStrategy:
    plain = [k for k in kinds if k is not TextKind.REGEX]
    return st.one_of(
        st.builds(TextMatch, kind=st.sampled_from(plain), value=st.sampled_from(values)),
        *(
            [st.builds(TextMatch, kind=st.just(TextKind.REGEX), value=st.sampled_from(REGEXES))]
            if TextKind.REGEX in kinds
            else []
        ),
    )


REGEXES = (".*", "/a.*", "/[ab](/.*)?", "v[0-9]+", "jane|joe", "G.T", "j.*e", "")
URIS = ("/", "/a", "/a/", "/a/b", "/A", "/b")
URI = texts(*URIS)
ANY_CASE = st.builds(
    TextMatch,
    kind=st.sampled_from([TextKind.EXACT, TextKind.PREFIX]),
    value=st.sampled_from(URIS),
    ignore_case=st.just(True),
)
SEGMENTS = st.builds(TextMatch, kind=st.just(TextKind.SEGMENTS), value=st.sampled_from(URIS))
PRESENT = st.just(TextMatch(kind=TextKind.PRESENT))
NAMED = st.builds(
    NamedMatch,
    name=st.sampled_from(["x-user", "x-version", "x-old", "cookie"]),
    text=st.one_of(texts("jane", "v1", "j", ""), PRESENT),
)
QUERY = st.builds(NamedMatch, name=st.sampled_from(["q", "r", "x"]), text=st.one_of(texts("1", "", "2", "/a"), PRESENT))


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.none(), st.none(), strategy)


def few(strategy: st.SearchStrategy, most: int = 1) -> st.SearchStrategy:
    return st.one_of(st.just(()), st.lists(strategy, max_size=most).map(tuple))


VIRTUAL_MATCHES = st.builds(
    RequestMatch,
    uri=optional(st.one_of(URI, ANY_CASE)),
    method=optional(texts("GET", "P", "POST")),
    authority=optional(texts("s", "s0.default", "x")),
    scheme=optional(texts("http", "https")),
    headers=few(NAMED),
    without_headers=few(NAMED),
    query=few(QUERY),
)
GATEWAY_MATCHES = st.builds(
    RequestMatch,
    uri=optional(st.one_of(SEGMENTS, URI)),
    method=optional(texts("GET", "POST", kinds=[TextKind.EXACT])),
    headers=few(NAMED),
    query=few(QUERY),
)
NAMES = ("x-user", "x-new", "x-gone", "x-given")
PAIRS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["one", "", "50%"])), max_size=2, unique_by=lambda pair: pair[0]
).map(tuple)
EDITS = optional(st.builds(HeaderEdits, set=PAIRS, add=PAIRS, remove=few(st.sampled_from(NAMES))))
HOSTS = st.sampled_from(
    [("other", ""), ("{service}", "v1"), ("{service}", "v2"), ("nobody", ""), ("{service}", "v3"), ("{service}", "v1")]
)
DESTINATIONS = st.builds(
    lambda to, request, response: WeightedDestination(
        destination=Destination(host=to[0], subset=to[1]), request_headers=request, response_headers=response
    ),
    HOSTS,
    EDITS,
    EDITS,
)
REWRITES = optional(
    st.one_of(
        st.builds(
            Rewrite, prefix=st.sampled_from(["/", "/x", "/x/", ""]), authority=st.sampled_from([None, "else.where"])
        ),
        st.builds(Rewrite, authority=st.just("else.where:81")),
        st.builds(Rewrite, regex=st.sampled_from([("a", "z"), ("^/(.)(.*)$", "/\\2/\\1"), ("nothing", "x")])),
    )
)
GATEWAY_REWRITES = optional(st.one_of(st.builds(Rewrite, path=st.just("/whole")), REWRITES))
REDIRECTS = st.builds(
    Redirect,
    status=st.sampled_from([301, 302, 303, 307, 308]),
    scheme=st.sampled_from([None, "https", "http"]),
    authority=st.sampled_from([None, "else.where"]),
    port=st.sampled_from([None, 80, 443, 8443]),
    path=st.sampled_from([None, None, "/new", "/new?with=query"]),
)
GATEWAY_REDIRECTS = st.builds(
    Redirect, status=st.just(302), scheme=st.sampled_from([None, "https"]), prefix=st.sampled_from(["/", "/x", "/x/"])
)
DIRECT = st.builds(DirectResponse, status=st.sampled_from([200, 204, 404, 503]), body=st.sampled_from(["", "as said"]))
FAULTS = optional(
    st.builds(Fault, abort_status=st.sampled_from([400, 503, 555]), abort_share=st.sampled_from([0.0, 1.0]))
)


def rules(matches: st.SearchStrategy, rewrites: st.SearchStrategy, redirects: st.SearchStrategy) -> st.SearchStrategy:
    forward = st.builds(
        HttpRule,
        matches=few(matches, 2),
        destinations=st.tuples(DESTINATIONS),
        rewrite=rewrites,
        fault=FAULTS,
        request_headers=EDITS,
        response_headers=EDITS,
    )
    answer = st.one_of(
        st.builds(HttpRule, matches=few(matches, 2), redirect=redirects, response_headers=EDITS),
        st.builds(HttpRule, matches=few(matches, 2), direct_response=DIRECT, response_headers=EDITS),
    )
    return st.lists(st.one_of(forward, forward, answer), min_size=1, max_size=3).map(tuple)


VIRTUAL = rules(VIRTUAL_MATCHES, REWRITES, REDIRECTS).map(lambda made: ("virtual", made))
GATEWAY = rules(GATEWAY_MATCHES, GATEWAY_REWRITES, st.one_of(REDIRECTS, GATEWAY_REDIRECTS)).map(
    lambda made: ("gateway", made)
)
RULE_SETS = st.lists(st.one_of(VIRTUAL, GATEWAY), min_size=SETS, max_size=SETS)


def resource(kind: str, service: str, made: Sequence[HttpRule]) -> object:
    here = tuple(
        dataclasses.replace(
            rule,
            destinations=tuple(
                dataclasses.replace(
                    d, destination=dataclasses.replace(d.destination, host=d.destination.host.format(service=service))
                )
                for d in rule.destinations
            ),
        )
        for rule in made
    )
    if kind == "virtual":
        return VirtualService(name=service, namespace="default", hosts=(service,), http=here)
    return HttpRoute(name=service, namespace="default", parents=(ParentRef(kind="Service", name=service),), rules=here)


SHOWN = 4
"""Of each kind of difference."""


def _difference(ours: dict, theirs: dict) -> tuple[str, object, object]:
    """(what, ours, Envoy's), as short as can be."""
    what = next(key for key in ours if ours[key] != theirs[key])
    if what == "answer":
        return what, [f for f in ours[what] if f not in theirs[what]], [f for f in theirs[what] if f not in ours[what]]
    if what == "seen" and len(ours[what]) == len(theirs[what]) == 1:
        (one,), (other,) = ours[what], theirs[what]
        if one[:4] == other[:4]:
            return what, [f for f in one[4] if f not in other[4]], [f for f in other[4] if f not in one[4]]
        return what, one[:4], other[:4]
    return what, ours[what], theirs[what]


def _grouped(differ: Sequence[tuple]) -> dict[str, list[str]]:
    """The first of each resource, by role and by what differs."""
    found: dict[str, list[str]] = {}
    told: set[tuple] = set()
    for role, what, ours, theirs, asked, made in differ:
        if (role, what, id(made)) in told:
            continue
        told.add((role, what, id(made)))
        found.setdefault(f"{role} {what}", []).append(
            f"ours {ours}, Envoy's {theirs} for {_short(asked)} by {_short(made)}"
        )
    return found


def _short(value: object) -> str:
    """A dataclass with what is not its default."""
    if dataclasses.is_dataclass(value):
        kept = [(f.name, held) for f in dataclasses.fields(value) if (held := getattr(value, f.name)) != f.default]
        return f"{type(value).__name__}({', '.join(f'{name}={_short(held)}' for name, held in kept if held != ())})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def test_envoy_routes_as_we_do(tmp_path: Path) -> None:
    """For every rule and request: the same answer, from the same application, which saw the same request."""
    seen: dict[int, int] = {}
    differ: list[tuple] = []
    numbers = iter(range(1000))

    @settings(
        max_examples=3,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(sets=RULE_SETS)
    def both_route(sets: list) -> None:
        names = [f"s{n}" for n in range(len(sets))]
        resources = [resource(kind, name, made) for name, (kind, made) in zip(names, sets, strict=True)]
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        with RouteScene(folder, names, resources) as scene:
            for name, made in zip(names, resources, strict=True):
                for asked in ASKED:
                    asked = dataclasses.replace(asked, authority=asked.authority.format(service=name))
                    for role in ROLES:
                        ours, theirs = both(scene, role, name, asked)
                        seen[ours["status"]] = seen.get(ours["status"], 0) + 1
                        if ours != theirs:
                            differ.append((role, *_difference(ours, theirs), asked, made))

    both_route()
    assert not differ, f"{len(differ)} of {sum(seen.values())} differ: " + "".join(
        f"\n{kind}: {len(found)}" + "".join(f"\n  {line}" for line in found[:SHOWN])
        for kind, found in _grouped(differ).items()
    )
    kinds = {"forwarded": 200, "not found": 404, "no such destination": 503}
    counts = {kind: seen.get(status, 0) for kind, status in kinds.items()}
    counts["redirected"] = sum(count for status, count in seen.items() if 300 <= status < 400)
    assert min(counts.values()) > 20, f"the requests tell little: {seen}"


# -- what takes time or chance


def to(service: str, subset: str = "", **more: object) -> WeightedDestination:
    return WeightedDestination(destination=Destination(host=service, subset=subset), **more)  # type: ignore[arg-type]


def one_rule(service: str, **rule: object) -> VirtualService:
    made = HttpRule(**{"destinations": (to(service, "v1"),), **rule})  # type: ignore[arg-type]
    return VirtualService(name=service, namespace="default", hosts=(service,), http=(made,))


def retried(service: str, on: str, attempts: int | None = None, **more: object) -> VirtualService:
    retries = Retries(retry_on=on, attempts=attempts, backoff_s=0.005, **more)  # type: ignore[arg-type]
    return one_rule(service, retries=retries)


PLANS = ("503,200", "500,502,200", "409,200", "429,200", "reset,200", "reset", "grpc14,200", "grpc4,200", "504")
RETRIES = {
    "default": one_rule("default"),
    "none": retried("none", "5xx", 0),
    "once": retried("once", "5xx", 1),
    "five": retried("five", "5xx,retriable-4xx", 5),
    "gateway": retried("gateway", "gateway-error"),
    "reset": retried("reset", "reset"),
    "refused": retried("refused", "connect-failure,refused-stream"),
    "statuses": retried("statuses", "429,500", 2),
    "grpc": retried("grpc", "unavailable,deadline-exceeded", 2),
    "mixed": retried("mixed", "gateway-error,409", 1),
}
TIMEOUTS = {
    "whole": one_rule("whole", timeout_s=0.4),
    "per-try": retried("per-try", "5xx", 2, per_try_timeout_s=0.2),
    "per-try-reset": retried("per-try-reset", "reset", 1, per_try_timeout_s=0.2),
    "per-try-other": retried("per-try-other", "connect-failure", 2, per_try_timeout_s=0.2),
    "both": HttpRule(
        timeout_s=0.5, retries=Retries(attempts=9, retry_on="5xx", per_try_timeout_s=0.2, backoff_s=0.005)
    ),
}
THIRDS = VirtualService(
    name="thirds",
    namespace="default",
    hosts=("thirds",),
    http=(
        HttpRule(
            matches=(RequestMatch(uri=TextMatch(kind=TextKind.EXACT, value="/zero")),),
            destinations=(to("thirds", "v1", weight=0), to("thirds", "v2", weight=1)),
        ),
        HttpRule(
            destinations=(
                to("thirds", "v1", weight=20),
                to("thirds", "v2", weight=30, response_headers=HeaderEdits(set=(("x-v", "2"),))),
                to("other", weight=50),
            )
        ),
    ),
)
NO_WEIGHT = HttpRoute(
    name="no-weight",
    namespace="default",
    parents=(ParentRef(kind="Service", name="no-weight"),),
    rules=(HttpRule(destinations=(to("no-weight", weight=0), to("other", weight=0))),),
)
FAULTS_TABLE = {
    "late": one_rule("late", fault=Fault(delay_s=0.3, delay_share=1.0)),
    "late-abort": one_rule("late-abort", fault=Fault(delay_s=0.2, delay_share=1.0, abort_status=418, abort_share=1.0)),
    "half": one_rule("half", fault=Fault(abort_status=418, abort_share=0.5)),
    "grpc-abort": one_rule("grpc-abort", fault=Fault(abort_grpc_status="UNAVAILABLE", abort_share=1.0)),
}
MIRRORS = {
    "mirrored": one_rule("mirrored", mirrors=(Mirror(destination=Destination(host="other")),)),
    "half-mirrored": one_rule("half-mirrored", mirrors=(Mirror(destination=Destination(host="other"), share=0.5),)),
    "rewritten": one_rule(
        "rewritten",
        mirrors=(Mirror(destination=Destination(host="other")),),
        rewrite=Rewrite(prefix="/x", authority="else.where:81"),
        request_headers=HeaderEdits(set=(("x-new", "1"),)),
    ),
}
SAMPLE = 300


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouteScene]:
    timeouts = {
        name: made
        if isinstance(made, VirtualService)
        else one_rule(name, timeout_s=made.timeout_s, retries=made.retries)
        for name, made in TIMEOUTS.items()
    }
    held = {**RETRIES, **timeouts, **FAULTS_TABLE, **MIRRORS, "thirds": THIRDS, "no-weight": NO_WEIGHT}
    ejecting = DestinationRule(
        name="once",
        namespace="default",
        host="once",
        policy=TrafficPolicy(),
        subsets=tuple(Subset(name=v, labels=(("version", v),)) for v in ("v1", "v2")),
    )
    unsubset = {
        "gone": VirtualService(
            name="gone", namespace="default", hosts=("gone",), http=(HttpRule(destinations=(to("dead"),)),)
        )
    }
    resources = [*held.values(), *unsubset.values(), ejecting]
    with RouteScene(tmp_path_factory.mktemp("table"), [*held, *unsubset], resources) as made:
        yield made


in_both_roles = pytest.mark.parametrize("role", ROLES)


@in_both_roles
@pytest.mark.parametrize("service", RETRIES)
@pytest.mark.parametrize("body", [b"", b"given"], ids=["get", "post"])
def test_attempts_and_what_they_are_for(table: RouteScene, role: str, service: str, body: bytes) -> None:
    """As many attempts, each as the application saw it, and the same answer in the end, over all that may go wrong."""
    for plan in (p for p in PLANS if body or "reset" not in p):
        asked = Asked(plan=plan, method="POST" if body else "GET", body=body)
        ours, theirs = both(table, role, service, asked)
        assert ours == theirs, plan


@in_both_roles
def test_an_endpoint_that_is_not_there(table: RouteScene, role: str) -> None:
    """503 in Envoy's words after as many refused connections; the reason behind the colon is the machine's own."""
    answers = [table.ask(implementation, role, "gone", Asked())[0] for implementation in ("ours", "envoy")]

    assert [a.status for a in answers] == [503, 503]
    assert len({a.body.split(b"reset reason: ")[0] for a in answers}) == 1
    assert all(b"connection failure" in a.body for a in answers)


@in_both_roles
@pytest.mark.parametrize("service", TIMEOUTS)
@pytest.mark.parametrize("plan", ["200", "slow900", "slow300,200"])
def test_timeouts(table: RouteScene, role: str, service: str, plan: str) -> None:
    """The whole, each try, and both; what is told upstream of the time that is left; never sooner than asked."""
    answers = {
        implementation: table.ask(implementation, role, service, Asked(plan=plan))
        for implementation in ("ours", "envoy")
    }
    ours, theirs = (normal(*answers[implementation]) for implementation in ("ours", "envoy"))

    assert ours == theirs
    if ours["status"] == 504:
        least_s = 0.4 if service in ("whole", "both") else 0.2
        assert all(least_s - EARLY_S <= answer.took_s for answer, _ in answers.values())


@in_both_roles
def test_weights(table: RouteScene, role: str) -> None:
    """20, 30 and 50 of a hundred; a weight of nothing gets nothing; edits belong to their destination."""
    for implementation in ("ours", "envoy"):
        asked = [table.ask(implementation, role, "thirds", Asked()) for _ in range(SAMPLE)]
        taken = [seen[0].by for _, seen in asked]
        for name, share in (("v1", 0.2), ("v2", 0.3), ("other", 0.5)):
            # six standard deviations: once in 10^9 runs by chance
            assert abs(taken.count(name) / SAMPLE - share) < 6 * (share * (1 - share) / SAMPLE) ** 0.5, (
                implementation,
                name,
            )
        assert {(s[0].by, a.field("x-v")) for a, s in asked} == {("v1", None), ("v2", "2"), ("other", None)}
        none = [table.ask(implementation, role, "thirds", Asked(path="/zero"))[1][0].by for _ in range(30)]
        assert set(none) == {"v2"}


@in_both_roles
def test_weights_that_sum_to_nothing(table: RouteScene, role: str) -> None:
    """An HTTPRoute's answer is 500."""
    ours, theirs = both(table, role, "no-weight", Asked())

    assert ours == theirs
    assert (ours["status"], ours["seen"]) == (500, [])


@in_both_roles
@pytest.mark.parametrize("service", ["late", "late-abort", "grpc-abort"])
def test_faults(table: RouteScene, role: str, service: str) -> None:
    """A delay comes before all else, an abort after it."""
    asked = Asked(fields=(("content-type", "application/grpc"),) if service == "grpc-abort" else ())
    answers = [table.ask(implementation, role, service, asked) for implementation in ("ours", "envoy")]
    ours, theirs = (normal(*told) for told in answers)

    assert ours == theirs
    least_s = {"late": 0.3, "late-abort": 0.2, "grpc-abort": 0.0}[service]
    assert all(answer.took_s >= least_s - EARLY_S for answer, _ in answers)


@in_both_roles
def test_a_share_of_faults(table: RouteScene, role: str) -> None:
    for implementation in ("ours", "envoy"):
        statuses = [table.ask(implementation, role, "half", Asked())[0].status for _ in range(SAMPLE)]
        assert set(statuses) == {200, 418}
        assert abs(statuses.count(418) / SAMPLE - 0.5) < 6 * (0.25 / SAMPLE) ** 0.5, implementation


@in_both_roles
@pytest.mark.parametrize("service", ["mirrored", "rewritten"])
@pytest.mark.parametrize("body", [b"", b"given"], ids=["get", "post"])
def test_mirrors(table: RouteScene, role: str, service: str, body: bytes) -> None:
    """The copy bears the mark in its authority, and else what the request itself bore."""
    copies = []
    asked = Asked(path="/a?q=1", method="POST" if body else "GET", body=body, fields=(("x-user", "jane"),))
    for implementation in ("ours", "envoy"):
        answer, seen = table.ask(implementation, role, service, asked)
        held = table.seen[seen[0].field("x-id") or ""]
        wait_for(lambda held=held: any(map(is_mirror, held)), "the copy arrives")
        time.sleep(0.05)
        assert answer.status == 200
        copies.append([(s.by, s.method, s.path, s.body, _fields(s.fields)) for s in held if is_mirror(s)])

    assert copies[0] == copies[1]
    assert [copy[0] for copy in copies[0]] == ["other"]


@in_both_roles
def test_a_share_of_mirrors(table: RouteScene, role: str) -> None:
    for implementation in ("ours", "envoy"):
        held = [table.ask(implementation, role, "half-mirrored", Asked())[1][0].field("x-id") for _ in range(SAMPLE)]
        time.sleep(0.3)
        copied = sum(any(map(is_mirror, table.seen[identifier or ""])) for identifier in held)
        assert abs(copied / SAMPLE - 0.5) < 6 * (0.25 / SAMPLE) ** 0.5, implementation
