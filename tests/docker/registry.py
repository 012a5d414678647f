"""A registry on loopback with one image, as far as an engine asks one when it pulls (OCI distribution, pull part)."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from testbed.docker import archive, layer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@contextmanager
def serving(entries: Sequence[layer.Entry]) -> Iterator[str]:
    """The name by which an engine on this machine's loopback can pull the image of these entries."""
    packed = io.BytesIO()
    total = layer.write(entries, packed, date_s=0)
    config = archive.configuration(total, settings={"Cmd": ["true"]}, date_s=0)
    blobs = {f"sha256:{hashlib.sha256(blob).hexdigest()}": blob for blob in (packed.getvalue(), config)}
    digests = list(blobs)
    described = [{"size": len(blobs[d]), "digest": d} for d in digests]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **described[1]},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", **described[0]}],
        }
    ).encode()

    class Registry(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, _, name = self.path.rpartition("/")
            if self.path == "/v2/":
                self.answer(b"{}", "application/json")
            elif kind.endswith("/manifests"):
                self.answer(manifest, MANIFEST)
            elif kind.endswith("/blobs") and name in blobs:
                self.answer(blobs[name], "application/octet-stream")
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/base:1"
        server.shutdown()
