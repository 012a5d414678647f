"""What one capture file proves by itself: TLS, identities, CONNECTs, cleartext seen. Behind `./inv capture.verify`.

No topology is needed and nothing is claimed; `judge` is for that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError
from testbed.observe import keylog, pcapng
from testbed.observe.streams import follow
from testbed.verify.evidence import Heard, hear

_HTTP1 = re.compile(rb"(?:[A-Z]{3,10} \S+ HTTP/1\.[01]|HTTP/1\.[01] \d{3})[^\r\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    facts: dict
    """JSON-able: `file`, `packets`, `drops`, `keys`, `connections`."""

    @property
    def text(self) -> str:
        facts = self.facts
        lost = "unknown" if facts["drops"] is None else facts["drops"]
        lines = [f"{facts['file']}: {facts['packets']} packets, {lost} lost, {facts['keys']} TLS secrets"]
        for c in facts["connections"]:
            lines.append(f"{c['interface']}  {c['client']} → {c['server']}  {c['protocol']}  (packets {c['packets']})")
            for name in ("cipher", "alpn", "sni", "client_identity", "server_identity", "problem"):
                if c.get(name):
                    lines.append(f"    {name.replace('_', ' ')}: {c[name]}")
            for x in c.get("connects", ())[:5]:
                lines.append(
                    f"    CONNECT {x['authority']} → {x['status']}  baggage: {x['baggage']}  (packets {x['packets']})"
                )
            if len(c.get("connects", ())) > 5:
                lines.append(f"    … {len(c['connects'])} CONNECTs in all")
            for line in c.get("clear_http", ())[:5]:
                lines.append(f"    READABLE: {line}")
        if facts["not_tcp"]:
            lines.append(f"{facts['not_tcp']} packets are not TCP")
        return "\n".join(lines)

    @property
    def json(self) -> str:
        return json.dumps(self.facts, indent=1)


def verify_file(pcap: Path, key_log: Path | None) -> FileReport:
    """Raises UsageError for a file that cannot be read. Secrets inside the capture are used as well."""
    recording = pcapng.read(pcap)
    text = recording.key_log
    if key_log is not None:
        try:
            text += "\n" + key_log.read_text("ascii", "replace")
        except OSError as error:
            raise UsageError(f"key log {key_log}: {error.strerror}") from error
    keys = keylog.parse_key_log(text)
    traffic = follow(recording.packets, recording.interfaces)
    told = len(recording.drops) == len(recording.interfaces) and not recording.cut
    connections = []
    for connection in traffic.connections:
        heard = hear(connection, keys)
        connections.append({"interface": recording.interfaces[connection.interface].name, **_facts(heard)})
    return FileReport(
        facts={
            "file": pcap.name,
            "packets": len(recording.packets),
            "drops": sum(recording.drops.values()) if told else None,
            "keys": len(keys),
            "not_tcp": len(traffic.not_tcp),
            "connections": connections,
        }
    )


def _facts(heard: Heard) -> dict:
    connection, tls = heard.connection, heard.tls
    facts: dict = {
        "client": "{}:{}".format(*connection.client),
        "server": "{}:{}".format(*connection.server),
        "packets": f"{connection.first_packet}–{connection.last_packet}",
        "missing_bytes": sum(b - a for a, b in (*connection.forward.gaps, *connection.backward.gaps)),
    }
    if tls is not None:
        facts |= {
            "protocol": tls.version or "TLS (handshake not whole)",
            "cipher": tls.server_hello.cipher if tls.server_hello else None,
            "alpn": tls.server.alpn,
            "alpn_offered": list(tls.client_hello.alpn) if tls.client_hello else [],
            "sni": tls.client_hello.server_name if tls.client_hello else None,
            "groups": list(tls.client_hello.groups) if tls.client_hello else [],
            "client_identity": ", ".join(tls.client.certificate.uris) if tls.client.certificate else None,
            "server_identity": ", ".join(tls.server.certificate.uris) if tls.server.certificate else None,
            "problem": tls.problem,
        }
    elif heard.began_before:
        facts["protocol"] = "TLS (handshake before the capture)"
    elif heard.conversation is not None:
        facts["protocol"] = "HTTP/2 in clear"
        facts["clear_http"] = [
            f"{e.header(':method')} {e.header(':path') or e.header(':authority')}" for e in heard.conversation.exchanges
        ]
    elif heard.is_empty:
        facts["protocol"] = "TCP without data"
    else:
        seen = [m[0].decode("latin-1") for m in _HTTP1.finditer(connection.forward.data)]
        seen += [m[0].decode("latin-1") for m in _HTTP1.finditer(connection.backward.data)]
        facts["protocol"] = "HTTP/1 in clear" if seen else "TCP"
        facts["clear_http"] = seen
    if tls is not None and heard.tunnels:
        facts["connects"] = [
            {
                "authority": e.header(":authority"),
                "status": e.status,
                "baggage": e.header("baggage"),
                "forwarded": e.header("forwarded"),
                "traceparent": e.header("traceparent"),
                "sent": len(e.sent.data),
                "received": len(e.received.data),
                "packets": ", ".join(map(str, tls.client.carriers(*e.request_span))),
            }
            for e in heard.tunnels
        ]
    return facts
