"""Sockets as proxies make them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from planes.mesh import net
from testbed.bench.loopback import SERVER_URI, write_certificates


class Waiting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


@pytest.mark.parametrize("new_loop", [net.new_loop, asyncio.new_event_loop])
def test_neither_side_of_a_connection_waits_for_acknowledgements(new_loop) -> None:
    """Nagle's algorithm is off on what a listener accepts and on what is dialled: it cost 5 ms at 2 ms RTT."""
    loop = new_loop()

    async def try_it() -> list[int]:
        accepted: asyncio.Future[Waiting] = loop.create_future()

        class Accepted(Waiting):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                accepted.set_result(self)

        listening = net.listen("127.0.0.1", 0)
        address = listening.getsockname()
        server = await net.serve(loop, Accepted, listening)
        dialled = await net.connect(loop, Waiting, net.upstream(address), address)
        ends = [await accepted, dialled]
        seen = []
        for end in ends:
            number = socket.dup(end.transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=number) as sock:
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            end.transport.abort()
        server.close()
        await asyncio.sleep(0)
        return seen

    try:
        assert all(loop.run_until_complete(try_it()))
    finally:
        loop.close()


def test_a_listener_hands_the_option_on() -> None:
    """What is accepted inherits it whichever event loop makes the transport."""
    with net.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
        with socket.create_connection(listening.getsockname()):
            listening.setblocking(True)
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_is_dialled_is_kept_alive_and_marked_as_ztunnels() -> None:
    """TCP keepalive after 180 s, every 180 s, nine times; the mark, where the right to it is there."""
    with net.upstream(("127.0.0.1", 1), mark=net.MARK) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [180, 180, 9]
        if os.geteuid() == 0:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539


@pytest.mark.parametrize("new_loop", [net.new_loop, asyncio.new_event_loop])
def test_no_client_notices_that_a_certificate_is_renewed(new_loop, tmp_path: Path) -> None:
    """40 times in a row, while three clients connect all the while; a closed listener refuses."""
    write_certificates(tmp_path, {"server": SERVER_URI})
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    ending, lost, served = threading.Event(), list[str](), list[bytes]()
    loop = new_loop()

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")
            transport.close()

    def call(address: tuple[str, int]) -> None:
        while not ending.is_set():
            try:
                with trusting.wrap_socket(socket.create_connection(address, timeout=30)) as sock:
                    served.append(sock.recv(10))
            except OSError as error:
                lost.append(repr(error))

    def renewed() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
        return made

    async def try_it() -> None:
        listening = net.listen("127.0.0.1", 0)
        address = listening.getsockname()
        listener = net.SecuredListener(loop, Greeter, listening, renewed())
        threads = [threading.Thread(target=call, args=(address,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            await asyncio.sleep(0.02)
            listener.context = renewed()
        ending.set()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    loop.run_until_complete(try_it())
    loop.close()
    assert lost == [] and set(served) == {b"hello"}
