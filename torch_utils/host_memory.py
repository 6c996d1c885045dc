"""Keeping freed memory in the process, for networks that run on the CPU."""

import ctypes
import os
import platform

# Parameters of mallopt(3) and their environment variables.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")

_KEPT_BYTES = 2**30
# Larger blocks come and go by themselves: holes in a heap of them could add up to gigabytes. It is
# also the most that older releases of glibc accept.
_LARGEST_BLOCK = 2**25


def keep_freed_memory() -> None:
    """Make the GNU C library keep up to 1 GiB of freed memory, rather than give it back.

    By default tensors above some 100 kB, with time above up to 32 MB, are memory fresh from the
    kernel, which clears every page of it on first touch; for small networks that is a large part
    of an iteration (benchmarks/host_memory.py). PyTorch reuses GPU memory in the same way. Here
    blocks up to 32 MiB are reused. Holes between them may cost a process some more memory. Does
    nothing where the C library is another one, or the user has set one of its variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
