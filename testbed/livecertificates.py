"""Certificates of a lab that stays: until when they are good, and whether its CA still renews them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from testbed.deploy import IDENTITIES, Deployment
from testbed.runtime.ownership import Being, being

SLACK_S, SLACK_SHARE = 5.0, 0.1
"""A renewal may come so much later than at half of a life before it counts as overdue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """As seen at one moment; times are seconds since the epoch."""

    lifetime_s: float
    ends_at: float
    """When the first of the certificates in the proxies' folders ends."""
    renewed_by: int | None
    """Process id of the CA; None when it has ended."""

    def warning(self, now: float, lab: str) -> str:
        """What is wrong and its mend; empty when all is well."""
        mend = f"./inv lab.down {lab}, then lab.up again"
        until = f"until {_clock(self.ends_at)}"
        half_s = self.lifetime_s / 2
        if now >= self.ends_at:
            return f"lab {lab}: its certificates have ended ({until}): proxies refuse each other; {mend}"
        if self.renewed_by is None:
            return f"lab {lab}: its CA has ended, so nothing renews the certificates; they are good {until}; {mend}"
        if now > self.ends_at - half_s + max(SLACK_S, SLACK_SHARE * self.lifetime_s):
            return (
                f"lab {lab}: renewal is overdue, the certificates are good {until}; "
                f"its CA (process {self.renewed_by}) says why in the log ca.log; {mend}"
            )
        return ""

    def row(self) -> dict:
        """For `lab.inspect --json`."""
        return {"renewed_by": self.renewed_by, "good_until": _clock(self.ends_at), "lifetime_s": self.lifetime_s}

    def text(self) -> str:
        by = "no longer renewed" if self.renewed_by is None else f"renewed at half life by pid {self.renewed_by}"
        return f"good until {_clock(self.ends_at)}, {by}"


def begun(deployment: Deployment) -> dict | None:
    """What is written down of a lab that comes up; None where nobody has a certificate."""
    if deployment.renewer is None:
        return None
    one = being(deployment.renewer.pid)
    return {
        "ca": {"pid": deployment.renewer.pid, "started": one.started if one else 0},
        "lifetime_s": deployment.leaf_lifetime_s,
        "issued_at": deployment.issued_at,
    }


def standing(lab: Path, written: dict | None) -> Standing | None:
    """Of a lab's state folder and what `begun` wrote; None where nobody has a certificate."""
    if written is None:
        return None
    from testbed.pki import CERTIFICATE_FILE, not_after

    ends = [not_after(path) for path in lab.glob(f"proxies/*/{IDENTITIES}/*/{CERTIFICATE_FILE}")]
    return Standing(
        lifetime_s=written["lifetime_s"],
        ends_at=min(ends, default=written["issued_at"] + written["lifetime_s"]),
        renewed_by=written["ca"]["pid"] if Being(**written["ca"]).alive else None,
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
