"""What the C library does with memory that is free again.

A read of a busy connection takes 256 KiB and gives it back a moment later. With glibc's own thresholds that shrinks the
heap each time, and the next read's pages come as faults: a fifth of the CPU of a long body through a sidecar.
"""

from __future__ import annotations

KEPT_BYTES = 4 << 20
"""So much may lie free at the end of the heap, and pieces up to this size come from the heap."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """For the whole process. Other C libraries have no such knob, and are left as they are."""
    import ctypes

    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)
    set_option(_M_MMAP_THRESHOLD, KEPT_BYTES)
