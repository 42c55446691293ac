"""How bytes get from one process to another: through memory that both have.

Two files without a name. The *window* is mapped in both processes and stays warm, so that most
pictures cost two copies and no page fault; it can never shrink, or a process that misbehaves
could end the other with it. What does not fit goes through the *file*, by reads and writes, and
its memory is given back at once.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from typing import Any

import numpy as np

WINDOW_BYTES = 48 * 1024 * 1024
"""Pixels of a photograph of sixteen megapixels. Takes memory as far as it was ever filled."""


def make_file() -> int:
    """A file in memory, or where there is none on the disk: its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("chiasm-picture")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def make_window() -> int | None:
    """The window's descriptor, or None where its size could not be made lasting."""
    if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_ADD_SEALS"):
        return None
    window = os.memfd_create("chiasm-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(window, WINDOW_BYTES)
    fcntl.fcntl(window, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return window


class Passage:
    """One process's end. Only one of the two puts or takes at a time."""

    def __init__(self, file: int, window: int | None) -> None:
        self._file = file
        self._window = None
        if window is not None:
            # numpy, because it lets other threads run while it copies.
            self._window = np.frombuffer(mmap.mmap(window, WINDOW_BYTES), dtype=np.uint8)

    def put(self, data: Any) -> None:
        """Make `data`, anything with contiguous bytes, what the other side takes."""
        array = np.frombuffer(data, dtype=np.uint8)
        if self._window is not None and array.size <= WINDOW_BYTES:
            np.copyto(self._window[: array.size], array)
            return
        view, written = array.data, 0
        os.ftruncate(self._file, array.size)
        while written < array.size:
            written += os.pwrite(self._file, view[written:], written)

    def take(self, size: int) -> Any:
        """The `size` bytes that were put: uint8 [size], the caller's own. EOFError for fewer."""
        array = np.empty(size, dtype=np.uint8)
        if self._window is not None and size <= WINDOW_BYTES:
            np.copyto(array, self._window[:size])
            return array
        view, done = array.data, 0
        while done < size:
            count = os.preadv(self._file, [view[done:]], done)
            if not count:
                raise EOFError
            done += count
        os.ftruncate(self._file, 0)
        return array
