"""Verdicts of Istio's security resources, worked out slowly from the resources as YAML gives them: what an observed
verdict is held against. Pure.

It is written from facts/hbone 2.7, 3.6, 4.3 and 6.1 alone and imports nothing of this project: neither how resources
are read nor what proxies judge by can be wrong here in the same way. Nothing is compiled, converted or remembered.
Resources are the documents of a file, in its order, which stands for their age; of traffic resources nothing is asked.

What it does not know: JSON Web Tokens (no caller has one, so no `request.auth` value holds), CUSTOM, Envoy's filters.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROOT_NAMESPACE = "istio-system"
WAYPOINT_CLASS = "istio-waypoint"
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A waypoint, where one service is called through it."""

    name: str
    namespace: str
    service: str
    service_namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The head of one request. Header names in lower case, lines of one name one by one."""

    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: Sequence[tuple[str, str]] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an enforcement point knows of a call."""

    source_ip: str
    destination_ip: str
    port: int
    principal: str | None = None
    """`<trust domain>/ns/<namespace>/sa/<account>` as a certificate proves it; None in clear text."""
    message: Message | None = None
    """None where bytes are no HTTP."""
    sni: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    allowed: bool
    why: str


# -- enforcement points


def at_ztunnel(documents: Sequence[Document], pod: Pod, call: Call) -> Ruling:
    """Plain text meets STRICT as a DENY of who has no identity; then L4 parts of policies without `targetRefs`."""
    if call.principal is None and mode(documents, pod, call.port, sidecar=False) == "STRICT":
        return Ruling(allowed=False, why="STRICT")
    return _ordered([d for d in documents if _selects(d, pod)], call, l4_only=True)


def at_sidecar(documents: Sequence[Document], pod: Pod, call: Call) -> Ruling:
    wanted = mode(documents, pod, call.port, sidecar=True)
    if (call.principal is None and wanted == "STRICT") or (call.principal is not None and wanted == "DISABLE"):
        return Ruling(allowed=False, why=wanted)
    return _ordered([d for d in documents if _selects(d, pod)], call, l4_only=False)


def at_waypoint(documents: Sequence[Document], gateway: Gateway, call: Call) -> Ruling:
    """`call.destination_ip` and `port` are the service's. PeerAuthentication is nothing to it."""
    return _ordered([d for d in documents if _targets(d, gateway)], call, l4_only=False)


def at_node(documents: Sequence[Document], pod: Pod, call: Call) -> Ruling:
    """An L7 proxy before a node's workloads: policies as at a sidecar, and no say in who speaks plain to a pod."""
    return _ordered([d for d in documents if _selects(d, pod)], call, l4_only=False)


# -- PeerAuthentication


def mode(documents: Sequence[Document], pod: Pod, port: int, *, sidecar: bool) -> str:
    """Port before workload before namespace before mesh; the oldest of each; what says UNSET says nothing."""
    peers = [d for d in documents if d["kind"] == "PeerAuthentication"]
    said = []
    for peer in peers:
        if _own_peer(peer, pod):
            ports = _spec(peer).get("portLevelMtls") or {}
            said.append((ports.get(str(port)) or ports.get(port) or {}).get("mode", "UNSET"))
            said.append(_mtls(peer))
            break
    for namespace in (pod.namespace, ROOT_NAMESPACE):
        said += [_mtls(p) for p in peers if _namespace(p) == namespace and not _labels(p)][:1]
    found = next((m for m in said if m != "UNSET"), "PERMISSIVE")
    return "PERMISSIVE" if found == "DISABLE" and not sidecar else found


def _own_peer(peer: Document, pod: Pod) -> bool:
    """With a selector, and not of the root namespace, where selectors are ignored."""
    labels = _labels(peer)
    here = _namespace(peer) == pod.namespace and pod.namespace != ROOT_NAMESPACE
    return bool(labels) and here and all(pod.labels.get(k) == v for k, v in labels.items())


def _mtls(peer: Document) -> str:
    return (_spec(peer).get("mtls") or {}).get("mode", "UNSET")


# -- which AuthorizationPolicy is whose


def _selects(document: Document, pod: Pod) -> bool:
    if document["kind"] != "AuthorizationPolicy" or _refs(document):
        return False
    if _namespace(document) not in (pod.namespace, ROOT_NAMESPACE):
        return False
    return all(pod.labels.get(k) == v for k, v in _labels(document).items())


def _targets(document: Document, gateway: Gateway) -> bool:
    if document["kind"] != "AuthorizationPolicy":
        return False
    here = _namespace(document)
    for ref in _refs(document):
        kind, name = ref["kind"], ref["name"]
        if kind == "Service" and (here, name) == (gateway.service_namespace, gateway.service):
            return True
        if kind == "Gateway" and (here, name) == (gateway.namespace, gateway.name):
            return True
        if kind == "GatewayClass" and here == ROOT_NAMESPACE and name == WAYPOINT_CLASS:
            return True
    return False


def _spec(document: Document) -> Mapping[str, Any]:
    return document.get("spec") or {}


def _namespace(document: Document) -> str:
    return document["metadata"].get("namespace", "default")


def _labels(document: Document) -> Mapping[str, str]:
    return (_spec(document).get("selector") or {}).get("matchLabels") or {}


def _refs(document: Document) -> list[Mapping[str, str]]:
    spec = _spec(document)
    return [*(spec.get("targetRefs") or []), *([spec["targetRef"]] if spec.get("targetRef") else [])]


# -- DENY, then ALLOW


def _ordered(policies: Sequence[Document], call: Call, *, l4_only: bool) -> Ruling:
    live = [p for p in policies if (p["metadata"].get("annotations") or {}).get("istio.io/dry-run") != "true"]
    denials = [p for p in live if _spec(p).get("action") == "DENY"]
    grants = [p for p in live if _spec(p).get("action", "ALLOW") == "ALLOW"]
    for policy in denials:
        if _policy_holds(policy, call, l4_only=l4_only):
            return Ruling(allowed=False, why=policy["metadata"]["name"])
    for policy in grants:
        if _policy_holds(policy, call, l4_only=l4_only):
            return Ruling(allowed=True, why=policy["metadata"]["name"])
    if grants:
        return Ruling(allowed=False, why="no ALLOW holds")
    return Ruling(allowed=True, why="no ALLOW at all")


def _policy_holds(policy: Document, call: Call, *, l4_only: bool) -> bool:
    allow = _spec(policy).get("action", "ALLOW") == "ALLOW"
    rules = _spec(policy).get("rules") or []
    return any(_rule_holds(rule or {}, policy, call, allow=allow, l4_only=l4_only) for rule in rules)


L4_FIELDS = ("principals", "namespaces", "serviceAccounts", "ipBlocks", "ports")
L4_KEYS = ("source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port")


def _rule_holds(rule: Mapping[str, Any], policy: Document, call: Call, *, allow: bool, l4_only: bool) -> bool:
    """`from`, `to` and every `when`; of each an alternative is a list of (field, values, negated)."""
    clauses = [
        [_parts(entry["source"]) for entry in rule.get("from") or []],
        [_parts(entry["operation"]) for entry in rule.get("to") or []],
        *([_condition(condition)] for condition in rule.get("when") or []),
    ]
    clauses = [clause for clause in clauses if clause]
    if l4_only:
        unseen = any(not _is_l4(name) for clause in clauses for parts in clause for name, _, _ in parts)
        if allow and unseen:
            return False  # istiod drops the whole rule
        # of a DENY only what L4 knows is left; a match with nothing left is skipped, and may leave its clause unmet
        clauses = [[[p for p in parts if _is_l4(p[0])] for parts in clause] for clause in clauses]
        clauses = [[parts for parts in clause if parts] for clause in clauses]
    elif call.message is None:
        asks = any(_asks_request(name) for clause in clauses for parts in clause for name, _, _ in parts)
        if allow and asks:
            return False
        clauses = [[[p for p in parts if not _asks_request(p[0])] for parts in clause] for clause in clauses]
    for clause in clauses:
        if not any(all(_holds(*part, policy, call, l4=l4_only) for part in parts) for parts in clause):
            return False
    return True


Part = tuple[str, Sequence[str], bool]


def _parts(fields: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = []
    for name, values in fields.items():
        if values:
            negated = name.startswith("not") and name[3:4].isupper()
            parts.append((name[3].lower() + name[4:] if negated else name, list(values), negated))
    return parts


def _condition(condition: Mapping[str, Any]) -> list[Part]:
    key = condition["key"]
    parts: list[Part] = []
    if condition.get("values"):
        parts.append((key, list(condition["values"]), False))
    if condition.get("notValues"):
        parts.append((key, list(condition["notValues"]), True))
    return parts


def _is_l4(name: str) -> bool:
    return name in L4_FIELDS or name in L4_KEYS


def _asks_request(name: str) -> bool:
    """Whether no connection can answer it."""
    return not _is_l4(name) and name not in ("trustDomains", "connection.sni")


def _holds(name: str, values: Sequence[str], negated: bool, policy: Document, call: Call, *, l4: bool) -> bool:
    return any(_value_holds(name, value, policy, call, l4=l4) for value in values) is not negated


def _value_holds(name: str, value: str, policy: Document, call: Call, *, l4: bool) -> bool:
    """One field against one of its values."""
    domain, namespace, account = _identity(call.principal)
    if name in ("principals", "source.principal"):
        return call.principal is not None and like(value, call.principal)
    if name in ("namespaces", "source.namespace"):
        # a ztunnel compares with the empty text where there is no identity; an L7 proxy's pattern finds nothing then,
        # and takes a star anywhere, for istiod makes it a regular expression of the whole name
        return like(value, namespace) if l4 else call.principal is not None and anywhere(value, namespace)
    if name == "serviceAccounts":
        wanted = value if "/" in value else f"{_namespace(policy)}/{value}"
        return call.principal is not None and wanted == f"{namespace}/{account}"
    if name == "trustDomains":
        return call.principal is not None and like(value, domain)
    if name in ("ipBlocks", "source.ip"):
        return within(value, call.source_ip)
    if name == "destination.ip":
        return within(value, call.destination_ip)
    if name in ("ports", "destination.port"):
        return int(value) == call.port
    if name == "connection.sni":
        return bool(call.sni) and like(value, call.sni)
    return call.message is not None and _asked(name, value, call.message, call.source_ip)


def _asked(name: str, value: str, message: Message, source_ip: str) -> bool:
    if name == "methods":
        return like(value, message.method)
    if name == "hosts":
        return like(value.lower(), message.host.lower())
    if name == "paths":
        return path_like(value, straight(message.path.split("?", 1)[0]))
    if name in ("remoteIpBlocks", "remote.ip"):
        return within(value, _forwarded_for(message) or source_ip)
    if header := re.fullmatch(r"request\.headers\[(.+)\]", name):
        return _header_holds(header[1].lower(), value, message)
    return False


def _header_holds(name: str, value: str, message: Message) -> bool:
    pseudo = {"host": message.host, ":authority": message.host, ":method": message.method, ":path": message.path}
    if name in pseudo:
        return like(value, pseudo[name])
    lines = [text for key, text in message.headers if key == name]
    return bool(lines) if value == "*" else any(like(value, line) for line in lines)


def _forwarded_for(message: Message) -> str | None:
    """The last address that x-forwarded-for holds, None where that is none."""
    lines = [text for key, text in message.headers if key == "x-forwarded-for"]
    last = lines[-1].split(",")[-1].strip() if lines else ""
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return None


def _identity(principal: str | None) -> tuple[str, str, str]:
    if principal is None:
        return "", "", ""
    domain, _, namespace, _, account = principal.split("/")
    return domain, namespace, account


def like(pattern: str, text: str) -> bool:
    """`*` is anything but nothing; `*x` ends so, `x*` begins so; a star elsewhere is itself."""
    if pattern == "*":
        return text != ""
    if pattern[:1] == "*":
        return text[max(0, len(text) - len(pattern) + 1) :] == pattern[1:]
    if pattern[-1:] == "*":
        return text[: len(pattern) - 1] == pattern[:-1]
    return text == pattern


def anywhere(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def path_like(pattern: str, path: str) -> bool:
    """Templates besides: `{*}` one piece of a path, `{**}` whatever follows."""
    if "{*}" not in pattern and "{**}" not in pattern:
        return like(pattern, path)
    pieces = re.split(r"(\{\*\*?\})", pattern)
    expression = "".join({"{*}": "[^/]+", "{**}": ".*"}.get(piece, re.escape(piece)) for piece in pieces)
    return re.fullmatch(expression, path) is not None


def straight(path: str) -> str:
    """`pathNormalization` BASE, by which all proxies go: RFC 3986 6.2.2 and backslashes; slashes are not merged."""
    unescaped = re.sub(
        "%([0-9A-Fa-f]{2})", lambda m: c if re.match("[A-Za-z0-9._~-]", c := chr(int(m[1], 16))) else m[0], path
    ).replace("\\", "/")  # fmt: skip
    if unescaped != path:
        return straight(unescaped)
    kept: list[str] = []
    pieces = path.split("/")[1:]
    for piece in pieces:
        if piece == "..":
            kept = kept[:-1]
        elif piece != ".":
            kept.append(piece)
    return "/" + "/".join([*kept, ""] if pieces[-1:] in (["."], [".."]) else kept)


def within(block: str, address: str) -> bool:
    network, one = ipaddress.ip_network(block, strict=False), ipaddress.ip_address(address)
    return network.version == one.version and one in network
