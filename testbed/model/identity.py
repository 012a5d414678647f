"""SPIFFE identities as Istio writes them: text <-> value.

Source: facts on ztunnel's `src/identity.rs`; SPIFFE-ID spec §2.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TRUST_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, exactly these five path pieces."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Raises ValueError for anything that ztunnel's parser would skip."""
        scheme, _, rest = text.partition("://")
        parts = rest.split("/")
        if scheme != "spiffe" or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa" or not all(parts):
            raise ValueError(f"not a SPIFFE identity of the form spiffe://<td>/ns/<ns>/sa/<sa>: {text!r}")
        return cls(parts[0], parts[2], parts[4])

    @property
    def principal(self) -> str:
        """The form AuthorizationPolicy uses: the URI without `spiffe://`."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return f"spiffe://{self.principal}"
