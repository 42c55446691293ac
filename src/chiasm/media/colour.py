"""From any colour model a file can hold to opaque eight-bit sRGB.

Transparency is laid on white. An embedded ICC profile is honoured where it says something other
than sRGB; without one CMYK is taken as ink on paper, RGB = (1 - ink)(1 - black).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageCms
from PIL.TiffImagePlugin import TiffImageFile

_PROFILE_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
_LARGEST_PROFILE = 4 * 1024 * 1024  # press profiles reach about two megabytes
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
# How far a PNG's colour key, stated in the file's own sample depth, is from Pillow's eight bits.
_KEY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def scale_colour_key(picture: PIL.Image.Image) -> None:
    """Bring a PNG's transparent colour to the depth that its pixels will have once loaded.

    Pillow expands two- and four-bit samples and cuts sixteen-bit ones, but leaves the key as it
    stands in the file. To be called before the pixels are loaded, while the depth is still known.
    """
    key = picture.info.get("transparency")
    tiles = getattr(picture, "tile", [])
    scale = _KEY_SCALES.get(tiles[0].args) if tiles and isinstance(tiles[0].args, str) else None
    if scale is None or key is None:
        return
    if isinstance(key, tuple):
        picture.info["transparency"] = tuple(int(value * scale) for value in key)
    else:
        picture.info["transparency"] = int(key * scale)


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A loaded picture of any mode as opaque sRGB, mode "RGB"."""
    colour, alpha = _separate_alpha(picture)
    rgb = _through_profile(colour, picture.info.get("icc_profile"))
    if rgb is None:
        rgb = _without_profile(colour)
    if alpha is None:
        return rgb
    page = PIL.Image.new("RGB", rgb.size, "white")
    page.paste(rgb, mask=alpha)
    return page


def _separate_alpha(
    picture: PIL.Image.Image,
) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
    """The colours alone, and an "L" picture of how opaque they are (None: fully)."""
    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture, None
    if picture.mode in ("LA", "La"):
        grey, alpha = picture.convert("LA").split()
        return grey, alpha
    rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A")
    if picture.format == "BMP" and alpha.getextrema() == (0, 0):
        # Many writers leave the fourth byte of a bitmap zero and mean an opaque picture.
        return rgba.convert("RGB"), None
    return rgba.convert("RGB"), alpha


def _without_profile(colour: PIL.Image.Image) -> PIL.Image.Image:
    if colour.mode == "LAB":
        lab = PIL.ImageCms.createProfile("LAB")
        return _applied(colour, PIL.ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB"))
    return colour if colour.mode == "RGB" else colour.convert("RGB")


# Wide greyscale ---------------------------------------------------------------------------------


def _eight_bits(picture: PIL.Image.Image) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
    """Greyscale of 12, 16 or 32 bits or floating point as "L", with a mask for a colour key.

    Twelve and sixteen bits are scaled by the full range of their depth. Wider integers and
    floating point have no agreed range: they are taken to fill the smallest of the customary
    ones that holds them all (0..1 for floating point, 0..255, 0..65535), and beyond those are
    stretched from their darkest to their lightest value.
    """
    values = np.asarray(picture)
    low, high, white_is_zero = 0.0, 65_535.0, False
    if isinstance(picture, TiffImageFile):
        # Pillow undoes white-is-zero for samples of up to eight bits only.
        white_is_zero = picture.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
        if picture.tag_v2.get(_TIFF_BITS) == (12,):
            high = 4_095.0
    if not picture.mode.startswith("I;16"):
        integers = (255.0, 65_535.0)
        low, high = _range(values, integers if picture.mode == "I" else (1.0, *integers))
    if white_is_zero:
        low, high = high, low
    grey = np.empty(values.shape, dtype=np.uint8)
    for band in _bands(values):
        # Halved before they are subtracted: the difference of two large numbers can overflow.
        share = (values[band] / 2.0 - low / 2) / ((high / 2 - low / 2) or 1.0)
        grey[band] = np.rint(np.clip(np.nan_to_num(share), 0.0, 1.0) * 255)
    key = picture.info.get("transparency")
    alpha = None
    if isinstance(key, int):
        alpha = PIL.Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return PIL.Image.fromarray(grey), alpha


def _range(values: npt.NDArray[Any], customary: tuple[float, ...]) -> tuple[float, float]:
    """(black, white): 0 and the first of `customary` that bounds all values, or their extremes."""
    least, most = np.inf, -np.inf
    for band in _bands(values):
        finite = values[band][np.isfinite(values[band])]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if most < least:  # nothing but infinities and what is not a number
        return 0.0, customary[0]
    if least >= 0:
        for full in customary:
            if most <= full:
                return 0.0, full
    return least, most


def _bands(values: npt.NDArray[Any]) -> Iterator[slice]:
    """Rows, about a million samples at a time: arithmetic on all of them takes memory."""
    height, width = values.shape
    rows = max(1, 1_000_000 // width)
    return (slice(start, start + rows) for start in range(0, height, rows))


# Profiles ---------------------------------------------------------------------------------------


def _through_profile(colour: PIL.Image.Image, profile: object) -> PIL.Image.Image | None:
    """`colour` taken through its ICC profile to sRGB; None where that would change nothing."""
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _LARGEST_PROFILE:
        return None
    if colour.mode in ("1", "P", "RGBX", "YCbCr"):
        colour = colour.convert("L" if colour.mode == "1" else "RGB")
    if colour.mode not in _PROFILE_SPACES:
        return None
    transform = _transform_to_srgb(profile, colour.mode)
    return None if transform is None else _applied(colour, transform)


def _applied(colour: PIL.Image.Image, transform: PIL.ImageCms.ImageCmsTransform) -> PIL.Image.Image:
    converted = PIL.ImageCms.applyTransform(colour, transform)
    assert converted is not None  # None is for work done in place
    return converted


@lru_cache(maxsize=16)
def _transform_to_srgb(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    """The transform, or None for a profile that is sRGB, is for another mode, or is unreadable.

    A profile's name is no proof of what it holds, so sRGB is told by what the transform does to
    a lattice of colours. Relative colorimetric with black-point compensation is the usual choice
    for photographs; between matrix profiles all intents agree.
    """
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = PIL.ImageCms.buildTransform(
            source,
            _srgb(),
            mode,
            "RGB",
            renderingIntent=PIL.ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=PIL.ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        lattice = _lattice(mode)
        before = np.asarray(lattice.convert("RGB"), dtype=np.int16)
        after = np.asarray(_applied(lattice, transform), dtype=np.int16)
    except (PIL.ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        # A damaged profile does not make the pixels unreadable; without it they are close.
        return None
    return None if np.abs(after - before).max() <= 2 else transform


@cache
def _srgb() -> PIL.ImageCms.ImageCmsProfile:
    return PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))


def _lattice(mode: str) -> PIL.Image.Image:
    if mode == "L":
        return PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return PIL.Image.fromarray(points.reshape(27, 27, 3))
