"""Traffic resources as read (`trafficshapes`) -> the values of `model.traffic`.

Each reader takes the whole resource as an `Item` and notes in the `Reader` what a shape cannot say. Fields that are
only kept end up in `kept_fields`. The Gateway API's routes are `routefile`.
"""

from __future__ import annotations

from testbed.model.traffic import (
    GRPC_CODES,
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
    HttpRule,
    L4Match,
    L4Rule,
    LoadBalancing,
    LocalityBalance,
    Mirror,
    NamedMatch,
    OutlierDetection,
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
from testbed.resourceitems import check_pattern, children, kept, labels, named, seconds, spec_of, texts, time_s
from testbed.yamlpos import Item, Reader, suggestion

# -- VirtualService


def virtual_service(item: Item, reader: Reader) -> VirtualService:
    name, namespace = named(item)
    spec = spec_of(item)
    hosts = texts(spec, "hosts")
    if not hosts:
        reader.problem(spec.mark, f"VirtualService without hosts ({name})", "add hosts: [the service's name]")
    return VirtualService(
        name=name,
        namespace=namespace,
        hosts=hosts,
        gateways=texts(spec, "gateways"),
        http=tuple(_http_rule(rule, reader) for rule in spec.each("http")),
        tcp=tuple(_l4_rule(rule, reader) for rule in spec.each("tcp")),
        tls=tuple(_l4_rule(rule, reader) for rule in spec.each("tls")),
        export_to=texts(spec, "exportTo"),
    )


def _http_rule(rule: Item, reader: Reader) -> HttpRule:
    if not kept(rule, "route", "redirect", "directResponse", "delegate"):
        reader.problem(rule.mark, "http route without an action (none)", "add route:, redirect: or directResponse:")
    request, response = _headers(rule)
    return HttpRule(
        name=rule.get("name", ""),
        matches=tuple(_http_match(m, reader) for m in rule.each("match")),
        destinations=_weighted(rule, reader),
        redirect=_redirect(r) if (r := rule.child("redirect")) else None,
        direct_response=_direct_response(d) if (d := rule.child("directResponse")) else None,
        rewrite=_rewrite(r, reader) if (r := rule.child("rewrite")) else None,
        timeout_s=time_s(rule, "timeout"),
        retries=_retries(r) if (r := rule.child("retries")) else None,
        fault=_fault(f, reader) if (f := rule.child("fault")) else None,
        mirrors=_mirrors(rule),
        cors=_cors(c, reader) if (c := rule.child("corsPolicy")) else None,
        request_headers=request,
        response_headers=response,
        kept_fields=(
            *kept(rule, "delegate"),
            *(
                f"directResponse.body.{k}"
                for d in children(rule, "directResponse") for b in children(d, "body") for k in kept(b, "bytes")
            ),
            *(f"redirect.{k}" for r in children(rule, "redirect") for k in kept(r, "derivePort")),
            *(f"match.{k}" for m in rule.each("match") for k in kept(m, "statPrefix")),
        ),
    )


def _text_match(item: Item, reader: Reader, *, ignore_case: bool = False) -> TextMatch:
    for kind in (TextKind.EXACT, TextKind.PREFIX, TextKind.REGEX):
        child = item.child(kind)
        if child is not None:
            if kind is TextKind.REGEX:
                check_pattern(child, reader)
            return TextMatch(kind=kind, value=child.value, ignore_case=ignore_case and kind is not TextKind.REGEX)
    return TextMatch(kind=TextKind.PRESENT)


def _http_match(match: Item, reader: Reader) -> RequestMatch:
    def one(key: str) -> TextMatch | None:
        child = match.child(key)
        if child is not None and not child.value:
            reader.problem(child.mark, f"empty match ({key})", "add exact:, prefix: or regex:")
        fold = key == "uri" and match.get("ignoreUriCase", False)
        return _text_match(child, reader, ignore_case=fold) if child is not None else None

    def many(key: str, *, lower: bool) -> tuple[NamedMatch, ...]:
        return tuple(
            NamedMatch(name=name.lower() if lower else name, text=_text_match(m, reader))
            for name, m in match.items(key)
        )

    return RequestMatch(
        name=match.get("name", ""), uri=one("uri"), scheme=one("scheme"), method=one("method"),
        authority=one("authority"), headers=many("headers", lower=True),
        without_headers=many("withoutHeaders", lower=True), query=many("queryParams", lower=False),
        port=match.get("port"), source_labels=labels(match, "sourceLabels"),
        source_namespace=match.get("sourceNamespace", ""), gateways=texts(match, "gateways"),
    )  # fmt: skip


def _destination(item: Item) -> Destination:
    port = item.child("port")
    return Destination(host=item.get("host"), port=port.get("number") if port else None, subset=item.get("subset", ""))


def _weighted(rule: Item, reader: Reader) -> tuple[WeightedDestination, ...]:
    routes = rule.each("route")
    found = []
    for route in routes:
        request, response = _headers(route)
        found.append(
            WeightedDestination(
                destination=_destination(route.value["destination"]), weight=route.get("weight"),
                request_headers=request, response_headers=response,
            )
        )  # fmt: skip
    if len(found) > 1 and not any(d.weight for d in found):
        reader.problem(routes[0].mark, "weights sum to nothing (0)", "give each route a weight")
    return tuple(found)


def _edits(item: Item | None) -> HeaderEdits | None:
    if item is None:
        return None
    return HeaderEdits(
        set=tuple((n.lower(), v.value) for n, v in item.items("set")),
        add=tuple((n.lower(), v.value) for n, v in item.items("add")),
        remove=tuple(v.value.lower() for v in item.each("remove")),
    )


def _headers(item: Item) -> tuple[HeaderEdits | None, HeaderEdits | None]:
    headers = item.child("headers")
    return (_edits(headers.child("request")), _edits(headers.child("response"))) if headers else (None, None)


def _redirect(item: Item) -> Redirect:
    return Redirect(
        status=item.get("redirectCode", 301), scheme=item.get("scheme"), authority=item.get("authority"),
        port=item.get("port"), path=item.get("uri"),
    )  # fmt: skip


def _direct_response(item: Item) -> DirectResponse:
    body = item.child("body")
    return DirectResponse(status=item.get("status"), body=body.get("string", "") if body else "")


def _rewrite(item: Item, reader: Reader) -> Rewrite:
    regex = item.child("uriRegexRewrite")
    if regex is not None:
        check_pattern(regex.value["match"], reader)
    return Rewrite(
        prefix=item.get("uri"), authority=item.get("authority"),
        regex=(regex.get("match"), regex.get("rewrite")) if regex else None,
    )  # fmt: skip


def _retries(item: Item) -> Retries:
    return Retries(
        attempts=item.get("attempts", 0),  # a number without presence in Istio's API: absent is 0, which is none
        per_try_timeout_s=time_s(item, "perTryTimeout"), retry_on=item.get("retryOn", ""),
        backoff_s=time_s(item, "backoff"), retry_remote_localities=item.get("retryRemoteLocalities"),
        ignore_previous_hosts=item.get("retryIgnorePreviousHosts"),
    )  # fmt: skip


def _share(item: Item | None, absent: float) -> float:
    """Of a `percentage`; one without `value` is 0 %, as its number has no presence."""
    return absent if item is None else round(item.get("value", 0.0) / 100, 9)


def _fault(item: Item, reader: Reader) -> Fault:
    delay, abort = item.child("delay"), item.child("abort")
    if abort is not None and not kept(abort, "httpStatus", "grpcStatus"):
        reader.problem(abort.mark, "abort without a status (none)", "add httpStatus: or grpcStatus:")
    grpc = abort.child("grpcStatus") if abort else None
    if grpc is not None and not grpc.value.isdigit() and grpc.value.upper() not in GRPC_CODES:
        reader.problem(grpc.mark, f"unknown gRPC status ({grpc.value!r})", suggestion(grpc.value, GRPC_CODES))
    delay_share = 0.0
    if delay is not None:
        delay_share = (
            delay.get("percent", 0) / 100 if delay.child("percent") else _share(delay.child("percentage"), 0.0)
        )
    return Fault(
        delay_s=seconds(delay.get("fixedDelay")) if delay else 0.0,
        delay_share=delay_share,
        abort_status=abort.get("httpStatus") if abort else None,
        abort_grpc_status=grpc.value if grpc else None,
        abort_share=_share(abort.child("percentage"), 0.0) if abort else 0.0,
    )


def _mirrors(rule: Item) -> tuple[Mirror, ...]:
    found = [
        Mirror(destination=_destination(m.value["destination"]), share=_share(m.child("percentage"), 1.0))
        for m in rule.each("mirrors")
    ]
    single = rule.child("mirror")
    if single is not None:
        old = rule.child("mirrorPercent")
        share = old.value / 100 if old is not None else _share(rule.child("mirrorPercentage"), 1.0)
        found.append(Mirror(destination=_destination(single), share=share))
    return tuple(found)


def _cors(item: Item, reader: Reader) -> Cors:
    return Cors(
        allow_origins=tuple(_text_match(o, reader) for o in item.each("allowOrigins")),
        allow_methods=texts(item, "allowMethods"), allow_headers=texts(item, "allowHeaders"),
        expose_headers=texts(item, "exposeHeaders"), max_age_s=time_s(item, "maxAge"),
        allow_credentials=item.get("allowCredentials", False),
        unmatched_preflights=item.get("unmatchedPreflights", ""),
    )  # fmt: skip


def _l4_rule(rule: Item, reader: Reader) -> L4Rule:
    return L4Rule(
        matches=tuple(
            L4Match(
                destination_subnets=texts(m, "destinationSubnets"), port=m.get("port"),
                sni_hosts=texts(m, "sniHosts"), source_labels=labels(m, "sourceLabels"),
                source_namespace=m.get("sourceNamespace", ""), gateways=texts(m, "gateways"),
            )
            for m in rule.each("match")
        ),
        destinations=_weighted(rule, reader),
        kept_fields=tuple(f"match.{k}" for m in rule.each("match") for k in kept(m, "sourceSubnet")),
    )  # fmt: skip


# -- DestinationRule


def destination_rule(item: Item, reader: Reader) -> DestinationRule:
    name, namespace = named(item)
    spec = spec_of(item)
    selector = spec.child("workloadSelector")
    subsets: dict[str, Subset] = {}
    for subset in spec.each("subsets"):
        if subset.get("name") in subsets:
            reader.problem(subset.mark, f"subset given twice ({subset.get('name')!r})", "rename one")
        policy = subset.child("trafficPolicy")
        subsets[subset.get("name")] = Subset(
            name=subset.get("name"), labels=labels(subset, "labels"), policy=_policy(policy) if policy else None
        )
    policy = spec.child("trafficPolicy")
    return DestinationRule(
        name=name,
        namespace=namespace,
        host=spec.get("host", ""),
        policy=_policy(policy) if policy else None,
        subsets=tuple(subsets.values()),
        export_to=texts(spec, "exportTo"),
        selector=labels(selector, "matchLabels") if selector else None,
    )


def _policy(item: Item) -> TrafficPolicy:
    budget = item.child("retryBudget")
    pool, tls = item.child("connectionPool"), item.child("tls")
    left = [*kept(item, "tunnel", "proxyProtocol")]
    for hashed in (h for b in children(item, "loadBalancer") for h in children(b, "consistentHash")):
        left += [
            f"loadBalancer.consistentHash.{key}.{k}"
            for key, name in (("httpCookie", "attributes"), ("maglev", "tableSize"))
            for c in children(hashed, key) for k in kept(c, name)
        ]  # fmt: skip
    if pool is not None:
        left += [f"connectionPool.tcp.{k}" for t in children(pool, "tcp") for k in kept(t, "tcpKeepalive")]
    if tls is not None:
        left += [f"tls.{k}" for k in kept(tls, "caCrl")]
    return TrafficPolicy(
        load_balancing=_load_balancing(b) if (b := item.child("loadBalancer")) else None,
        connection_pool=_pool(pool) if pool else None,
        outlier_detection=_outliers(o) if (o := item.child("outlierDetection")) else None,
        tls=_tls(tls) if tls else None,
        retry_budget=RetryBudget(
            share=budget.get("percent", 20.0) / 100, min_concurrency=budget.get("minRetryConcurrency", 3)
        )
        if budget
        else None,
        ports=tuple(
            PortPolicy(port=p.value["port"].get("number"), policy=_policy(p)) for p in item.each("portLevelSettings")
        ),
        kept_fields=tuple(left),
    )


def _load_balancing(item: Item) -> LoadBalancing:
    simple = item.get("simple")
    simple = {None: None, "UNSPECIFIED": None, "LEAST_CONN": "LEAST_REQUEST"}.get(simple, simple)
    warmup = item.child("warmup")
    return LoadBalancing(
        simple=Balance(simple) if simple else None,
        hash_on=_hash_on(h) if (h := item.child("consistentHash")) else None,
        locality=_locality(s) if (s := item.child("localityLbSetting")) else None,
        warmup_s=time_s(warmup, "duration") if warmup else time_s(item, "warmupDurationSecs"),
    )


def _hash_on(item: Item) -> HashOn:
    cookie, ring = item.child("httpCookie"), item.child("ringHash")
    return HashOn(
        header=item.get("httpHeaderName", "").lower(), query=item.get("httpQueryParameterName", ""),
        source_ip=item.get("useSourceIp", False), cookie=cookie.get("name") if cookie else "",
        cookie_path=cookie.get("path", "") if cookie else "", cookie_ttl_s=time_s(cookie, "ttl") if cookie else None,
        ring_size=(ring.get("minimumRingSize") if ring else None) or item.get("minimumRingSize", 1024),
        maglev=item.child("maglev") is not None,
    )  # fmt: skip


def _locality(item: Item) -> LocalityBalance:
    return LocalityBalance(
        enabled=item.get("enabled"),
        distribute=tuple(
            (d.get("from", ""), tuple((place, w.value) for place, w in d.items("to"))) for d in item.each("distribute")
        ),
        failover=tuple((f.get("from", ""), f.get("to", "")) for f in item.each("failover")),
        failover_priority=texts(item, "failoverPriority"),
    )


def _pool(item: Item) -> ConnectionPool:
    tcp = item.child("tcp") or Item({}, item.mark)
    http = item.child("http") or Item({}, item.mark)
    return ConnectionPool(
        max_connections=tcp.get("maxConnections"), connect_timeout_s=time_s(tcp, "connectTimeout"),
        idle_timeout_s=time_s(tcp, "idleTimeout"), max_connection_duration_s=time_s(tcp, "maxConnectionDuration"),
        max_pending_requests=http.get("http1MaxPendingRequests"), max_requests=http.get("http2MaxRequests"),
        max_requests_per_connection=http.get("maxRequestsPerConnection"), max_retries=http.get("maxRetries"),
        http_idle_timeout_s=time_s(http, "idleTimeout"), h2_upgrade=http.get("h2UpgradePolicy", ""),
        use_client_protocol=http.get("useClientProtocol", False),
        max_concurrent_streams=http.get("maxConcurrentStreams"),
    )  # fmt: skip


def _outliers(item: Item) -> OutlierDetection:
    interval, base = time_s(item, "interval"), time_s(item, "baseEjectionTime")
    return OutlierDetection(
        consecutive_5xx=item.get("consecutive5xxErrors", item.get("consecutiveErrors", 5)),
        consecutive_gateway_errors=item.get("consecutiveGatewayErrors", 0),
        consecutive_local_origin_failures=item.get("consecutiveLocalOriginFailures", 5),
        split_local_origin=item.get("splitExternalLocalOriginErrors", False),
        interval_s=10.0 if interval is None else interval,
        base_ejection_s=30.0 if base is None else base,
        max_ejection_share=item.get("maxEjectionPercent", 10) / 100,
        min_health_share=item.get("minHealthPercent", 0) / 100,
    )


def _tls(item: Item) -> ClientTls:
    return ClientTls(
        mode=TlsMode(item.get("mode", "DISABLE")), sni=item.get("sni", ""),
        ca_certificates=item.get("caCertificates", ""), client_certificate=item.get("clientCertificate", ""),
        private_key=item.get("privateKey", ""), credential_name=item.get("credentialName", ""),
        subject_alt_names=texts(item, "subjectAltNames"), insecure_skip_verify=item.get("insecureSkipVerify", False),
    )  # fmt: skip
