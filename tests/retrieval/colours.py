"""A small deterministic embedder and pictures whose neighbours are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chiasm.media import Image
from chiasm.media.encode import encode_jpeg
from chiasm.media.transform import resize

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 30),
    "blue": (20, 30, 220),
    "yellow": (230, 220, 20),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}
_CELLS = 4
_LEVELS = 4


class ColourEmbedder:
    """Colours by place: an honest embedder whose vectors can be reasoned about.

    A picture's vector is the square root of its colour histogram (64 colours) over the whole and
    over a 4 × 4 grid; a text's is that of a plain picture in the colours it names.
    """

    name = "colours"
    decode_side = 64
    dimension = _LEVELS**3 * (1 + _CELLS**2)

    def __init__(self, digest: str = "c0105" * 12 + "0000") -> None:
        self.digest = digest

    def embed_images(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        vectors = [self._vector(resize(image, (32, 32))) for image in images]
        return np.array(vectors, np.float32).reshape(len(images), self.dimension)

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = []
        for text in texts:
            named = [COLOURS[word] for word in text.lower().split() if word in COLOURS]
            named = named or [(128, 128, 128)]
            plain = np.array([named[i % len(named)] for i in range(32)], np.uint8)
            vectors.append(self._vector(np.broadcast_to(plain[:, None], (32, 32, 3))))
        return np.array(vectors, np.float32).reshape(len(texts), self.dimension)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def _vector(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        bins = (pixels.astype(np.int64) * _LEVELS) // 256
        codes = bins @ np.array([_LEVELS**2, _LEVELS, 1])  # [32, 32]
        side = 32 // _CELLS
        cells = codes.reshape(_CELLS, side, _CELLS, side).swapaxes(1, 2).reshape(_CELLS**2, -1)
        parts = [np.bincount(cell, minlength=_LEVELS**3) for cell in (codes.ravel(), *cells)]
        parts[0] = parts[0] * _CELLS
        vector = np.sqrt(np.concatenate(parts).astype(np.float64))
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def picture(seed: int, *, size: tuple[int, int] = (96, 72), colour: str | None = None) -> Image:
    """A picture of a few random rectangles, on a background of that colour."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = COLOURS[colour] if colour else rng.integers(0, 256, 3)
    for _ in range(3 if colour else 8):
        left, top = rng.integers(0, width * 3 // 4), rng.integers(0, height * 3 // 4)
        share = 5 if colour else 2
        wide, high = rng.integers(4, width // share), rng.integers(4, height // share)
        pixels[top : top + high, left : left + wide] = rng.integers(0, 256, 3)
    return Image(pixels, original_size=size, name=f"picture {seed}")


def write_jpeg(path: Path, image: Image, *, quality: int = 95) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(image, quality=quality))
    return path
