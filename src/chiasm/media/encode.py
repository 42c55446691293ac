"""An `Image` back into a file's bytes, from its pixels alone.

No EXIF, no GPS position, no profile, no comment and nothing that was hidden behind the original's
pixels survives: there is nowhere in an `Image` for them to be.
"""

from __future__ import annotations

import io
from typing import Any

import PIL.Image
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin

from chiasm.errors import ImageTooLarge
from chiasm.media.image import Image

_LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}


def encode_jpeg(image: Image, *, quality: int = 90, full_chroma: bool = False) -> bytes:
    """JPEG with chroma at half resolution, or `full_chroma`, which keeps coloured text sharp.

    Raises `ImageTooLarge` beyond 65,535 pixels a side.
    """
    chroma = "4:4:4" if full_chroma else "4:2:0"
    try:
        return _encode(image, "JPEG", quality=quality, subsampling=chroma, optimize=True)
    except OSError:
        # Pillow's buffer for tables made to measure has no room for noise of high quality.
        return _encode(image, "JPEG", quality=quality, subsampling=chroma)


def encode_png(image: Image, *, effort: int = 6) -> bytes:
    """PNG: the pixels, exactly. effort: 1 is several times as fast as 9, and somewhat larger."""
    return _encode(image, "PNG", compress_level=effort)


def encode_webp(image: Image, *, quality: int = 80, lossless: bool = False) -> bytes:
    """WebP, lossy or exact. Raises `ImageTooLarge` beyond 16,383 pixels a side."""
    return _encode(image, "WEBP", quality=0 if lossless else quality, lossless=lossless)


def _encode(image: Image, kind: str, **options: Any) -> bytes:
    longest = _LONGEST_SIDE.get(kind)
    if longest is not None and max(image.size) > longest:
        raise ImageTooLarge(image.name, f"{kind} pictures have at most {longest:,} pixels a side.")
    buffer = io.BytesIO()
    PIL.Image.fromarray(image.pixels).save(buffer, kind, **options)
    return buffer.getvalue()
