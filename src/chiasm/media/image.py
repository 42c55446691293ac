"""The one value that stands for a picture everywhere outside `media`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Image:
    """Decoded pixels, upright, opaque, three channels.

    pixels: uint8, [height, width, 3], RGB, read-only.
    original_size: (width, height) of the upright picture as its header states it; larger than
        `size` when the picture was decoded at a reduced scale.
    name: what to call the picture in a message; never used to open anything.
    """

    pixels: Pixels
    original_size: tuple[int, int]
    name: str = field(default="image")

    def __post_init__(self) -> None:
        right = self.pixels.dtype == np.uint8 and self.pixels.ndim == 3
        if not right or self.pixels.shape[2] != 3 or self.pixels.size == 0:
            raise ValueError(
                f"pixels must be uint8 [height, width, 3] and not empty, but are "
                f"{self.pixels.dtype} {list(self.pixels.shape)}"
            )
        self.pixels.flags.writeable = False

    @property
    def width(self) -> int:
        """Width of `pixels`."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height of `pixels`."""
        return int(self.pixels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `pixels`, in that order."""
        return self.width, self.height

    @cached_property
    def digest(self) -> str:
        """SHA-256 over mode, size and decoded pixels, as 64 hexadecimal digits.

        Mode and size are part of it because two pictures of different shape can hold the same
        bytes (CVE-2025-46722); it is never shortened.
        """
        hasher = hashlib.sha256(f"chiasm-image-1 RGB {self.width}x{self.height}\n".encode())
        hasher.update(np.ascontiguousarray(self.pixels).data)
        return hasher.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
