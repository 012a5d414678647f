"""Copies of a key in memory that was freed: after a scrub there are none, and the key still works."""

from __future__ import annotations

import binascii
import ctypes
import subprocess
import sys
from pathlib import Path

from planes.mesh import scrub
from testbed.bench.loopback import SERVER_URI, write_certificates
from tests.loopback import ENV, ROOT

# In a process of its own: what pytest has on its heap is nobody's business, and freed memory is taken again there.
PROGRAM = """
import ctypes, os, re, ssl, sys
from pathlib import Path
from planes.mesh import scrub
from planes.mesh.tls import IdentityContexts, KeyFiles

folder = Path(sys.argv[1])
number = int(sys.argv[2], 16)

def copies(order):
    wanted, count = number.to_bytes(32, order), 0
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for start, end in list(scrub._writable()):
            try:
                content = os.pread(memory.fileno(), end - start, start)
            except OSError:
                continue
            count += content.count(wanted)
            ctypes.memset(id(content) + bytes.__basicsize__ - 1, 0, len(content))
    return count - 1  # its own

held = IdentityContexts("x", KeyFiles(certificate=folder / "server.pem", key=folder / "server.key",
                                      roots=folder / "roots.pem"))
before = copies("big"), copies("little")
erased = scrub.erase(scrub.secrets(folder / "server.key"))
after = copies("big"), copies("little")
inner, outer = ssl.MemoryBIO(), ssl.MemoryBIO()
server = held.server.wrap_bio(inner, outer, server_side=True)
client_in, client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
client = held.client.wrap_bio(client_in, client_out)
for _ in range(4):
    for side in (client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    inner.write(client_out.read())
    client_in.write(outer.read())
shaken = server.version()
del held, server, client, side
print(before[0] > 0, before[1] > 0, erased > 0, after[0], after[1] > 0, shaken, copies("big"), copies("little"))
"""


def number_of(key: Path) -> int:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(key.read_bytes(), None).private_numbers().private_value


def test_what_decoding_left_is_gone_and_the_key_works(tmp_path: Path) -> None:
    """OpenSSL's own copy stays until the contexts are freed; a handshake with it works; then there is none at all."""
    write_certificates(tmp_path, {"server": SERVER_URI})
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path), hex(number_of(tmp_path / "server.key"))]
    told = subprocess.run(argv, cwd=ROOT, env=ENV, capture_output=True, text=True, check=True, timeout=60).stdout

    assert told.split() == ["True", "True", "True", "0", "True", "TLSv1.3", "0", "0"]


def test_secrets_are_the_key_and_its_text(tmp_path: Path) -> None:
    """In the order of bytes in which the file has it."""
    write_certificates(tmp_path, {"server": SERVER_URI})
    key = tmp_path / "server.key"
    found = scrub.secrets(key)

    assert bytes(found[0]) == number_of(key).to_bytes(32, "big")
    assert [bytes(line) for line in found[1:]] == [x for x in key.read_bytes().splitlines()[1:-1] if len(x) >= 32]


def test_a_file_of_another_kind_has_no_secrets(tmp_path: Path) -> None:
    """It is left alone."""
    for text in (b"", b"no key\n", b"QQ==\n", b"-----BEGIN X-----\nAAAA\n-----END X-----\n", b"\xff" * 100):
        (tmp_path / "key").write_bytes(text)
        assert scrub.secrets(tmp_path / "key") == []
    assert scrub.erase([]) == 0
    assert binascii.a2b_base64(b"QQ==")[0] == 0x41  # the interpreter's own, for all who decode one byte


def test_only_what_was_asked_for_is_overwritten_also_across_pieces() -> None:
    """A secret may stand where two pieces of the search meet; what is beside it stays."""
    size = 3 << 20
    held = ctypes.create_string_buffer(size)
    start = ctypes.addressof(held)
    secret = b"".join(bytes((n * 7 % 251,)) for n in range(40))
    # Every piece begins at a region's start plus a multiple less the overlap: some of these straddle an end.
    places = [*range(100, size - 100, 4099), *range((1 << 20) - 200, (1 << 20) + 200, 50)]
    for place in places:
        ctypes.memmove(start + place - 1, b"<" + secret + b">", 42)
    standing = [p for p in places if held.raw[p : p + 40] == secret]

    assert scrub.erase([bytearray(secret)]) >= len(standing) > 700
    for place in standing:
        assert held.raw[place - 1 : place + 41] == b"<" + bytes(40) + b">"
