"""Pictures at another size."""

from __future__ import annotations

from typing import Literal

import numpy as np
import PIL.Image

from chiasm.media.image import Image, Pixels

Resample = Literal["bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


def resize(
    image: Image,
    size: tuple[int, int],
    *,
    resample: Resample = "bicubic",
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Pixels of `image` at `size` (width, height): uint8 [height, width, 3].

    The filter widens when it shrinks (antialiasing), as in Pillow, whose results these are:
    published models were trained on them.

    box: (left, top, right, bottom) in pixels of `image`, the part that becomes the result; it
        need not lie on whole pixels. None is all of it.
    """
    picture = PIL.Image.fromarray(image.pixels)
    return np.asarray(picture.resize(size, _FILTERS[resample], box))


def thumbnail(image: Image, longest_side: int) -> Image:
    """`image` shrunk so that neither side is longer than `longest_side`; never enlarged.

    `original_size` stays that of the picture it was made from.
    """
    scale = longest_side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = PIL.Image.fromarray(image.pixels)
    # Shrinking by whole factors first costs a fraction and cannot be seen at twice the target.
    small = picture.resize((width, height), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    return Image(np.asarray(small), original_size=image.original_size, name=image.name)
