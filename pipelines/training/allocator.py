"""Memory that a step of a net has freed is kept for the next step.

By itself the C library gives large blocks back to the kernel as soon as they are freed, and is given them again page by
page, each filled with zeros. A training step on a CPU is one such block after another.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc; both in bytes
LARGEST = 2**31 - 1  # that an int of C holds


def keep_freed_memory() -> None:
    """From now on this process keeps up to 2 GiB that are free at the end of its heap, and takes no block of less than
    2 GiB from elsewhere. Does nothing where the C library is not glibc, as outside Linux.
    """
    with suppress(AttributeError, OSError, TypeError):  # no such function; no library by that name, as on Windows
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST)
