"""Encoded bytes in, an `Image` out: the one place where decoders run.

Byte size and pixel count are checked from the header before a pixel is decoded, only the first
frame of an animation is looked at, and whatever goes wrong inside a decoder ends as one of the
three errors of `chiasm.errors` with a sentence that is fixed here (CVE-2026-22778).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

# Imported for what they register; no other of Pillow's formats is ever tried.
import PIL.AvifImagePlugin
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin

from chiasm.errors import BrokenImage, ImageError, ImageTooLarge, NotAnImage
from chiasm.media import container
from chiasm.media.colour import scale_colour_key, to_rgb
from chiasm.media.frames import count_frames
from chiasm.media.image import Image
from chiasm.media.limits import Limits
from chiasm.media.source import Source, display_name, is_data_url, open_stream, read_all

_ORIENTATION = 0x0112
_TIFF_SIZE = (256, 257)
_TIFF_TILE = (322, 323)
_LARGEST_TIFF_TILE = 4096 * 4096  # pixels; usual are 256 × 256
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_LIMITS = Limits()
_FORMATS = "Pictures are read as JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF."

# Pillow warns about doubtful metadata in words taken from the file; they belong in no log of ours.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's header states; nothing was decoded to learn it.

    format: "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF" or "AVIF".
    size: (width, height) in pixels, upright: after the EXIF orientation.
    mode: Pillow's name for how the pixels are stored, as in "RGB", "CMYK", "I;16".
    frames: frames of an animation or pages of a document, counted no further than ten thousand;
        only the first is ever decoded.
    nbytes: encoded length.
    """

    format: str
    size: tuple[int, int]
    mode: str
    frames: int
    nbytes: int


def read_header(source: Source, *, limits: Limits = _LIMITS, name: str | None = None) -> Header:
    """Format, size and frame count of a picture, without decoding it.

    source, limits, name and errors: as for `open_image`. A header that reads well is no promise
    that the pixels behind it do.
    """
    name = display_name(source, name)
    stream, nbytes = open_stream(source, limits, name)
    with stream, _decoder_errors(name, limits, "its header is damaged or of an unusual kind."):
        picture, kind, size = _open(stream, limits, name)
        return Header(kind, size, picture.mode, count_frames(stream, kind), nbytes)


def open_image(
    source: Source,
    *,
    limits: Limits = _LIMITS,
    shortest_side: int | None = None,
    name: str | None = None,
) -> Image:
    """Decode a picture: upright, opaque, eight-bit sRGB.

    source: encoded bytes, a path, or a string, which is a data URL if it starts with "data:" and
        a path otherwise. A service must never pass a caller's string here, or the caller can read
        its files: `open_data_url` is for that.
    shortest_side: pixels that the shorter side must keep. A JPEG is then decoded at the smallest
        of the scales 1, 1/2, 1/4 and 1/8 that keeps them, which for a 12-megapixel photograph
        costs a fraction of a full decode (benchmarks/decode.py); other formats are always
        decoded in full.
    name: what to call the picture in messages; by default its path, "data URL" or "image".

    Raises `NotAnImage`, `BrokenImage`, `ImageTooLarge`, and their base `ImageError` where there
    is no file, no permission, or an address instead of a picture.
    """
    if shortest_side is not None and shortest_side < 1:
        raise ValueError(f"shortest_side must be at least 1, not {shortest_side}")
    name = display_name(source, name)
    stream, _ = open_stream(source, limits, name)
    with stream:
        data = read_all(stream, limits, name)
    encoded = container.CountedBytes(data)
    with _decoder_errors(name, limits, "its header is damaged or of an unusual kind."):
        picture, kind, size = _open(encoded, limits, name)
        if kind == "JPEG":
            container.check_jpeg_scans(data)
        # Pillow turns a TIFF upright by itself while loading it.
        turn = None if kind == "TIFF" else _UPRIGHT.get(_orientation(picture))
        scale_colour_key(picture)
        stored, box = picture.size, None
        if kind == "JPEG" and shortest_side is not None:
            box = _scale(picture, shortest_side)
        encoded.reads_left += len(data)  # pixels may come in small pieces
    with _decoder_errors(name, limits, "it is damaged or cut short."):
        picture.load()
        rgb = to_rgb(picture)
        if box is not None and box != (0, 0, *rgb.size):
            rgb = rgb.resize(rgb.size, PIL.Image.Resampling.BICUBIC, box=box)
        if turn is not None:
            rgb = rgb.transpose(turn)
        pixels = np.asarray(rgb)
        return Image(pixels, original_size=size if picture.size != stored else rgb.size, name=name)


def open_data_url(
    url: str,
    *,
    limits: Limits = _LIMITS,
    shortest_side: int | None = None,
    name: str = "data URL",
) -> Image:
    """Decode the picture in a data URL, and nothing else: a path or an address is refused.

    The length of the base64 text is checked before it is decoded. Errors: as for `open_image`.
    """
    if not is_data_url(url):
        raise ImageError(
            display_name(url, name),
            "this is not a data URL.",
            hint='A data URL starts with "data:image/jpeg;base64,".',
        )
    return open_image(url, limits=limits, shortest_side=shortest_side, name=name)


def _open(
    stream: BinaryIO, limits: Limits, name: str
) -> tuple[PIL.Image.Image, str, tuple[int, int]]:
    """Identify and open a picture: Pillow's lazy object, the format, and the upright size."""
    prefix = stream.read(container.PREFIX)
    if not prefix:
        raise ImageError(name, "it is empty.")
    kind = container.identify(prefix)
    if kind is None:
        unread = container.unread_format(prefix)
        if unread is not None:
            raise NotAnImage(name, f"{unread} files are not read here.", hint=_FORMATS)
        raise NotAnImage(name, "this is not a picture.", hint=_FORMATS)
    exif = None
    if kind == "WEBP":
        _check_size(container.webp_size(prefix), limits, name)
        count_frames(stream, kind)
    elif kind == "AVIF":
        count_frames(stream, kind)
    elif kind == "PNG":
        exif = container.png_exif(stream)
    elif kind == "TIFF":
        container.tiff_pages(stream)
    _widen_guard(limits)
    stream.seek(0)
    picture = PIL.Image.open(stream, formats=(kind,))
    if exif is not None:
        picture.info.setdefault("exif", exif)
    stored = picture.size
    if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile):
        width, height = (picture.tag_v2[tag] for tag in _TIFF_SIZE)
        stored = (width, height)
        tile_width, tile_height = (picture.tag_v2.get(tag, 0) for tag in _TIFF_TILE)
        if tile_width * tile_height > max(width * height, _LARGEST_TIFF_TILE):
            raise container.Malformed  # a decoder reserves a whole tile, whatever is in it
    _check_size(stored, limits, name)
    size = stored[::-1] if _orientation(picture) >= 5 else stored
    return picture, kind, size


def _scale(
    picture: PIL.Image.Image, shortest_side: int
) -> tuple[float, float, float, float] | None:
    """Set a JPEG to be decoded at a smaller scale; the part of the result that is picture.

    Where a side is no multiple of the scale, the last row or column of the result is partly
    padding. Taken for picture, it would shift everything by up to a pixel, which changes
    more than the scale does: at 6 megapixels in benchmarks/decode.py, a mean error of 3.2 of 255
    instead of 0.5.
    """
    drafted = picture.draft(None, (shortest_side, shortest_side))
    return None if drafted is None else drafted[1]


def _check_size(size: tuple[int, int], limits: Limits, name: str) -> None:
    width, height = size
    hint = "Make the picture smaller, or raise the setting media."
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            name,
            f"{width} × {height} is more than the limit of {limits.max_pixels:,} pixels.",
            hint=f"{hint}max_pixels.",
        )
    if max(size) > limits.max_side:
        raise ImageTooLarge(
            name,
            f"{width} × {height} is longer than the limit of {limits.max_side:,} pixels a side.",
            hint=f"{hint}max_side.",
        )


def _orientation(picture: PIL.Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is missing or senseless.

    The plain method is called because the one for PNG decodes the whole picture to find EXIF.
    """
    try:
        value = PIL.Image.Image.getexif(picture).get(_ORIENTATION)
    except Exception:
        # Damaged metadata is no reason to refuse sound pixels.
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _widen_guard(limits: Limits) -> None:
    """Let Pillow's own bound on pixels not stand below ours, which is checked for every picture.

    The bound belongs to the whole process, so it is never lowered and never taken away.
    """
    guard = PIL.Image.MAX_IMAGE_PIXELS
    if guard is not None and guard < limits.max_pixels:
        PIL.Image.MAX_IMAGE_PIXELS = limits.max_pixels


@contextmanager
def _decoder_errors(name: str, limits: Limits, reason: str) -> Iterator[None]:
    """Turn whatever a decoder throws into one of our errors, without the decoder's words.

    Pillow's plug-ins are known to throw OSError, SyntaxError, ValueError, TypeError, IndexError,
    KeyError, EOFError, OverflowError, struct.error, zlib.error and AssertionError on crafted
    files; a list would never be complete.
    """
    try:
        yield
    except ImageError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise ImageTooLarge(
            name, f"it has more than the limit of {limits.max_pixels:,} pixels."
        ) from None
    except MemoryError:
        raise ImageTooLarge(name, "there is not enough memory to decode it.") from None
    except Exception:
        raise BrokenImage(name, reason) from None
