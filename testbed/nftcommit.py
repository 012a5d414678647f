"""A batch of nf_tables and rtnetlink messages put into a namespace; a refusal is told by the name of what was refused.

No binary is called. The nf_tables transaction is atomic: after a refusal nothing of it stays.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence

from testbed.errors import Bug, MachineError
from testbed.nftmessages import NFNL_BEGIN, NFNL_END, Batch, Message, frame

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_CLONE_NEWNET = 0x40000000
_SO_ALREADY = (errno.EEXIST, errno.ENOENT, errno.ESRCH)
"""A route or rule that is there when it is to come, or is not there (the last two) when it is to go."""


def apply(netns_path: str, batch: Batch) -> None:
    """Puts the batch into the namespace at `netns_path`. Raises MachineError with the name of what the kernel
    refused.
    """
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            descriptor = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(descriptor)
            finally:
                os.close(descriptor)
            commit(batch)
        except BaseException as error:
            failures.append(error)

    # A thread's namespace is its own and ends with it; the caller stays where it is.
    thread = threading.Thread(target=enter, name="nftables")
    thread.start()
    thread.join()
    if failures:
        if isinstance(failures[0], OSError):
            text = (
                f"namespace {netns_path} cannot be entered ({failures[0]}); it must exist, and this needs CAP_SYS_ADMIN"
            )
            raise MachineError(text) from failures[0]
        raise failures[0]


def commit(batch: Batch) -> None:
    """Puts the batch into the namespace that this thread is in."""
    for family, name, messages in (
        (_NETLINK_NETFILTER, "nf_tables", batch.tables),
        (_NETLINK_ROUTE, "rtnetlink", batch.routes),
    ):
        if not messages:
            continue
        try:
            connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        except OSError as error:
            raise MachineError(f"{name}: no socket ({error}); load the kernel module nf_tables") from error
        with connection:
            connection.bind((0, 0))
            connection.settimeout(5.0)
            if family == _NETLINK_NETFILTER:
                _send_transaction(connection, messages)
            else:
                for message in messages:
                    connection.send(_numbered(message.data, 1))
                    _acknowledged(connection, {1: message}, so_already_is_fine=True)


def _send_transaction(connection: socket.socket, messages: Sequence[Message]) -> None:
    numbered = [_numbered(m.data, i) for i, m in enumerate(messages, 1)]
    end = len(messages) + 1
    data = b"".join((_numbered(frame(NFNL_BEGIN), 0), *numbered, _numbered(frame(NFNL_END), end)))
    # The kernel answers each message with an ack of 36 bytes or an error that quotes it; all must fit its queue.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(212_992, 2 * len(data)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(212_992, 1024 * len(messages)))
    try:
        connection.send(data)
    except OSError as error:
        raise MachineError(f"nf_tables: {len(messages)} messages not taken ({error}); install fewer at once") from error
    _acknowledged(connection, dict(enumerate(messages, 1)))


def _numbered(data: bytes, number: int) -> bytes:
    return data[:8] + struct.pack("=I", number) + data[12:]


def _acknowledged(
    connection: socket.socket, pending: dict[int, Message], *, so_already_is_fine: bool = False
) -> None:
    waiting = dict(pending)
    refused: list[tuple[Message | None, int]] = []
    while waiting:
        try:
            data = connection.recv(1 << 18)
        except TimeoutError as error:
            if refused:
                break
            raise MachineError(
                f"netlink: no answer for {next(iter(waiting.values())).what} in 5 s; try again"
            ) from error
        except OSError as error:
            if refused:
                break
            raise MachineError(f"netlink: the answer was lost ({error}); install fewer rules at once") from error
        offset = 0
        while offset + 20 <= len(data):
            length, kind, _, number = struct.unpack_from("=IHHI", data, offset)
            if length < 16:
                raise Bug(f"netlink: message of {length} bytes")
            if kind == 2:
                code = -struct.unpack_from("=i", data, offset + 16)[0]
                message = waiting.pop(number, None)
                if code and not (so_already_is_fine and code in _SO_ALREADY):
                    refused.append((message, code))
                    if message is None:  # about the transaction as a whole: nothing more will come
                        waiting.clear()
            offset += (length + 3) & ~3
    if refused:
        message, code = refused[0]
        what = message.what if message is not None else "the transaction"
        raise MachineError(
            f"netlink: {what} refused: {os.strerror(code)} ({errno.errorcode.get(code, code)}); {_mend(code)}"
        )


def _mend(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "run as root, or in a user namespace of your own"
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return "the kernel lacks a part: load nf_tables, nft_chain_nat, nft_redir, nft_nat, nft_ct, nft_numgen"
    return "see the kernel's log"


def setns(descriptor: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
