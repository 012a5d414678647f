"""The process that renews a lab's certificates: it holds the CA's key, and sleeps until half of their life is over.

The key comes by a descriptor of memory, never by a file, and ends with the process; that ends with the lab, whose
keeper starts it. It listens to nothing. It owns the folders it writes into (`pki.entrust`), so it needs no right over
others' files; the one it has is to send SIGHUP to the proxies that were handed to it as descriptors. At rest it is an
interpreter that has imported next to nothing: signing, which takes a large library, is done by a child that ends.
"""

from __future__ import annotations

import _signal
import os
import sys
import time
from collections.abc import Callable

LONGEST_SLEEP_S = 60.0
"""Then the clock is asked again: sleep does not count the time for which a machine was suspended."""
RETRY_SHARE, LONGEST_RETRY_S = 0.05, 60.0
NICE = 10
"""Of the child that signs: whatever else runs goes first."""


def keep_renewing(
    renew: Callable[[float], bool],
    *,
    issued_at: float,
    lifetime_s: float,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Calls `renew(now)` at half of each life, and soon again while it says False. Never returns."""
    due_at = issued_at + lifetime_s / 2
    while True:
        while (left_s := due_at - clock()) > 0:
            wait(min(left_s, LONGEST_SLEEP_S))
        now = clock()
        due_at = now + (lifetime_s / 2 if renew(now) else min(lifetime_s * RETRY_SHARE, LONGEST_RETRY_S))


def in_child(job_fd: int, pidfds: list[int], now: float) -> bool:
    """Whether all certificates are written anew; proxies are told in any case, for some may be."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.nice(NICE)
            code = sign(os.pread(job_fd, os.fstat(job_fd).st_size, 0), now)
        except BaseException as error:
            print(f"renewal: {error!r}; it is tried again", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for pidfd in pidfds:
        try:
            _signal.pidfd_send_signal(pidfd, _signal.SIGHUP)
        except OSError:
            pass  # it has ended, or is in no PID namespace below ours: then it looks at its files by itself
    return done


def sign(text: bytes, now: float) -> int:
    """In the child. 0 when every folder of the job has a new leaf; what could not be written is told, the rest is."""
    import json

    job = json.loads(text)
    sys.path[:] = job["path"]
    from pathlib import Path

    from testbed.model.identity import Identity
    from testbed.pki import CertificateAuthority, rewrite_identity

    authority = CertificateAuthority.taken_over(job["authority"].encode())
    failed = 0
    for trust_domain, namespace, account, folder in job["identities"]:
        leaf = authority.issue(Identity(trust_domain, namespace, account), now=now, lifetime_s=job["lifetime_s"])
        try:
            rewrite_identity(Path(folder), leaf, authority.bundle)
        except OSError as error:
            failed += 1
            print(f"renewal: {folder}: {error.strerror}; it is tried again", file=sys.stderr)
    print(f"renewed {len(job['identities']) - failed} of {len(job['identities'])} certificates", file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    """Arguments: descriptor of the job, when the present leaves were issued, their lifetime, descriptors of proxies."""
    job_fd, issued_at, lifetime_s, *pidfds = sys.argv[1:]
    keep_renewing(
        lambda now: in_child(int(job_fd), [int(fd) for fd in pidfds], now),
        issued_at=float(issued_at),
        lifetime_s=float(lifetime_s),
    )
