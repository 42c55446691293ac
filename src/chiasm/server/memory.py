"""How the process asks the system for memory while pictures of megabytes pass through it.

glibc gives large pieces back at once and takes them anew, page by page, for the next picture, and
it keeps an arena for each thread, so that memory grows with the threads that ever held a picture.
Both cost more here than decoding base64 does. Elsewhere than with glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT = 128 * 1024 * 1024
_LARGEST = 32 * 1024 * 1024  # the most that glibc takes for this
_ARENAS = 2


def keep_large_pieces() -> None:
    """Let freed megabytes be used again, and threads share what they free.

    What the environment says of glibc's own settings goes before this.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for name, value in (
        (_ARENA_MAX, _ARENAS),
        (_MMAP_THRESHOLD, _LARGEST),
        (_TRIM_THRESHOLD, _KEPT),
    ):
        mallopt(name, value)
