"""Sixty-four bits that stay nearly the same when a picture is scaled or compressed again.

The DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
(2010), section 3.2.1: luminance at 32 × 32, its two-dimensional cosine transform, the 8 × 8
lowest frequencies without the constant row and column, and for each one whether it lies above
their median.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import PIL.Image

from chiasm.media.image import Image

_SIDE = 32
_FREQUENCIES = 8


def _cosines() -> npt.NDArray[np.float64]:
    """Rows 1 to 8 of the orthonormal DCT-II matrix for 32 samples: [8, 32]."""
    frequency = np.arange(1, _FREQUENCIES + 1)[:, None]
    sample = np.arange(_SIDE)[None, :]
    cosines = np.cos(np.pi * frequency * (2 * sample + 1) / (2 * _SIDE))
    return np.asarray(cosines * np.sqrt(2 / _SIDE), dtype=np.float64)


_COSINES = _cosines()


def perceptual_hash(image: Image) -> int:
    """The 64-bit hash, first bit highest. Pictures of one flat colour all hash to 0.

    Two pictures whose hashes differ in about 6 bits or fewer are likely the same picture; about
    32 are expected of unrelated ones. A hint for finding candidates, no proof.
    """
    picture = PIL.Image.fromarray(image.pixels).convert("L")
    small = picture.resize((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
    luminance = np.asarray(small, dtype=np.float64)
    # Rounded, so that the noise of floating point on a flat picture is not taken for structure.
    spectrum = np.round(_COSINES @ luminance @ _COSINES.T, 6)  # [8, 8]
    bits = (spectrum > np.median(spectrum)).astype(np.uint8)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hamming_distance(a: int, b: int) -> int:
    """The number of bits in which two hashes differ, 0 to 64."""
    return (a ^ b).bit_count()
