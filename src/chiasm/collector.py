"""Python's collector of cycles, out of the way while a process loads.

Importing torch and the vector store makes a few hundred thousand objects, and nearly all of them
live as long as the process does. The collector walks them again and again as they come, a tenth of
the whole start, and once more in full when they are there.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# So many new modules are what makes it worth it to set everything aside for good.
_MANY_MODULES = 100

_lock = threading.Lock()
_pausing = 0
_was_on = True


@contextmanager
def paused() -> Iterator[None]:
    """No cycles are collected inside. Several threads may be inside at once.

    What came of many imports is set aside at the end (`gc.freeze`): no later collection walks it.
    """
    global _pausing, _was_on
    modules = len(sys.modules)
    with _lock:
        if _pausing == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _pausing += 1
    try:
        yield
    finally:
        with _lock:
            _pausing -= 1
            if _was_on and len(sys.modules) - modules > _MANY_MODULES:
                gc.freeze()
            if _pausing == 0 and _was_on:
                gc.enable()
