"""Keeping freed memory in the process, for networks that run on the CPU."""

import ctypes
import os
import platform

# Parameters of mallopt(3) and their environment variables.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")

KEPT_BYTES = 2**30

__all__ = ["KEPT_BYTES", "keep_freed_memory"]


def keep_freed_memory() -> None:
    """Make the GNU C library keep up to `KEPT_BYTES` of freed memory, rather than give it back.

    By default each tensor above some 100 kB to 32 MB is memory fresh from the kernel, which clears
    every page of it on first touch; for small networks that is a large part of an iteration
    (benchmarks/host_memory.py). PyTorch reuses GPU memory in the same way. What is kept is the
    free end of the heap; a process grows no further than to its peak. Does nothing where the C
    library is another one, or the user has set one of its variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(parameter, KEPT_BYTES)  # returns 0, and changes nothing, where that is too much
