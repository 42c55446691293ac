"""Decoding that ends in time, whatever the file does to its decoder.

A thread inside a decoder cannot be stopped. A process can: those here are started when the first
picture needs one, stay warm, hold nothing of the server's (no sockets, no keys, a bound on
memory), and are killed when a picture takes too long. The next picture gets a new one, and
nobody else's is disturbed.

Small pictures in formats whose decoders do work in proportion to bytes and pixels are decoded
where they are: for them the bounds on both are a bound on time (`is_quick`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from chiasm.errors import (
    BrokenImage,
    DecodeTimeout,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    NotReady,
)
from chiasm.media.decode import open_image
from chiasm.media.image import Image
from chiasm.media.limits import Limits
from chiasm.media.passage import Passage, make_file, make_window
from chiasm.media.walk import is_sequential_jpeg

POSSIBLE = hasattr(socket, "AF_UNIX") and os.name == "posix"
"""Elsewhere, pictures are decoded in the server's own threads, without a bound on time."""

_QUICK_PIXELS = 1_000_000
_QUICK_BYTES = 256 * 1024
_START_SECONDS = 60.0
_LONGEST_MESSAGE = 8192
_ERRORS = {kind.__name__: kind for kind in (BrokenImage, ImageError, ImageTooLarge, NotAnImage)}
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
_TUNING = {
    "OPENBLAS_NUM_THREADS": "1",
    # What was freed is kept for the next picture, up to this: new pages cost more than decoding.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}
_log = logging.getLogger(__name__)


def open_in_time(
    data: bytes,
    *,
    kind: str,
    size: tuple[int, int],
    limits: Limits,
    shortest_side: int | None = None,
    name: str = "image",
) -> Image:
    """As `open_image`, within `limits.max_seconds`. Blocks.

    kind, size: format and size as `read_header` has told them.

    Raises what `open_image` raises; `DecodeTimeout`; `BrokenImage`, too, for a file that its
    decoder did not survive; and `NotReady` where no process can be started.
    """
    if not POSSIBLE or is_quick(data, kind, size):
        return open_image(data, limits=limits, shortest_side=shortest_side, name=name)
    return shared().open(data, limits=limits, shortest_side=shortest_side, name=name)


def is_quick(data: bytes, kind: str, size: tuple[int, int]) -> bool:
    """Whether a decoder's work on a file is bounded by its few bytes and its few pixels.

    So it is for bitmaps, for PNG (inflating ends with the last row), and for JPEG files whose
    frame is sequential: no pass of theirs goes over pixels that another one has filled. Tens of
    milliseconds at most. A progressive JPEG, or the prediction modes of WebP and AVIF, are
    judged by nobody but a clock.
    """
    if len(data) > _QUICK_BYTES or size[0] * size[1] > _QUICK_PIXELS:
        return False
    return kind in ("PNG", "BMP") or (kind == "JPEG" and is_sequential_jpeg(data))


class Sandbox:
    """Processes that decode, `workers` of them at most. For any number of threads."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or max(2, os.cpu_count() or 2)
        self._idle: list[_Worker] = []
        self._busy = 0
        self._changed = threading.Condition()

    def open(
        self, data: bytes, *, limits: Limits, shortest_side: int | None = None, name: str = "image"
    ) -> Image:
        """As `open_image`, in a process of its own. Waits for one that is free."""
        with self._turn():
            worker = self._taken()
            try:
                image = worker.decode(data, limits, shortest_side, name)
            except ImageError as error:
                if worker.alive:
                    self._give_back(worker)
                else:
                    late = isinstance(error, DecodeTimeout)
                    _log.warning("a picture's decoder %s", "took too long" if late else "crashed")
                raise
            except BaseException:
                worker.kill()
                raise
            self._give_back(worker)
            return image

    def close(self) -> None:
        """End the processes that have nothing to do."""
        with self._changed:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    @contextlib.contextmanager
    def _turn(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self._workers)
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def _taken(self) -> _Worker:
        """The process that was used last, or a new one."""
        while True:
            with self._changed:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _Worker()
            if worker.alive:
                return worker
            worker.kill()  # it has ended while nobody looked

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            self._idle.append(worker)


class _Worker:
    """A process, the socket to talk with it, and the passage through which bytes go."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        file, window = make_file(), make_window()
        shared_files = [file] if window is None else [file, window]
        command = [sys.executable, "-P", "-m", "chiasm.media.sandbox_worker"]
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, (theirs.fileno(), *shared_files))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders' own words
                pass_fds=(theirs.fileno(), *shared_files),
                env=_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C is the server's to handle
            )
            self._passage, self._file = Passage(file, window), file
        except OSError as error:
            self._socket.close()
            os.close(file)
            raise _not_started() from error
        finally:
            theirs.close()
            if window is not None:
                os.close(window)
        try:
            self._socket.settimeout(_START_SECONDS)
            receive(self._socket)
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise _not_started() from error

    @property
    def alive(self) -> bool:
        """Whether it can be given a picture."""
        return self._file >= 0 and self._process.poll() is None

    def decode(self, data: bytes, limits: Limits, shortest_side: int | None, name: str) -> Image:
        """An `Image`, or an `ImageError`; where the process is at fault it is no longer alive."""
        deadline = time.monotonic() + limits.max_seconds
        try:
            self._passage.put(data)
            job = {
                "nbytes": len(data),
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_side": limits.max_side,
                "seconds": limits.max_seconds,
                "shortest_side": shortest_side,
            }
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            send(self._socket, job)
            answer = receive(self._socket, deadline)
            if "error" in answer:
                kind = _ERRORS[answer["error"]]
                raise kind(name, str(answer["reason"]), hint=answer["hint"])
            return self._image(answer, limits, name)
        except TimeoutError:
            self.kill()
            raise DecodeTimeout(name, limits.max_seconds) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            self.kill()
            raise BrokenImage(name, "its decoder failed.") from None

    def _image(self, answer: dict[str, Any], limits: Limits, name: str) -> Image:
        """What the process has written. It is held against the limits, too."""
        width, height = (int(side) for side in answer["size"])
        original = tuple(int(side) for side in answer["original_size"])
        if not (0 < width * height <= limits.max_pixels and min(width, height, *original) > 0):
            raise ValueError
        pixels = self._passage.take(height * width * 3).reshape(height, width, 3)
        return Image(pixels, original_size=(original[0], original[1]), name=name)

    def kill(self) -> None:
        """End it at once. Never raises, may be called twice."""
        if self._file < 0:
            return
        self._process.kill()
        self._process.wait()
        self._socket.close()
        os.close(self._file)
        self._file = -1


def _not_started() -> NotReady:
    return NotReady(
        "The process that decodes pictures could not be started.",
        hint="Try again in a moment; the operator should look at the limits on processes.",
    )


def _environment() -> dict[str, str]:
    """What a process needs to find its modules; keys and tokens are not for it."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return kept | {"PYTHONPATH": path} | _TUNING


# What both sides say ----------------------------------------------------------------------------


def send(to: socket.socket, message: dict[str, Any]) -> None:
    """One message: its length, then JSON."""
    text = json.dumps(message).encode()
    to.sendall(struct.pack(">I", len(text)) + text)


def receive(source: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """The next message. EOFError when the other side has gone, TimeoutError past `deadline`."""
    (length,) = struct.unpack(">I", _exactly(source, 4, deadline))
    if length > _LONGEST_MESSAGE:
        raise ValueError
    message = json.loads(_exactly(source, length, deadline))
    if not isinstance(message, dict):
        raise ValueError
    return message


def _exactly(source: socket.socket, length: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < length:
        if deadline is not None:
            source.settimeout(max(0.001, deadline - time.monotonic()))
        piece = source.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


# One for the process ----------------------------------------------------------------------------

_shared: Sandbox | None = None
_shared_lock = threading.Lock()


def shared() -> Sandbox:
    """The sandbox of this process; it has no workers before its first picture."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Sandbox()
            atexit.register(_shared.close)
        return _shared


def _forget() -> None:
    """A forked child must not talk to its parent's workers."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
