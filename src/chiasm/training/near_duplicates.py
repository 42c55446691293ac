"""Which earlier picture is this one, scaled, compressed again or a little brighter?

Candidates are pictures whose perceptual hashes differ in few bits. The hash alone takes pictures
for equal that are mostly of one colour, so eight by eight pixels of each are compared, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

from chiasm.media import Image
from chiasm.media.perceptual_hash import perceptual_hash

MAX_DISTANCE = 6
"""Bits of 64."""
MAX_DIFFERENCE = 8.0
"""Mean absolute difference of the small pictures, of 255."""

_SIDE = 8


@dataclass(frozen=True)
class Look:
    """What a picture looks like: its hash, and 8 × 8 × 3 bytes of it."""

    hash: int
    small: bytes

    @classmethod
    def of(cls, image: Image) -> Look:
        """Of a decoded picture; a reduced scale does as well."""
        picture = PIL.Image.fromarray(image.pixels)
        small = picture.resize((_SIDE, _SIDE), PIL.Image.Resampling.BOX)
        return cls(perceptual_hash(image), small.tobytes())


class Looks:
    """Pictures seen so far, in order. A search reads all hashes: a millisecond for a million."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._hashes = np.empty(1024, dtype=np.uint64)
        self._small = np.empty((1024, _SIDE * _SIDE * 3), dtype=np.uint8)

    def add(self, name: str, look: Look) -> None:
        """One more picture."""
        count = len(self.names)
        if count == len(self._hashes):
            self._hashes = np.resize(self._hashes, 2 * count)
            self._small = np.resize(self._small, (2 * count, self._small.shape[1]))
        self._hashes[count] = look.hash
        self._small[count] = np.frombuffer(look.small, dtype=np.uint8)
        self.names.append(name)

    def first_like(self, look: Look) -> str | None:
        """The earliest that looks the same, or None."""
        known = self._hashes[: len(self.names)]
        distances = np.bitwise_count(known ^ np.uint64(look.hash))
        candidates = np.flatnonzero(distances <= MAX_DISTANCE)
        if not len(candidates):
            return None
        small: npt.NDArray[np.int16] = np.frombuffer(look.small, dtype=np.uint8).astype(np.int16)
        for start in range(0, len(candidates), 4096):
            part = candidates[start : start + 4096]
            differences = np.abs(self._small[part] - small).mean(axis=1)
            alike = np.flatnonzero(differences <= MAX_DIFFERENCE)
            if len(alike):
                return self.names[int(part[alike[0]])]
        return None
