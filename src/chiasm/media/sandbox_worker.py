"""The process in which `chiasm.media.sandbox` lets a picture be decoded.

Started with the descriptors of a socket, on which jobs arrive and results are told, and of the
files of a `Passage`, which brings the encoded bytes first and the pixels after.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
from typing import Any

from chiasm.errors import ImageError
from chiasm.media.decode import open_image
from chiasm.media.limits import Limits
from chiasm.media.passage import Passage
from chiasm.media.sandbox import receive, send

_BASE_BYTES = 2 * 1024**3  # address space of the interpreter, its libraries and decoders' threads
_BYTES_A_PIXEL = 24  # the decoder's, four; in other colours, sorted, turned, and as an array


def main() -> None:
    """Decode what is asked for until the other side goes."""
    talk = socket.socket(fileno=int(sys.argv[1]))
    window = int(sys.argv[3]) if len(sys.argv) > 3 else None
    passage = Passage(int(sys.argv[2]), window)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send(talk, {"ready": True})
    while True:
        try:
            job = receive(talk)
        except EOFError:
            return
        # Should nobody be left to kill this process: by default the signal ends it, even within
        # a decoder that never returns.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"] + 5)
        send(talk, _decode(job, passage))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _decode(job: dict[str, Any], passage: Passage) -> dict[str, Any]:
    limits = Limits(
        max_bytes=job["max_bytes"], max_pixels=job["max_pixels"], max_side=job["max_side"]
    )
    _bound_memory(_BASE_BYTES + 2 * limits.max_bytes + _BYTES_A_PIXEL * limits.max_pixels)
    try:
        data = passage.take(job["nbytes"]).data
        image = open_image(data, limits=limits, shortest_side=job["shortest_side"])
    except ImageError as error:
        return {"error": type(error).__name__, "reason": error.reason, "hint": error.hint}
    passage.put(image.pixels)
    return {"size": image.size, "original_size": image.original_size}


def _bound_memory(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows the limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
