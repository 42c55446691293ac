"""The full pictures that a collection keeps: files named by the digest of their pixels.

They hold nothing but pixels: whatever an upload carried beside them (a place, a camera, a name) is
gone.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from chiasm.errors import NoSpace, StoreError


class PictureFiles:
    """JPEG files below a folder, spread over 256 subfolders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, digest: str, data: bytes) -> None:
        """Keep it; complete and on the disk when this returns. The same digest, the same file."""
        path = self._path(digest)
        if path.exists():
            return
        partial = path.with_name(f".{digest}-{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno == 28:  # ENOSPC
                raise NoSpace(
                    "The disk is full: the picture was not kept.", hint="Make room and try again."
                ) from error
            raise StoreError(
                f"A picture could not be written below {self._folder}.",
                hint="May the folder be written?",
            ) from error

    def read(self, digest: str) -> bytes | None:
        """JPEG bytes, or None when there is no such file."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> None:
        """Forget it, if it is there."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.jpg"
