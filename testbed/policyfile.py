"""Istio's own YAML resources -> the values of `model.policy` and `model.traffic`.

Read field by field (Istio's security API v1 here, traffic in `trafficfile` and `routefile`); an unknown field is an
error with its place. Kinds that nothing here acts on are kept whole as `OtherResource`. What a given plane leaves
undone is told by `honoured`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from testbed import routefile, trafficfile, trafficshapes
from testbed.errors import TopologyError
from testbed.model.policy import (
    L4_CONDITIONS,
    Action,
    AuthorizationPolicy,
    Condition,
    Mode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
    TargetRef,
)
from testbed.model.traffic import Traffic
from testbed.yamlpos import LABEL, Anything, Item, Reader, Record, Sequence, Shape, Table, Text, suggestion

NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
DRY_RUN = "istio.io/dry-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherResource:
    """A resource that is known by kind only: for L7 planes."""

    kind: str
    name: str
    namespace: str
    spec_json: str


Resource = PeerAuthentication | AuthorizationPolicy | Traffic | OtherResource


# -- the shapes


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _texts(what: str) -> Sequence:
    return Sequence(what=what, of=Text(what=f"value of {what}"))


_SELECTOR = Record(
    what="selector",
    fields={"matchLabels": Table(what="matchLabels", of=Text(what="label value"), key=r"^\S+$")},
)
_MTLS = Record(what="mtls", fields={"mode": Text(what="mTLS mode", choices=tuple(Mode))})
_PEER_SPEC = Record(
    what="spec of PeerAuthentication",
    fields={
        "selector": _SELECTOR,
        "mtls": _MTLS,
        "portLevelMtls": Table(what="portLevelMtls", of=_MTLS, key=r"^[0-9]{1,5}$"),
    },
)
_SOURCE = Record(what="source", fields={_camel(f.name): _texts(_camel(f.name)) for f in fields(Source)})
_OPERATION = Record(what="operation", fields={_camel(f.name): _texts(_camel(f.name)) for f in fields(Operation)})
_RULE = Record(
    what="rule",
    fields={
        "from": Sequence(what="from", of=Record(what="from", fields={"source": _SOURCE}, required=("source",))),
        "to": Sequence(what="to", of=Record(what="to", fields={"operation": _OPERATION}, required=("operation",))),
        "when": Sequence(
            what="when",
            of=Record(
                what="condition",
                fields={
                    "key": Text(what="condition key"),
                    "values": _texts("values"),
                    "notValues": _texts("notValues"),
                },
                required=("key",),
            ),
        ),
    },
)
_TARGET = Record(
    what="targetRef",
    fields={key: Text(what=f"{key} of targetRef") for key in ("group", "kind", "name", "namespace")},
    required=("kind", "name"),
)
_AUTHORIZATION_SPEC = Record(
    what="spec of AuthorizationPolicy",
    fields={
        "selector": _SELECTOR,
        "targetRef": _TARGET,
        "targetRefs": Sequence(what="targetRefs", of=_TARGET),
        "rules": Sequence(what="rules", of=_RULE),
        "action": Text(what="action", choices=tuple(Action)),
        "provider": Record(what="provider", fields={"name": Text(what="provider name")}, required=("name",)),
    },
    at_most_one=(("selector", "targetRefs"), ("selector", "targetRef")),
)
_METADATA = Record(
    what="metadata",
    fields={
        "name": Text(what="resource name", pattern=NAME),
        "namespace": Text(what="namespace", pattern=LABEL),
        "labels": Table(what="labels", of=Text(what="label value"), key=r"^\S+$"),
        "annotations": Table(what="annotations", of=Text(what="annotation value"), key=r"^\S+$"),
        **{key: Anything(what=key) for key in ("creationTimestamp", "generation", "resourceVersion", "uid")},
    },
    required=("name",),
)
_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1")
_NETWORKING = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_GATEWAY = ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2")
_SPECS: dict[str, tuple[tuple[str, ...], Shape]] = {
    "PeerAuthentication": (_SECURITY, _PEER_SPEC),
    "AuthorizationPolicy": (_SECURITY, _AUTHORIZATION_SPEC),
    "RequestAuthentication": (_SECURITY, trafficshapes.REQUEST_AUTHENTICATION),
    "VirtualService": (_NETWORKING, trafficshapes.VIRTUAL_SERVICE),
    "DestinationRule": (_NETWORKING, trafficshapes.DESTINATION_RULE),
    "HTTPRoute": (_GATEWAY, trafficshapes.HTTP_ROUTE),
    "GRPCRoute": (_GATEWAY, trafficshapes.GRPC_ROUTE),
    **{
        kind: (_NETWORKING, Anything(what="spec", mapping=True))
        for kind in ("Sidecar", "ServiceEntry", "EnvoyFilter", "WorkloadEntry")
    },
    **{
        kind: (_GATEWAY, Anything(what="spec", mapping=True))
        for kind in ("TCPRoute", "TLSRoute", "Gateway")
    },
    "Telemetry": (("telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"), Anything(what="spec", mapping=True)),
    "WasmPlugin": (("extensions.istio.io/v1alpha1",), Anything(what="spec", mapping=True)),
}


def _envelope(kind: str) -> Record:
    versions, spec = _SPECS[kind]
    return Record(
        what=kind,
        fields={
            "apiVersion": Text(what="apiVersion", choices=versions),
            "kind": Text(what="kind", choices=(kind,)),
            "metadata": _METADATA,
            "spec": spec,
            "status": Anything(what="status"),
        },
        required=("apiVersion", "kind", "metadata"),
    )


_ENVELOPES = {kind: _envelope(kind) for kind in _SPECS}


@dataclass(frozen=True, slots=True)
class ResourceShape:
    """One resource, whichever of the known kinds; the `Item` holds the finished value."""

    what: str = "Istio resource"

    def read(self, node: yaml.Node, reader: Reader) -> Item | None:
        kind = _kind_of(node)
        if kind is None:
            reader.problem(
                node.start_mark, f"{self.what} has no kind (none)", "add apiVersion:, kind:, metadata: and spec:"
            )
            return None
        if kind.value not in _ENVELOPES:
            reader.problem(kind.start_mark, f"unknown kind ({kind.value!r})", suggestion(kind.value, _ENVELOPES))
            return None
        before = len(reader.problems)
        item = _ENVELOPES[kind.value].read(node, reader)
        if item is None or len(reader.problems) > before:
            return None
        value = _RESOURCES.get(kind.value, _other)(item, reader)
        return None if len(reader.problems) > before else Item(value, node.start_mark)

    def schema(self) -> dict[str, Any]:
        return {"oneOf": [envelope.schema() for envelope in _ENVELOPES.values()]}


def _kind_of(node: yaml.Node) -> yaml.ScalarNode | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "kind" and isinstance(value, yaml.ScalarNode):
                return value
    return None


# -- shapes -> values


def _peer(item: Item, reader: Reader) -> PeerAuthentication:
    metadata, spec = item.value["metadata"], _spec(item)
    ports = []
    for port, entry in spec.items("portLevelMtls"):
        if not 0 < int(port) < 65536:
            reader.problem(entry.mark, f"port is out of range ({port})", "it must be from 1 to 65535")
        ports.append((int(port), Mode(entry.get("mode", Mode.UNSET))))
    selector = _selector(spec)
    if ports and not selector:
        mark = spec.keys["portLevelMtls"]
        reader.problem(mark, "portLevelMtls without a selector has no effect in Istio", "add selector.matchLabels")
    mtls = spec.child("mtls")
    return PeerAuthentication(
        name=metadata.get("name"),
        namespace=metadata.get("namespace", "default"),
        mode=Mode(mtls.get("mode", Mode.UNSET)) if mtls else Mode.UNSET,
        selector=selector,
        port_modes=tuple(ports),
    )


def _authorization(item: Item, reader: Reader) -> AuthorizationPolicy:
    metadata, spec = item.value["metadata"], _spec(item)
    action = Action(spec.get("action", Action.ALLOW))
    provider = spec.child("provider")
    if (action is Action.CUSTOM) != (provider is not None):
        mend = "action: CUSTOM goes with provider.name, and only CUSTOM does"
        reader.problem(spec.mark, f"action and provider do not fit ({action})", mend)
    targets = [*spec.each("targetRefs"), *([t] if (t := spec.child("targetRef")) else [])]
    return AuthorizationPolicy(
        name=metadata.get("name"),
        namespace=metadata.get("namespace", "default"),
        action=action,
        selector=_selector(spec),
        rules=tuple(_rule(rule, reader) for rule in spec.each("rules")),
        target_refs=tuple(TargetRef(**target.plain()) for target in targets),
        provider=provider.get("name") if provider else None,
        dry_run=_dry_run(metadata, reader),
    )


def _dry_run(metadata: Item, reader: Reader) -> bool:
    item = dict(metadata.items("annotations")).get(DRY_RUN)
    if item is not None and item.value not in ("true", "false"):
        reader.problem(item.mark, f"{DRY_RUN} is not a truth value ({item.value!r})", 'write "true" or "false"')
    return item is not None and item.value == "true"


def _rule(rule: Item, reader: Reader) -> Rule:
    for source in rule.each("from"):
        for key in ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"):
            for block in source.value["source"].each(key):
                _check_network(block, reader)
    for to in rule.each("to"):
        for key in ("ports", "notPorts"):
            for port in to.value["operation"].each(key):
                _check_port(port, reader)
    for condition in rule.each("when"):
        key = condition.get("key")
        check = {"source.ip": _check_network, "destination.ip": _check_network, "destination.port": _check_port}.get(
            key
        )
        values = [*condition.each("values"), *condition.each("notValues")]
        if not values:
            reader.problem(condition.mark, f"condition has no values ({key})", "add values: or notValues:")
        if key not in L4_CONDITIONS and not key.startswith(_L7_KEYS):
            reader.problem(condition.value["key"].mark, f"unknown condition key ({key!r})", _condition_mend(key))
        for value in values if check else ():
            check(value, reader)
    return Rule(
        sources=tuple(_values(Source, s.value["source"]) for s in rule.each("from")),
        operations=tuple(_values(Operation, o.value["operation"]) for o in rule.each("to")),
        conditions=tuple(
            Condition(
                key=c.get("key"),
                values=tuple(v.value for v in c.each("values")),
                not_values=tuple(v.value for v in c.each("notValues")),
            )
            for c in rule.each("when")
        ),
    )


_L7_KEYS = ("request.headers[", "request.auth.", "remote.ip", "connection.sni", "experimental.envoy.filters.")


def _condition_mend(key: str) -> str:
    return suggestion(key, [*L4_CONDITIONS, "request.headers[name]", "request.auth.claims[name]", "remote.ip"])


def _values(kind: type, item: Item) -> Any:
    return kind(**{f.name: tuple(v.value for v in item.each(_camel(f.name))) for f in fields(kind)})


def _check_network(item: Item, reader: Reader) -> None:
    try:
        ip_network(item.value, strict=False)
    except ValueError:
        reader.problem(item.mark, f"not an address or network ({item.value!r})", "write it as 10.0.1.0/24 or 10.0.1.2")


def _check_port(item: Item, reader: Reader) -> None:
    if not item.value.isdigit() or not 0 < int(item.value) < 65536:
        reader.problem(item.mark, f"not a port ({item.value!r})", 'write a number from 1 to 65535 in quotes, as "8080"')


def _other(item: Item, reader: Reader) -> OtherResource:
    metadata, spec = item.value["metadata"], item.child("spec")
    try:
        spec_json = json.dumps(spec.plain() if spec else {}, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # keys of several types; an alias to itself
        reader.problem(item.mark, f"spec cannot be kept as JSON ({error})", "use text keys and no alias to itself")
        spec_json = "{}"
    return OtherResource(
        kind=item.get("kind"),
        name=metadata.get("name"),
        namespace=metadata.get("namespace", "default"),
        spec_json=spec_json,
    )


def _spec(item: Item) -> Item:
    return item.child("spec") or Item({}, item.mark)


def _selector(spec: Item) -> tuple[tuple[str, str], ...] | None:
    selector = spec.child("selector")
    if selector is None:
        return None
    return tuple(sorted((name, label.value) for name, label in selector.items("matchLabels")))


_RESOURCES = {
    "PeerAuthentication": _peer,
    "AuthorizationPolicy": _authorization,
    "VirtualService": trafficfile.virtual_service,
    "DestinationRule": trafficfile.destination_rule,
    "HTTPRoute": routefile.http_route,
    "GRPCRoute": routefile.grpc_route,
}


# -- the door


def read(text: str, reader: Reader) -> list[Item]:
    """Every resource of a multi-document text, problems noted in `reader`."""
    shape = ResourceShape()
    return [item for node in reader.documents(text) if not _is_empty(node) and (item := shape.read(node, reader))]


def parse(text: str, filename: str) -> tuple[Resource, ...]:
    """Raises TopologyError with every problem of the text."""
    reader = Reader(filename)
    items = read(text, reader)
    if reader.problems:
        raise TopologyError(reader.problems)
    return tuple(item.value for item in items)


def load(path: Path) -> tuple[Resource, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError([f"{path}:1:1: cannot be read ({error}); check the path and its encoding"]) from error
    return parse(text, str(path))


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
