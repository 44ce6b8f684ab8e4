"""`memory_kept`: freed memory stays with the process while a loop allocates the same again."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from .limits import GLIBC_MOST_MAPPED

__all__ = ["memory_kept"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_MOST, _USUAL_MAPS = 2**31 - 1, 65536


@contextmanager
def memory_kept(*, wanted: bool = True) -> Iterator[None]:
    """Let freed memory stay with this process inside a `with` block, where malloc is glibc's.

    glibc gives blocks above 32 MB back when they are freed, and the top of the heap too. A training
    step that allocates them again faults every page in anew: a fifth of its processor time with a
    context at 64x64 in colour (`benchmarks/context_steps.py`).
    Afterwards what is free is given back, and blocks above 32 MB are again.

    Args:
        wanted: False changes nothing.

    Yields:
        None.

    Example:
        >>> with memory_kept():
        ...     total = sum(len(bytearray(100_000_000)) for _ in range(2))
        >>> total
        200000000
    """
    libc = _glibc() if wanted else None
    if libc is None:
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MAPS)
        libc.mallopt(_MMAP_THRESHOLD, GLIBC_MOST_MAPPED)
        libc.mallopt(_TRIM_THRESHOLD, 2 * GLIBC_MOST_MAPPED)
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
