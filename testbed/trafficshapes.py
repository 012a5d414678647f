"""The fields of Istio's and the Gateway API's traffic resources, described once: strict reading and JSON Schema.

What they become is `trafficfile`. `Anything` marks a field that is known and kept, but that nothing here honours.
Sources: `istio-api:networking/v1alpha3/{virtual_service,destination_rule}.proto`, gateway-api v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from testbed.model.traffic import Balance, TlsMode
from testbed.yamlpos import Anything, Flag, Number, Record, Sequence, Shape, Table, Text

DURATION = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+$"
ANY_KEY = r"^\S+$"


def record(what: str, required: tuple[str, ...] = (), only_one_of: tuple[str, ...] = (), **fields: Shape) -> Record:
    """`only_one_of`: not two of these may be there. A key that is a word of Python bears an underscore behind."""
    named = {key.removesuffix("_"): shape for key, shape in fields.items()}
    return Record(what=what, fields=named, required=required, at_most_one=tuple(combinations(only_one_of, 2)))


def text(what: str, *choices: str) -> Text:
    return Text(what=what, choices=choices)


def texts(what: str) -> Sequence:
    return Sequence(what=what, of=Text(what=f"entry of {what}"))


def duration(what: str) -> Text:
    return Text(what=what, pattern=DURATION, mend="write it as 250ms, 1.5s or 2m")


def whole(what: str, minimum: float = 0, maximum: float = 2**32 - 1) -> Number:
    return Number(what=what, minimum=minimum, maximum=maximum, integer=True)


def listed(what: str, of: Shape) -> Sequence:
    return Sequence(what=what, of=of)


def table(what: str, of: Shape) -> Table:
    return Table(what=what, of=of, key=ANY_KEY)


def kept(*names: str) -> Mapping[str, Shape]:
    return {name: Anything(what=name) for name in names}


_PORT_NUMBER = whole("port", 1, 65535)
_PORT = record("port", required=("number",), number=_PORT_NUMBER)
_PERCENT = record("percentage", value=Number(what="percentage", minimum=0, maximum=100))
_OLD_PERCENT = whole("percent", 0, 100)
_STRING_MATCH = record(
    "string match", only_one_of=("exact", "prefix", "regex"), exact=text("exact"), prefix=text("prefix"),
    regex=text("regex"),
)  # fmt: skip
_LABELS = table("labels", text("label value"))

# -- VirtualService

_DESTINATION = record("destination", required=("host",), host=text("host"), subset=text("subset"), port=_PORT)
_HEADER_OPERATIONS = record(
    "header operations", set=table("set", text("header value")), add=table("add", text("header value")),
    remove=texts("remove"),
)  # fmt: skip
_HEADERS = record("headers", request=_HEADER_OPERATIONS, response=_HEADER_OPERATIONS)
_HTTP_MATCH = record(
    "match",
    name=text("name"), uri=_STRING_MATCH, scheme=_STRING_MATCH, method=_STRING_MATCH, authority=_STRING_MATCH,
    headers=table("headers", _STRING_MATCH), port=_PORT_NUMBER, sourceLabels=_LABELS,
    queryParams=table("queryParams", _STRING_MATCH), ignoreUriCase=Flag(what="ignoreUriCase"),
    withoutHeaders=table("withoutHeaders", _STRING_MATCH), sourceNamespace=text("sourceNamespace"),
    gateways=texts("gateways"), **kept("statPrefix"),
)  # fmt: skip
_HTTP_ROUTE = record(
    "http route",
    only_one_of=("redirect", "directResponse", "route", "delegate"),
    name=text("name"),
    match=listed("match", _HTTP_MATCH),
    route=listed(
        "route",
        record("route", required=("destination",), destination=_DESTINATION, weight=whole("weight"), headers=_HEADERS),
    ),
    redirect=record(
        "redirect", only_one_of=("port", "derivePort"), uri=text("uri"), authority=text("authority"),
        port=_PORT_NUMBER, scheme=text("scheme", "http", "https"), redirectCode=whole("redirectCode", 300, 399),
        **kept("derivePort"),
    ),
    directResponse=record(
        "directResponse", required=("status",), status=whole("status", 100, 599),
        body=record("body", only_one_of=("string", "bytes"), string=text("string"), **kept("bytes")),
    ),
    rewrite=record(
        "rewrite", only_one_of=("uri", "uriRegexRewrite"), uri=text("uri"), authority=text("authority"),
        uriRegexRewrite=record(
            "uriRegexRewrite", required=("match", "rewrite"), match=text("match"), rewrite=text("rewrite")
        ),
    ),
    timeout=duration("timeout"),
    retries=record(
        "retries", attempts=whole("attempts", 0, 1000), perTryTimeout=duration("perTryTimeout"),
        retryOn=text("retryOn"), backoff=duration("backoff"), retryRemoteLocalities=Flag(what="retryRemoteLocalities"),
        retryIgnorePreviousHosts=Flag(what="retryIgnorePreviousHosts"),
    ),
    fault=record(
        "fault",
        delay=record(
            "delay", required=("fixedDelay",), only_one_of=("percentage", "percent"), fixedDelay=duration("fixedDelay"),
            percentage=_PERCENT, percent=_OLD_PERCENT,
        ),
        abort=record(
            "abort", only_one_of=("httpStatus", "grpcStatus"), httpStatus=whole("httpStatus", 200, 599),
            grpcStatus=text("grpcStatus"), percentage=_PERCENT,
        ),
    ),
    mirror=_DESTINATION,
    mirrorPercentage=_PERCENT,
    mirrorPercent=_OLD_PERCENT,
    mirrors=listed(
        "mirrors", record("mirror", required=("destination",), destination=_DESTINATION, percentage=_PERCENT)
    ),
    corsPolicy=record(
        "corsPolicy", allowOrigins=listed("allowOrigins", _STRING_MATCH), allowMethods=texts("allowMethods"),
        allowHeaders=texts("allowHeaders"), exposeHeaders=texts("exposeHeaders"), maxAge=duration("maxAge"),
        allowCredentials=Flag(what="allowCredentials"),
        unmatchedPreflights=text("unmatchedPreflights", "UNSPECIFIED", "FORWARD", "IGNORE"),
    ),
    headers=_HEADERS,
    **kept("delegate"),
)  # fmt: skip
_L4_ROUTE = listed(
    "route", record("route", required=("destination",), destination=_DESTINATION, weight=whole("weight"))
)
_L4_MATCH: dict[str, Shape] = {
    "destinationSubnets": texts("destinationSubnets"), "port": _PORT_NUMBER, "sourceLabels": _LABELS,
    "gateways": texts("gateways"), "sourceNamespace": text("sourceNamespace"),
}  # fmt: skip
VIRTUAL_SERVICE = record(
    "spec of VirtualService",
    hosts=texts("hosts"),
    gateways=texts("gateways"),
    http=listed("http", _HTTP_ROUTE),
    tcp=listed(
        "tcp",
        record(
            "tcp route", match=listed("match", record("match", **_L4_MATCH, **kept("sourceSubnet"))), route=_L4_ROUTE
        ),
    ),
    tls=listed(
        "tls",
        record(
            "tls route",
            required=("match",),
            match=listed("match", record("match", required=("sniHosts",), sniHosts=texts("sniHosts"), **_L4_MATCH)),
            route=_L4_ROUTE,
        ),
    ),
    exportTo=texts("exportTo"),
)

# -- DestinationRule

_LIMIT = whole("limit", 0, 2**31 - 1)
_TRAFFIC_POLICY: dict[str, Shape] = {
    "loadBalancer": record(
        "loadBalancer",
        only_one_of=("simple", "consistentHash"),
        simple=text("simple", "UNSPECIFIED", "LEAST_CONN", *Balance),
        consistentHash=record(
            "consistentHash",
            only_one_of=("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"),
            httpHeaderName=text("httpHeaderName"),
            httpCookie=record(
                "httpCookie", required=("name",), name=text("name"), path=text("path"), ttl=duration("ttl"),
                **kept("attributes"),
            ),
            useSourceIp=Flag(what="useSourceIp"),
            httpQueryParameterName=text("httpQueryParameterName"),
            ringHash=record("ringHash", minimumRingSize=whole("minimumRingSize", 1, 8_388_608)),
            maglev=record("maglev", tableSize=whole("tableSize", 1, 5_000_011)),
            minimumRingSize=whole("minimumRingSize", 1, 8_388_608),
        ),
        localityLbSetting=record(
            "localityLbSetting", only_one_of=("distribute", "failover"),
            distribute=listed(
                "distribute", record("distribute", from_=text("from"), to=table("to", whole("weight", 0, 100)))
            ),
            failover=listed("failover", record("failover", from_=text("from"), to=text("to"))),
            failoverPriority=texts("failoverPriority"), enabled=Flag(what="enabled"),
        ),
        warmupDurationSecs=duration("warmupDurationSecs"),
        warmup=record("warmup", required=("duration",), duration=duration("duration"),
                      **kept("minimumPercent", "aggression")),
    ),
    "connectionPool": record(
        "connectionPool",
        tcp=record(
            "tcp", maxConnections=_LIMIT, connectTimeout=duration("connectTimeout"),
            idleTimeout=duration("idleTimeout"), maxConnectionDuration=duration("maxConnectionDuration"),
            **kept("tcpKeepalive"),
        ),
        http=record(
            "http", http1MaxPendingRequests=_LIMIT, http2MaxRequests=_LIMIT, maxRequestsPerConnection=_LIMIT,
            maxRetries=_LIMIT, idleTimeout=duration("idleTimeout"), maxConcurrentStreams=_LIMIT,
            h2UpgradePolicy=text("h2UpgradePolicy", "DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"),
            useClientProtocol=Flag(what="useClientProtocol"),
        ),
    ),
    "outlierDetection": record(
        "outlierDetection", splitExternalLocalOriginErrors=Flag(what="splitExternalLocalOriginErrors"),
        consecutiveLocalOriginFailures=_LIMIT, consecutiveGatewayErrors=_LIMIT, consecutive5xxErrors=_LIMIT,
        consecutiveErrors=_LIMIT, interval=duration("interval"), baseEjectionTime=duration("baseEjectionTime"),
        maxEjectionPercent=whole("maxEjectionPercent", 0, 100), minHealthPercent=whole("minHealthPercent", 0, 100),
    ),
    "tls": record(
        "tls", mode=text("TLS mode", *TlsMode), clientCertificate=text("clientCertificate"),
        privateKey=text("privateKey"), caCertificates=text("caCertificates"), credentialName=text("credentialName"),
        subjectAltNames=texts("subjectAltNames"), sni=text("sni"), insecureSkipVerify=Flag(what="insecureSkipVerify"),
        **kept("caCrl"),
    ),
}  # fmt: skip
_WHOLE_POLICY = record(
    "trafficPolicy",
    **_TRAFFIC_POLICY,
    portLevelSettings=listed(
        "portLevelSettings", record("portLevelSettings", required=("port",), port=_PORT, **_TRAFFIC_POLICY)
    ),
    retryBudget=record(
        "retryBudget", percent=Number(what="percent", minimum=0, maximum=100), minRetryConcurrency=_LIMIT
    ),
    **kept("tunnel", "proxyProtocol"),
)
DESTINATION_RULE = record(
    "spec of DestinationRule",
    required=("host",),
    host=text("host"),
    trafficPolicy=_WHOLE_POLICY,
    subsets=listed(
        "subsets",
        record("subset", required=("name",), name=text("name"), labels=_LABELS, trafficPolicy=_WHOLE_POLICY),
    ),
    exportTo=texts("exportTo"),
    workloadSelector=record("workloadSelector", matchLabels=_LABELS),
)

# -- HTTPRoute, GRPCRoute

_PARENT = record(
    "parentRef", required=("name",), group=text("group"), kind=text("kind"), namespace=text("namespace"),
    name=text("name"), sectionName=text("sectionName"), port=_PORT_NUMBER,
)  # fmt: skip
_BACKEND: dict[str, Shape] = {
    "group": text("group"), "kind": text("kind"), "name": text("name"), "namespace": text("namespace"),
    "port": _PORT_NUMBER,
}  # fmt: skip
_NAMED_VALUE = record("header", required=("name", "value"), name=text("name"), value=text("value"))
_MODIFIER = record(
    "header modifier", set=listed("set", _NAMED_VALUE), add=listed("add", _NAMED_VALUE), remove=texts("remove")
)
_PATH_MODIFIER = record(
    "path", required=("type",), only_one_of=("replaceFullPath", "replacePrefixMatch"),
    type=text("type of path modifier", "ReplaceFullPath", "ReplacePrefixMatch"),
    replaceFullPath=text("replaceFullPath"), replacePrefixMatch=text("replacePrefixMatch"),
)  # fmt: skip
FILTER_KEYS = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "CORS": "cors",
    "ExtensionRef": "extensionRef",
}
"""Type of a filter -> the key that holds its settings."""
_FILTER = record(
    "filter",
    required=("type",),
    type=text("type of filter", *FILTER_KEYS),
    requestHeaderModifier=_MODIFIER,
    responseHeaderModifier=_MODIFIER,
    requestMirror=record(
        "requestMirror", required=("backendRef",), only_one_of=("percent", "fraction"),
        backendRef=record("backendRef", required=("name",), **_BACKEND), percent=_OLD_PERCENT,
        fraction=record("fraction", required=("numerator",), numerator=whole("numerator"),
                        denominator=whole("denominator", 1)),
    ),
    requestRedirect=record(
        "requestRedirect", scheme=text("scheme", "http", "https"), hostname=text("hostname"), path=_PATH_MODIFIER,
        port=_PORT_NUMBER, statusCode=whole("statusCode", 300, 399),
    ),
    urlRewrite=record("urlRewrite", hostname=text("hostname"), path=_PATH_MODIFIER),
    **kept("cors", "extensionRef"),
)  # fmt: skip
_FILTERS = listed("filters", _FILTER)
_BACKENDS = listed(
    "backendRefs",
    record("backendRef", required=("name",), **_BACKEND, weight=whole("weight", 0, 1_000_000), filters=_FILTERS),
)
_VALUE_TYPE = text("type of match", "Exact", "RegularExpression")
_VALUE_MATCH = record("match", required=("name", "value"), type=_VALUE_TYPE, name=text("name"), value=text("value"))
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


def _route(kind: str, match: Record, *, rule: dict[str, Shape]) -> Record:
    """Both kinds of route differ in what is matched, and in what else a `rule` may hold."""
    held = {"name": text("name"), "matches": listed("matches", match), "filters": _FILTERS, "backendRefs": _BACKENDS}
    return record(
        f"spec of {kind}",
        parentRefs=listed("parentRefs", _PARENT),
        hostnames=texts("hostnames"),
        rules=listed("rules", record("rule", **held, **rule)),
        **kept("useDefaultGateways"),
    )


HTTP_ROUTE = _route(
    "HTTPRoute",
    record(
        "match",
        path=record(
            "path", type=text("type of path match", "Exact", "PathPrefix", "RegularExpression"), value=text("value"),
        ),
        headers=listed("headers", _VALUE_MATCH),
        queryParams=listed("queryParams", _VALUE_MATCH),
        method=text("method", *_METHODS),
    ),
    rule={
        "timeouts": record("timeouts", request=duration("request"), backendRequest=duration("backendRequest")),
        "retry": record("retry", codes=listed("codes", whole("code", 400, 599)),
                        attempts=whole("attempts", 0, 1000), backoff=duration("backoff")),
        **kept("sessionPersistence"),
    },
)  # fmt: skip
GRPC_ROUTE = _route(
    "GRPCRoute",
    record(
        "match",
        method=record("method", type=_VALUE_TYPE, service=text("service"), method=text("method")),
        headers=listed("headers", _VALUE_MATCH),
    ),
    rule={**kept("sessionPersistence")},
)

# -- RequestAuthentication: read strictly, kept whole until there are JWTs

_TARGET = record(
    "targetRef", required=("kind", "name"), group=text("group"), kind=text("kind"), name=text("name"),
    namespace=text("namespace"),
)  # fmt: skip
REQUEST_AUTHENTICATION = record(
    "spec of RequestAuthentication",
    only_one_of=("selector", "targetRef", "targetRefs"),
    selector=record("selector", matchLabels=_LABELS),
    targetRef=_TARGET,
    targetRefs=listed("targetRefs", _TARGET),
    jwtRules=listed(
        "jwtRules",
        record(
            "jwtRule",
            required=("issuer",),
            issuer=text("issuer"),
            audiences=texts("audiences"),
            jwksUri=text("jwksUri"),
            jwks=text("jwks"),
            fromHeaders=listed(
                "fromHeaders", record("fromHeader", required=("name",), name=text("name"), prefix=text("prefix"))
            ),
            fromParams=texts("fromParams"),
            fromCookies=texts("fromCookies"),
            forwardOriginalToken=Flag(what="forwardOriginalToken"),
            outputPayloadToHeader=text("outputPayloadToHeader"),
            outputClaimToHeaders=listed(
                "outputClaimToHeaders", record("outputClaimToHeader", header=text("header"), claim=text("claim"))
            ),
            spaceDelimitedClaims=texts("spaceDelimitedClaims"),
            timeout=duration("timeout"),
        ),
    ),
)
