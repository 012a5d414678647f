"""Traffic resources as files: every field through, unknown ones refused with a place and a suggestion."""

from __future__ import annotations

import json

import pytest

from testbed import policyfile
from testbed.errors import TopologyError
from testbed.model.plain import from_plain, to_plain
from testbed.model.traffic import (
    Balance,
    ClientTls,
    ConnectionPool,
    Cors,
    Destination,
    DestinationRule,
    DirectResponse,
    Fault,
    HashOn,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    L4Match,
    L4Rule,
    LoadBalancing,
    LocalityBalance,
    Mirror,
    NamedMatch,
    OutlierDetection,
    ParentRef,
    PortPolicy,
    Redirect,
    RequestMatch,
    Retries,
    RetryBudget,
    Rewrite,
    Subset,
    TextKind,
    TextMatch,
    TlsMode,
    TrafficPolicy,
    VirtualService,
    WeightedDestination,
)
from testbed.resourceitems import seconds


def parse(kind: str, spec: str) -> object:
    version = "gateway.networking.k8s.io/v1" if kind.endswith("Route") else "networking.istio.io/v1"
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\nspec:\n"
    (resource,) = policyfile.parse(text + spec, "t.yml")
    return resource


def problems(kind: str, spec: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse(kind, spec)
    return caught.value.problems


def text(kind: TextKind, value: str = "", *, fold: bool = False) -> TextMatch:
    return TextMatch(kind=kind, value=value, ignore_case=fold)


VIRTUAL_SERVICE = """\
  hosts: [b, "*.example.com"]
  gateways: [mesh]
  exportTo: ["."]
  http:
    - name: all
      match:
        - name: m
          uri: {prefix: /A}
          ignoreUriCase: true
          scheme: {exact: https}
          method: {regex: "GET|PUT"}
          authority: {exact: b}
          headers: {X-User: {exact: j}, x-any: {}}
          withoutHeaders: {x-no: {prefix: p}}
          queryParams: {V: {exact: "1"}}
          port: 80
          sourceLabels: {app: web}
          sourceNamespace: shop
          gateways: [mesh]
          statPrefix: s
      route:
        - destination: {host: b, subset: v1, port: {number: 80}}
          weight: 90
          headers: {request: {set: {X-A: "1"}, add: {x-b: "2"}, remove: [X-C]}}
        - destination: {host: c}
          weight: 10
      rewrite: {uri: /z, authority: a}
      timeout: 1.5s
      retries: {attempts: 3, perTryTimeout: 250ms, retryOn: "5xx,503", backoff: 10ms,
          retryRemoteLocalities: true, retryIgnorePreviousHosts: false}
      fault:
        delay: {fixedDelay: 2s, percentage: {value: 0.1}}
        abort: {httpStatus: 503, percentage: {value: 50}}
      mirrors:
        - {destination: {host: c}, percentage: {value: 25}}
        - {destination: {host: c}}
      corsPolicy:
        allowOrigins: [{exact: "https://a"}]
        allowMethods: [GET]
        allowHeaders: [x]
        exposeHeaders: [y]
        maxAge: 24h
        allowCredentials: true
        unmatchedPreflights: IGNORE
      headers: {response: {remove: [server]}}
    - redirect: {uri: /n, authority: a, port: 81, scheme: https, redirectCode: 308}
    - directResponse: {status: 418, body: {string: tea}}
    - route: [{destination: {host: b}}]
      rewrite: {uriRegexRewrite: {match: ^/x, rewrite: /y}}
      mirror: {host: c}
      mirrorPercentage: {value: 5}
    - delegate: {name: other}
  tcp:
    - match: [{port: 1, destinationSubnets: [10.0.0.0/8]}]
      route: [{destination: {host: b}}]
  tls:
    - match: [{sniHosts: [a]}]
      route: [{destination: {host: b}}]
"""


def test_virtual_service_with_every_field() -> None:
    """Names of headers in lower case, times in seconds, percentages as shares."""
    to_b, to_c = Destination(host="b"), Destination(host="c")

    assert parse("VirtualService", VIRTUAL_SERVICE) == VirtualService(
        name="x",
        namespace="n",
        hosts=("b", "*.example.com"),
        gateways=("mesh",),
        export_to=(".",),
        http=(
            HttpRule(
                name="all",
                matches=(
                    RequestMatch(
                        name="m",
                        uri=text(TextKind.PREFIX, "/A", fold=True),
                        scheme=text(TextKind.EXACT, "https"),
                        method=text(TextKind.REGEX, "GET|PUT"),
                        authority=text(TextKind.EXACT, "b"),
                        headers=(
                            NamedMatch(name="x-user", text=text(TextKind.EXACT, "j")),
                            NamedMatch(name="x-any", text=text(TextKind.PRESENT)),
                        ),
                        without_headers=(NamedMatch(name="x-no", text=text(TextKind.PREFIX, "p")),),
                        query=(NamedMatch(name="V", text=text(TextKind.EXACT, "1")),),
                        port=80,
                        source_labels=(("app", "web"),),
                        source_namespace="shop",
                        gateways=("mesh",),
                    ),
                ),
                destinations=(
                    WeightedDestination(
                        destination=Destination(host="b", subset="v1", port=80),
                        weight=90,
                        request_headers=HeaderEdits(set=(("x-a", "1"),), add=(("x-b", "2"),), remove=("x-c",)),
                    ),
                    WeightedDestination(destination=to_c, weight=10),
                ),
                rewrite=Rewrite(prefix="/z", authority="a"),
                timeout_s=1.5,
                retries=Retries(
                    attempts=3, per_try_timeout_s=0.25, retry_on="5xx,503", backoff_s=0.01,
                    retry_remote_localities=True, ignore_previous_hosts=False,
                ),
                fault=Fault(delay_s=2.0, delay_share=0.001, abort_status=503, abort_share=0.5),
                mirrors=(Mirror(destination=to_c, share=0.25), Mirror(destination=to_c)),
                cors=Cors(
                    allow_origins=(text(TextKind.EXACT, "https://a"),), allow_methods=("GET",), allow_headers=("x",),
                    expose_headers=("y",), max_age_s=86400.0, allow_credentials=True, unmatched_preflights="IGNORE",
                ),
                response_headers=HeaderEdits(remove=("server",)),
                kept_fields=("match.statPrefix",),
            ),
            HttpRule(redirect=Redirect(status=308, path="/n", authority="a", port=81, scheme="https")),
            HttpRule(direct_response=DirectResponse(status=418, body="tea")),
            HttpRule(
                destinations=(WeightedDestination(destination=to_b),),
                rewrite=Rewrite(regex=("^/x", "/y")),
                mirrors=(Mirror(destination=to_c, share=0.05),),
            ),
            HttpRule(kept_fields=("delegate",)),
        ),
        tcp=(
            L4Rule(
                matches=(L4Match(port=1, destination_subnets=("10.0.0.0/8",)),),
                destinations=(WeightedDestination(destination=to_b),),
            ),
        ),
        tls=(L4Rule(matches=(L4Match(sni_hosts=("a",)),), destinations=(WeightedDestination(destination=to_b),)),),
    )  # fmt: skip


DESTINATION_RULE = """\
  host: b
  workloadSelector: {matchLabels: {app: web}}
  trafficPolicy:
    loadBalancer:
      consistentHash: {httpCookie: {name: c, path: /, ttl: 0s}, ringHash: {minimumRingSize: 7}}
      localityLbSetting: {enabled: true, failover: [{from: a, to: b}], failoverPriority: [zone]}
      warmup: {duration: 10s}
    connectionPool:
      tcp: {maxConnections: 1, connectTimeout: 2s, idleTimeout: 1h, maxConnectionDuration: 3s,
          tcpKeepalive: {probes: 1}}
      http: {http1MaxPendingRequests: 4, http2MaxRequests: 5, maxRequestsPerConnection: 6, maxRetries: 7,
          idleTimeout: 8s, h2UpgradePolicy: UPGRADE, useClientProtocol: true, maxConcurrentStreams: 9}
    outlierDetection: {consecutive5xxErrors: 1, consecutiveGatewayErrors: 2, consecutiveLocalOriginFailures: 3,
        splitExternalLocalOriginErrors: true, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 50,
        minHealthPercent: 25}
    tls: {mode: MUTUAL, sni: s, caCertificates: ca, clientCertificate: c, privateKey: k, credentialName: n,
        subjectAltNames: [x], insecureSkipVerify: true}
    retryBudget: {percent: 50, minRetryConcurrency: 1}
    tunnel: {targetHost: x}
    portLevelSettings:
      - port: {number: 80}
        loadBalancer: {simple: LEAST_CONN}
  subsets:
    - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
    - {name: v2}
  exportTo: ["*"]
"""


def test_destination_rule_with_every_field() -> None:
    """What is only kept is named; the old LEAST_CONN is LEAST_REQUEST."""
    assert parse("DestinationRule", DESTINATION_RULE) == DestinationRule(
        name="x",
        namespace="n",
        host="b",
        selector=(("app", "web"),),
        policy=TrafficPolicy(
            load_balancing=LoadBalancing(
                hash_on=HashOn(cookie="c", cookie_path="/", cookie_ttl_s=0.0, ring_size=7),
                locality=LocalityBalance(enabled=True, failover=(("a", "b"),), failover_priority=("zone",)),
                warmup_s=10.0,
            ),
            connection_pool=ConnectionPool(
                max_connections=1, connect_timeout_s=2.0, idle_timeout_s=3600.0, max_connection_duration_s=3.0,
                max_pending_requests=4, max_requests=5, max_requests_per_connection=6, max_retries=7,
                http_idle_timeout_s=8.0, h2_upgrade="UPGRADE", use_client_protocol=True, max_concurrent_streams=9,
            ),
            outlier_detection=OutlierDetection(
                consecutive_5xx=1, consecutive_gateway_errors=2, consecutive_local_origin_failures=3,
                split_local_origin=True, interval_s=1.0, base_ejection_s=2.0, max_ejection_share=0.5,
                min_health_share=0.25,
            ),
            tls=ClientTls(
                mode=TlsMode.MUTUAL, sni="s", ca_certificates="ca", client_certificate="c", private_key="k",
                credential_name="n", subject_alt_names=("x",), insecure_skip_verify=True,
            ),
            retry_budget=RetryBudget(share=0.5, min_concurrency=1),
            ports=(
                PortPolicy(
                    port=80, policy=TrafficPolicy(load_balancing=LoadBalancing(simple=Balance.LEAST_REQUEST))
                ),
            ),
            kept_fields=("tunnel", "connectionPool.tcp.tcpKeepalive"),
        ),
        subsets=(
            Subset(
                name="v1", labels=(("version", "v1"),),
                policy=TrafficPolicy(load_balancing=LoadBalancing(simple=Balance.RANDOM)),
            ),
            Subset(name="v2"),
        ),
        export_to=("*",),
    )  # fmt: skip


HTTP_ROUTE = """\
  parentRefs: [{kind: Service, group: "", name: b, namespace: m, port: 80, sectionName: s}]
  hostnames: [b]
  rules:
    - name: one
      matches:
        - path: {value: /a}
          method: GET
          headers: [{name: X-U, value: j}, {name: y, value: "[a-z]", type: RegularExpression}]
          queryParams: [{name: Q, value: "1"}]
        - path: {type: Exact, value: /b}
        - {}
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: X-A, value: "1"}], add: [{name: b, value: "2"}], remove: [C]}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {remove: [server]}
        - type: RequestMirror
          requestMirror: {backendRef: {name: c, port: 80}, fraction: {numerator: 1, denominator: 4}}
        - type: URLRewrite
          urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}
        - type: CORS
          cors: {}
      backendRefs:
        - name: b
          port: 80
          weight: 3
          filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [d]}}]
        - {kind: Service, group: "", name: c, namespace: m}
      timeouts: {request: 10s, backendRequest: 2s}
      retry: {codes: [500, 503], attempts: 1, backoff: 100ms}
      sessionPersistence: {type: Cookie}
    - filters:
        - type: RequestRedirect
          requestRedirect: {scheme: https, hostname: h, port: 443, path: {type: ReplaceFullPath, replaceFullPath: /n}}
"""


def test_http_route_with_every_field() -> None:
    """The same rules as VirtualService's, with paths by segment."""
    assert parse("HTTPRoute", HTTP_ROUTE) == HttpRoute(
        name="x",
        namespace="n",
        parents=(ParentRef(kind="Service", name="b", namespace="m", port=80, section_name="s"),),
        hostnames=("b",),
        rules=(
            HttpRule(
                name="one",
                matches=(
                    RequestMatch(
                        uri=text(TextKind.SEGMENTS, "/a"),
                        method=text(TextKind.EXACT, "GET"),
                        headers=(
                            NamedMatch(name="x-u", text=text(TextKind.EXACT, "j")),
                            NamedMatch(name="y", text=text(TextKind.REGEX, "[a-z]")),
                        ),
                        query=(NamedMatch(name="Q", text=text(TextKind.EXACT, "1")),),
                    ),
                    RequestMatch(uri=text(TextKind.EXACT, "/b")),
                    RequestMatch(uri=text(TextKind.SEGMENTS, "/")),
                ),
                destinations=(
                    WeightedDestination(
                        destination=Destination(host="b", port=80), weight=3,
                        request_headers=HeaderEdits(remove=("d",)),
                    ),
                    WeightedDestination(destination=Destination(host="c", namespace="m")),
                ),
                rewrite=Rewrite(prefix="/z", authority="h"),
                timeout_s=10.0,
                retries=Retries(attempts=1, per_try_timeout_s=2.0, retry_on="500,503", backoff_s=0.1),
                mirrors=(Mirror(destination=Destination(host="c", port=80), share=0.25),),
                request_headers=HeaderEdits(set=(("x-a", "1"),), add=(("b", "2"),), remove=("c",)),
                response_headers=HeaderEdits(remove=("server",)),
                kept_fields=("filters.CORS", "sessionPersistence"),
            ),
            HttpRule(redirect=Redirect(status=302, scheme="https", authority="h", port=443, path="/n")),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("{service: s.S, method: M}", text(TextKind.EXACT, "/s.S/M")),
        ("{service: s.S}", text(TextKind.SEGMENTS, "/s.S")),
        ("{method: M}", text(TextKind.REGEX, "/[^/]+/M")),
        ("{type: RegularExpression, service: 's.*'}", text(TextKind.REGEX, "/s.*/[^/]+")),
    ],
)
def test_grpc_methods_are_paths(method: str, expected: TextMatch) -> None:
    """`/service/method`, as gRPC writes them."""
    spec = f"  parentRefs: [{{kind: Service, name: b}}]\n  rules: [{{matches: [{{method: {method}}}]}}]\n"
    route = parse("GRPCRoute", spec)

    assert isinstance(route, HttpRoute)
    assert route.grpc
    assert route.rules[0].matches[0].uri == expected


VS = "  hosts: [b]\n  http:\n    - "
TO_B = "route: [{destination: {host: b}}]\n      "


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("VirtualService", f"{VS}{TO_B}timeuot: 1s\n",
         "t.yml:8:7: unknown key in http route ('timeuot'); did you mean 'timeout'?"),
        ("VirtualService", f"{VS}{TO_B}timeout: 1\n", "timeout must be text"),
        ("VirtualService", f"{VS}{TO_B}timeout: fast\n", "write it as 250ms, 1.5s or 2m"),
        ("VirtualService", f"{VS}{TO_B}redirect: {{uri: /}}\n", "exclude each other (redirect, route)"),
        ("VirtualService", f"{VS}match: [{{uri: {{prefix: /}}}}]\n", "http route without an action"),
        ("VirtualService", f"{VS}{TO_B}match: [{{uri: {{exact: a, prefix: /}}}}]\n",
         "exclude each other (exact, prefix)"),
        ("VirtualService", f"{VS}{TO_B}match: [{{uri: {{}}}}]\n", "empty match (uri)"),
        ("VirtualService", f"{VS}{TO_B}match: [{{uri: {{regex: '('}}}}]\n", "not a regular expression"),
        ("VirtualService", f"{VS}{TO_B}fault: {{abort: {{grpcStatus: DOWN}}}}\n", "unknown gRPC status ('DOWN')"),
        ("VirtualService", f"{VS}{TO_B}fault: {{abort: {{percentage: {{value: 1}}}}}}\n", "abort without a status"),
        ("VirtualService", f"{VS}{TO_B}fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 101}}}}}}\n",
         "out of range (101)"),
        ("VirtualService", f"{VS}route: [{{destination: {{host: b}}}}, {{destination: {{host: c}}}}]\n",
         "weights sum to nothing"),
        ("VirtualService", "  http: []\n", "VirtualService without hosts"),
        ("DestinationRule", "  trafficPolicy: {}\n", "lacks a key ('host')"),
        ("DestinationRule", "  host: b\n  trafficPolicy: {loadBalancer: {simple: LEAST}}\n",
         "did you mean 'LEAST_CONN'"),
        ("DestinationRule", "  host: b\n  trafficPolicy: {outlierDetection: {interval: 1d}}\n", "bad interval ('1d')"),
        ("DestinationRule", "  host: b\n  subsets: [{name: a}, {name: a}]\n", "subset given twice ('a')"),
        ("HTTPRoute", "  rules: []\n", "route without parentRefs"),
        ("HTTPRoute", "  parentRefs: [{name: b}]\n  rules: [{filters: [{type: URLRewrite}]}]\n", "add urlRewrite:"),
        ("HTTPRoute", "  parentRefs: [{name: b}]\n  rules: [{matches: [{path: {value: a}}]}]\n", "write /a"),
        ("HTTPRoute", "  parentRefs: [{name: b}]\n  rules: [{backendRefs: [{name: b, kind: Bucket}]}]\n",
         "unknown kind of backend"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(kind: str, spec: str, expected: str) -> None:
    """With its place and the mend."""
    (problem,) = problems(kind, spec)
    assert expected in problem


def test_request_authentication_is_read_strictly() -> None:
    """Though nothing acts on it yet, a mistake in it is told."""
    head = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r}\nspec:\n"
    (kept,) = policyfile.parse(head + "  jwtRules: [{issuer: i, jwks: '{}'}]\n", "t.yml")
    assert isinstance(kept, policyfile.OtherResource)
    assert json.loads(kept.spec_json) == {"jwtRules": [{"issuer": "i", "jwks": "{}"}]}

    with pytest.raises(TopologyError, match="did you mean 'issuer'"):
        policyfile.parse(head + "  jwtRules: [{isuer: i}]\n", "t.yml")


@pytest.mark.parametrize("kind", ["VirtualService", "DestinationRule", "HTTPRoute"])
def test_resources_survive_the_way_into_a_proxys_file(kind: str) -> None:
    """A proxy reads from JSON what the placement meant."""
    spec = {"VirtualService": VIRTUAL_SERVICE, "DestinationRule": DESTINATION_RULE, "HTTPRoute": HTTP_ROUTE}[kind]
    resource = parse(kind, spec)

    assert from_plain(type(resource), json.loads(json.dumps(to_plain(resource)))) == resource


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"name": "x", "namespace": "n", "hosts": ["h"], "htpp": []}, r"unknown keys \['htpp'\]"),
        ({"name": 1, "namespace": "n", "hosts": ["h"]}, r"name: must be str, not 1"),
        ({"name": "x", "namespace": "n", "hosts": "h"}, r"hosts: must be a list"),
        ({"name": "x", "namespace": "n"}, "hosts"),
        ({"name": "x", "namespace": "n", "hosts": [], "http": [{"redirect": {"status": True}}]},
         r"http\[0\].redirect.status"),
    ],
)  # fmt: skip
def test_a_file_that_no_placement_wrote_is_refused(raw: dict, expected: str) -> None:
    """With the path of what is wrong."""
    with pytest.raises(ValueError, match=expected):
        from_plain(VirtualService, raw)


def test_durations() -> None:
    """Go's notation, parts added up."""
    assert [seconds(d) for d in ("1h", "1m30s", "250ms", "1.5s")] == [3600.0, 90.0, 0.25, 1.5]
    assert seconds("10us") == pytest.approx(1e-5)
