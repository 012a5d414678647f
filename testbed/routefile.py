"""The Gateway API's HTTPRoute and GRPCRoute as read (`trafficshapes`) -> `model.traffic.HttpRoute`.

Their rules become the same values as VirtualService's, as in istiod.
"""

from __future__ import annotations

import re

from testbed.model.traffic import (
    Destination,
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
    TextKind,
    TextMatch,
    WeightedDestination,
)
from testbed.resourceitems import check_pattern, kept, named, spec_of, texts, time_s
from testbed.trafficshapes import FILTER_KEYS
from testbed.yamlpos import Item, Reader, suggestion


def http_route(item: Item, reader: Reader) -> HttpRoute:
    return _route(item, reader, grpc=False)


def grpc_route(item: Item, reader: Reader) -> HttpRoute:
    return _route(item, reader, grpc=True)


def _route(item: Item, reader: Reader, *, grpc: bool) -> HttpRoute:
    name, namespace = named(item)
    spec = spec_of(item)
    parents = tuple(
        ParentRef(
            kind=p.get("kind", "Gateway"), name=p.get("name"), namespace=p.get("namespace", ""),
            group=p.get("group", ""), port=p.get("port"), section_name=p.get("sectionName", ""),
        )
        for p in spec.each("parentRefs")
    )  # fmt: skip
    if not parents:
        reader.problem(spec.mark, f"route without parentRefs ({name})", "add parentRefs: [{kind: Service, name: …}]")
    match = _grpc_match if grpc else _gateway_match
    return HttpRoute(
        name=name,
        namespace=namespace,
        parents=parents,
        hostnames=texts(spec, "hostnames"),
        rules=tuple(_gateway_rule(rule, tuple(match(m, reader) for m in rule.each("matches")), reader)
                    for rule in spec.each("rules")),
        grpc=grpc,
        kept_fields=kept(spec, "useDefaultGateways"),
    )  # fmt: skip


def _gateway_rule(rule: Item, matches: tuple[RequestMatch, ...], reader: Reader) -> HttpRule:
    timeouts, retry = rule.child("timeouts"), rule.child("retry")
    per_try_s = time_s(timeouts, "backendRequest") if timeouts else None
    retries = None
    if retry is not None or per_try_s is not None:
        codes = ",".join(str(c.value) for c in retry.each("codes")) if retry else ""
        retries = Retries(
            attempts=retry.get("attempts") if retry else None, per_try_timeout_s=per_try_s, retry_on=codes,
            backoff_s=time_s(retry, "backoff") if retry else None,
        )  # fmt: skip
    edits = _filters(rule, reader)
    return HttpRule(
        name=rule.get("name", ""),
        matches=matches,
        destinations=tuple(_backend(b, reader) for b in rule.each("backendRefs")),
        timeout_s=time_s(timeouts, "request") if timeouts else None,
        retries=retries,
        redirect=edits.redirect,
        rewrite=edits.rewrite,
        mirrors=edits.mirrors,
        request_headers=edits.request_headers,
        response_headers=edits.response_headers,
        kept_fields=(
            *edits.kept_fields,
            *kept(rule, "sessionPersistence"),
            *(f"backendRefs.{field}" for b in rule.each("backendRefs") for field in _foreign(b)),
        ),
    )


def _filters(rule: Item, reader: Reader) -> HttpRule:
    """What a rule's filters ask for, as a rule that holds nothing else."""
    found: dict[str, object] = {}
    mirrors: list[Mirror] = []
    left: list[str] = []
    for entry in rule.each("filters"):
        kind = entry.get("type")
        key = FILTER_KEYS[kind]
        body = entry.child(key)
        if body is None:
            reader.problem(entry.mark, f"filter lacks its own key ({kind})", f"add {key}:")
        elif kind in ("RequestHeaderModifier", "ResponseHeaderModifier"):
            found["request_headers" if kind.startswith("Request") else "response_headers"] = _modifier(body)
        elif kind == "RequestMirror":
            mirrors.append(_mirror(body))
            left += (f"filters.RequestMirror.backendRef.{field}" for field in _foreign(body.value["backendRef"]))
        elif kind == "RequestRedirect":
            found["redirect"] = _gateway_redirect(body)
        elif kind == "URLRewrite":
            whole, prefix = _path_modifier(body)
            found["rewrite"] = Rewrite(path=whole, prefix=prefix, authority=body.get("hostname"))
        else:
            left.append(f"filters.{kind}")
    return HttpRule(mirrors=tuple(mirrors), kept_fields=tuple(left), **found)  # type: ignore[arg-type]


def _modifier(item: Item) -> HeaderEdits:
    return HeaderEdits(
        set=tuple((v.get("name").lower(), v.get("value")) for v in item.each("set")),
        add=tuple((v.get("name").lower(), v.get("value")) for v in item.each("add")),
        remove=tuple(v.value.lower() for v in item.each("remove")),
    )


def _mirror(item: Item) -> Mirror:
    fraction, percent = item.child("fraction"), item.child("percent")
    share = 1.0 if percent is None else percent.value / 100
    if fraction is not None:
        share = fraction.get("numerator") / fraction.get("denominator", 100)
    return Mirror(destination=_backend_destination(item.value["backendRef"]), share=share)


def _path_modifier(item: Item) -> tuple[str | None, str | None]:
    path = item.child("path")
    return (path.get("replaceFullPath"), path.get("replacePrefixMatch")) if path else (None, None)


def _gateway_redirect(item: Item) -> Redirect:
    whole, prefix = _path_modifier(item)
    return Redirect(
        status=item.get("statusCode", 302), scheme=item.get("scheme"), authority=item.get("hostname"),
        port=item.get("port"), path=whole, prefix=prefix,
    )  # fmt: skip


def _foreign(backend: Item) -> list[str]:
    """What says that it is another thing than a Service of Kubernetes; it is taken for one."""
    own = {"group": ("", "core"), "kind": ("Service",)}
    return [field for field, known in own.items() if backend.get(field, known[0]) not in known]


def _backend_destination(item: Item) -> Destination:
    return Destination(host=item.get("name"), port=item.get("port"), namespace=item.get("namespace", ""))


def _backend(item: Item, reader: Reader) -> WeightedDestination:
    kind = item.child("kind")
    if kind is not None and kind.value not in ("Service", "Hostname"):
        reader.problem(kind.mark, f"unknown kind of backend ({kind.value!r})", suggestion(kind.value, ["Service"]))
    edits = _filters(item, reader)
    return WeightedDestination(
        destination=_backend_destination(item), weight=item.get("weight"), request_headers=edits.request_headers,
        response_headers=edits.response_headers,
    )  # fmt: skip


_PATH_KINDS = {"Exact": TextKind.EXACT, "PathPrefix": TextKind.SEGMENTS, "RegularExpression": TextKind.REGEX}


def _value_matches(item: Item, key: str, reader: Reader, *, lower: bool) -> tuple[NamedMatch, ...]:
    return tuple(
        NamedMatch(name=v.get("name").lower() if lower else v.get("name"), text=_typed(v, v.value["value"], reader))
        for v in item.each(key)
    )


def _typed(item: Item, value: Item, reader: Reader) -> TextMatch:
    regex = item.get("type", "Exact") == "RegularExpression"
    if regex:
        check_pattern(value, reader)
    return TextMatch(kind=TextKind.REGEX if regex else TextKind.EXACT, value=value.value)


def _gateway_match(match: Item, reader: Reader) -> RequestMatch:
    path, method = match.child("path"), match.child("method")
    uri = TextMatch(kind=TextKind.SEGMENTS, value="/")
    if path is not None:
        value = path.child("value") or Item("/", path.mark)
        uri = TextMatch(kind=_PATH_KINDS[path.get("type", "PathPrefix")], value=value.value)
        if uri.kind is TextKind.REGEX:
            check_pattern(value, reader)
        elif not value.value.startswith("/"):
            reader.problem(value.mark, f"path does not begin with / ({value.value!r})", f"write /{value.value}")
    return RequestMatch(
        uri=uri,
        method=TextMatch(kind=TextKind.EXACT, value=method.value) if method else None,
        headers=_value_matches(match, "headers", reader, lower=True),
        query=_value_matches(match, "queryParams", reader, lower=False),
    )


def _grpc_match(match: Item, reader: Reader) -> RequestMatch:
    """A gRPC method is a path: `/service/method`."""
    method = match.child("method")
    uri = TextMatch(kind=TextKind.SEGMENTS, value="/")
    if method is not None:
        service, name = method.get("service"), method.get("method")
        if method.get("type") == "RegularExpression":
            uri = TextMatch(kind=TextKind.REGEX, value=f"/{service or '[^/]+'}/{name or '[^/]+'}")
        elif service and name:
            uri = TextMatch(kind=TextKind.EXACT, value=f"/{service}/{name}")
        elif service:
            uri = TextMatch(kind=TextKind.SEGMENTS, value=f"/{service}")
        elif name:
            uri = TextMatch(kind=TextKind.REGEX, value=f"/[^/]+/{re.escape(name)}")
    return RequestMatch(uri=uri, headers=_value_matches(match, "headers", reader, lower=True))
