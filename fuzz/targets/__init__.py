"""The targets by name. Each is a function that takes any bytes and raises where a parser broke a promise.

The promises: no exception but those that the parser declares; the same result whatever pieces the bytes come in; what
is kept, and what is put out, within a stated limit of what came in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fuzz import mutate

CORPUS = Path(__file__).parent.parent / "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    name: str
    place: str
    """module:function below `fuzz.targets`."""
    parses: str
    """Who reads these bytes in a mesh, for the table."""
    max_bytes: int = 4096
    """Of an input made by mutation: longer ones only cost time."""
    change: mutate.Change = mutate.plain

    @property
    def check(self) -> Callable[[bytes], None]:
        module, _, function = self.place.partition(":")
        return getattr(import_module(f"fuzz.targets.{module}"), function)

    def corpus(self) -> list[Path]:
        return sorted((CORPUS / self.name).iterdir())


TARGETS = {
    t.name: t
    for t in (
        Target(name="http1-server", place="http1:server", parses="requests at sidecar and waypoint"),
        Target(name="http1-client", place="http1:client", parses="responses of applications"),
        Target(name="http2-server", place="http2:server", parses="HTTP/2 at sidecar and waypoint",
               change=mutate.framed),
        Target(name="http2-client", place="http2:client", parses="HTTP/2 of applications and peers",
               change=mutate.framed),
        Target(name="hpack", place="hpack:check", parses="header blocks, beside the hpack library"),
        Target(name="hbone-server", place="hbone:server", parses="15008 of ztunnel, sidecar, waypoint",
               change=mutate.framed),
        Target(name="hbone-client", place="hbone:client", parses="what a peer's 15008 answers", change=mutate.framed),
        Target(name="hbone-fields", place="hbone:fields", parses="authority and baggage of a CONNECT"),
        Target(name="clienthello", place="firstbytes:hello", parses="ALPN and SNI at 15006"),
        Target(name="detect", place="firstbytes:protocol", parses="first bytes at ports of unknown protocol"),
        Target(name="proxyprotocol", place="proxyprotocol:check", parses="nothing: what is written is read back"),
        Target(name="dns", place="dns:check", parses="answers of name servers"),
        Target(name="path", place="path:check", parses="paths before policies and routes"),
        Target(name="view", place="views:mesh", parses="view files of proxies"),
        Target(name="l7-view", place="views:l7", parses="routes, rules, policies of L7 proxies"),
        Target(name="topology", place="files:topology", parses="topology files"),
        Target(name="policies", place="files:policies", parses="Istio resources"),
        Target(name="pcapng", place="captures:file", parses="captures, as far as TCP streams"),
        Target(name="tls-records", place="captures:tls", parses="hellos in captured streams"),
        Target(name="h2-captured", place="captures:http2", parses="HTTP/2 in captured streams"),
        Target(name="certificate", place="certificates:chain", parses="Certificate messages in captures"),
        Target(name="crl", place="certificates:revoked", parses="lists of revoked certificates"),
        Target(name="spiffe", place="certificates:identity", parses="names in certificates"),
    )
}  # fmt: skip
"""xDS is no parser of ours: proxies read view files, Envoy reads its own."""
