"""An iterator that runs in a thread of its own, some items ahead of whoever reads it."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 10.0  # seconds; a thread that waits for the network is a daemon and may be left behind


class Ahead(Generic[T]):
    """Reads `items` ahead. Dropped, closed or at the interpreter's end, its thread stops.

    An error of `items` is raised where the item would have come. `items` is advanced and closed by
    the thread alone.
    """

    def __init__(self, items: Iterator[T], size: int) -> None:
        """size: items that may be ready at a time. The next one is begun when there is room."""
        self._shared: _Shared[T] = _Shared(size)
        thread = threading.Thread(
            target=_run, args=(items, self._shared), daemon=True, name="chiasm-data"
        )
        # The thread must not know `self`, or it would never be dropped.
        self._stop = weakref.finalize(self, _stop, self._shared, thread)
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._shared.take()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop()


class _Shared(Generic[T]):
    def __init__(self, size: int) -> None:
        self._size = size
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False

    def room(self) -> bool:
        """Wait for it. False: nobody reads any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._size)
            return not self._closed

    def put(self, item: T) -> None:
        with self._changed:
            if not self._closed:
                self._ready.append(item)
                self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
            if self._ready and not self._closed:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()


def _run(items: Iterator[T], shared: _Shared[T]) -> None:
    error: BaseException | None = None
    try:
        while shared.room():
            try:
                shared.put(next(items))
            except StopIteration:
                break
    except BaseException as raised:  # carried over to the reader
        error = raised
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
        shared.end(error)


def _stop(shared: _Shared[T], thread: threading.Thread) -> None:
    shared.close()
    if thread is not threading.current_thread() and thread.ident is not None:
        thread.join(_PATIENCE)
