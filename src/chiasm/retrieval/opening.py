"""A file on the disk, opened at a size that the embedder can use."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

from chiasm.errors import ImageError, InvalidRequest
from chiasm.media import Image
from chiasm.media.decode import open_image, read_header
from chiasm.media.limits import Limits
from chiasm.media.transform import thumbnail
from chiasm.retrieval.prepared import THUMBNAIL_SIDE
from chiasm.retrieval.store import SourceFile

UNOPENED = (InvalidRequest, OSError)
"""What is raised about one file and stops no other."""

_LARGE_PIXELS = 24_000_000


@dataclass(frozen=True)
class Opener:
    """Opens files for an embedder. Safe to use from several threads."""

    limits: Limits
    decode_side: int
    _one_large_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def open(self, data: bytes, path: Path) -> Image:
        """Large enough for the embedder and for the thumbnail. ImageError."""
        side = max(self.decode_side, THUMBNAIL_SIDE)
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            width, height = read_header(data, limits=self.limits, name=str(path)).size
            if width * height > _LARGE_PIXELS:  # else a few of them would fill the memory
                with self._one_large_at_a_time:
                    return open_image(data, limits=self.limits, shortest_side=side, name=str(path))
        return open_image(data, limits=self.limits, shortest_side=side, name=str(path))

    def shrunk(self, image: Image) -> Image:
        """No larger than the embedder can use, so that what waits in line takes little memory."""
        shorter = min(image.size)
        keep = 2 * self.decode_side
        if shorter <= keep:
            return image
        return thumbnail(image, round(max(image.size) * keep / shorter))


def read_file(path: Path, size: int, mtime_ns: int) -> tuple[bytes, SourceFile]:
    """Its bytes, and what it is known by. OSError."""
    data = path.read_bytes()
    return data, SourceFile(path, size, mtime_ns, hashlib.sha256(data).hexdigest())


def reason_of(error: InvalidRequest | OSError) -> str:
    """Why a file could not be taken in, as one sentence that need not name it."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, InvalidRequest):
        return error.message
    return f"it could not be read: {error.strerror or 'input error'}."
