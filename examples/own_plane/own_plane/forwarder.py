"""The proxy: TCP in, mutual TLS out, and the way back. `python -m own_plane.forwarder --config <folder>/config.json`

Calls of the workload arrive at port 15001, calls to it at 15006; where they were going, the kernel remembers.
"""

import asyncio
import json
import random
import socket
import ssl
import sys
from pathlib import Path

SO_ORIGINAL_DST = 80


def original_destination(writer):
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    return socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")


def context(role, config):
    (files,) = config["identities"].values()  # of the one workload that is served; paths are below our folder
    made = ssl.SSLContext(role)
    made.check_hostname = False  # certificates name identities, not hosts
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(files["certificate"], files["key"])
    made.load_verify_locations(files["roots"])
    if "keylog" in config:  # while something is to be proven from packets, never while it is measured
        made.keylog_filename = config["keylog"]
    return made


async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def join(one, other):
    """Bytes both ways until one side ends; then both end."""
    ways = [asyncio.create_task(copy(one[0], other[1])), asyncio.create_task(copy(other[0], one[1]))]
    _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in pending:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    for _, writer in (one, other):
        writer.close()


async def main(path):
    config = json.loads(Path(path).read_text())
    routes, peers = config["options"]["routes"], config["options"]["peers"]
    as_client, as_server = context(ssl.PROTOCOL_TLS_CLIENT, config), context(ssl.PROTOCOL_TLS_SERVER, config)

    async def outbound(reader, writer):
        asked = original_destination(writer)
        host, port = random.choice(routes.get("{}:{}".format(*asked), [asked]))
        try:
            upstream = await asyncio.open_connection(host, port, ssl=as_client if host in peers else None)
        except OSError as error:
            print(f"{host}:{port}: {error}")
            return writer.close()
        certificate = upstream[1].get_extra_info("peercert")
        if certificate and ("URI", peers[host]) not in certificate["subjectAltName"]:
            print(f"{host}:{port} is not {peers[host]} but {certificate['subjectAltName']}")
            upstream[1].close()
            return writer.close()
        await join((reader, writer), upstream)

    async def inbound(reader, writer):
        try:  # from 127.0.0.6, or the call would be caught again
            upstream = await asyncio.open_connection(*original_destination(writer), local_addr=("127.0.0.6", 0))
        except OSError as error:
            print(f"{original_destination(writer)}: {error}")
            return writer.close()
        await join((reader, writer), upstream)

    async def ready(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    await asyncio.start_server(outbound, "0.0.0.0", 15001)
    await asyncio.start_server(inbound, "0.0.0.0", 15006, ssl=as_server)
    await asyncio.start_server(ready, "127.0.0.1", 15021)  # last: the deployer takes this for "listening"
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[sys.argv.index("--config") + 1]))
