"""Keeps freed memory in the process, where glibc allows it: the codec asks for the same large blocks over and over."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """True when glibc took the settings.

    By default glibc maps every block above 32 MB afresh and gives it back when freed, so each convolution pays for
    its pages again: decoding took twice as long (docs/decisions/2026-11-21-speed-on-a-laptop.md)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)) and bool(mallopt(_M_TRIM_THRESHOLD, _ONE_GIB))
