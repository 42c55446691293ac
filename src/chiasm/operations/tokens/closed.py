"""The arithmetic of models that are sold: OpenAI, Anthropic, Gemini. Sources stand in `rules/`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chiasm.operations.tokens.rule import ImageCost, Size, refuse

Constants = Mapping[str, Any]

_TILE = 512
_SHORT_SIDE, _LONG_SIDE = 768, 2048
_PATCH = 32


def _up(value: int, step: int) -> int:
    return -(-value // step)


# OpenAI -----------------------------------------------------------------------------------------


def openai_tiles(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """A base, and so much for each tile of 512 pixels that the resized picture touches.

    Only ever made smaller: the document does not say whether small pictures are enlarged.
    """
    base, tile = constants["base"], constants["tile"]
    long, short = max(width, height), min(width, height)
    if detail == "low":
        return ImageCost(base, _inside((width, height), _TILE), 1, (1, 1))
    # In whole numbers: 4:3 comes to 1024 pixels exactly, and a rounding error is a tile more.
    if min(short, short * _LONG_SIDE / long) > _SHORT_SIDE:
        size = _scaled((width, height), _SHORT_SIDE, short)
        columns, rows = (_up(each * _SHORT_SIDE, short * _TILE) for each in (width, height))
    elif long > _LONG_SIDE:
        size = _scaled((width, height), _LONG_SIDE, long)
        columns, rows = (_up(each * _LONG_SIDE, long * _TILE) for each in (width, height))
    else:
        size, columns, rows = (width, height), _up(width, _TILE), _up(height, _TILE)
    return ImageCost(base + tile * columns * rows, size, columns * rows, (columns, rows))


def openai_patches(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """So much for each patch of 32 pixels, of at most so many."""
    level = constants["levels"][detail]
    most, longest, multiplier = level["patches"], level.get("longest"), constants["multiplier"]
    size = (width, height)
    if longest is not None and max(size) > longest:
        size = _scaled(size, longest, max(size))
    columns, rows = _up(size[0], _PATCH), _up(size[1], _PATCH)
    if columns * rows > most:
        if level.get("refuses"):
            raise refuse(width, height, f"has more than {most:,} patches", "Send it smaller.")
        size = _within_patches(size, most)
        columns, rows = _up(size[0], _PATCH), _up(size[1], _PATCH)
    # A multiplier is a short decimal: 1.2 × 5 is 6, not a little more.
    tokens = math.ceil(round(columns * rows * multiplier, 6))
    return ImageCost(tokens, size, 1, (columns, rows))


def _within_patches(size: Size, most: int) -> Size:
    """The size that OpenAI's guide computes: no more patches, and one side in whole patches."""
    width, height = size
    scale = math.sqrt(_PATCH**2 * most / (width * height))
    across, down = width * scale / _PATCH, height * scale / _PATCH
    scale *= min(max(1, math.floor(across)) / across, max(1, math.floor(down)) / down)
    # Of what should be whole a little may be missing; of a side nothing is left below one pixel.
    return max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))


# Anthropic --------------------------------------------------------------------------------------


def claude(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """A token for each patch of 28 pixels, after the largest resize within two limits."""
    if max(width, height) > constants["refused_above"]:
        raise refuse(
            width,
            height,
            f"is longer than the {constants['refused_above']:,} that are taken",
            "Send it smaller.",
        )
    patch, most, edge = (int(constants[name]) for name in ("patch", "tokens", "edge"))

    def fits(size: Size) -> bool:
        columns, rows = _up(size[0], patch), _up(size[1], patch)
        return max(columns, rows) * patch <= edge and columns * rows <= most

    size = (width, height)
    if not fits(size):
        low, high = 1, max(size)
        while high - low > 1:
            middle = (low + high) // 2
            if fits(_long_side(size, middle)):
                low = middle
            else:
                high = middle
        size = _long_side(size, low)
    columns, rows = _up(size[0], patch), _up(size[1], patch)
    return ImageCost(columns * rows, size, 1, (columns, rows))


def _long_side(size: Size, long: int) -> Size:
    width, height = size
    if width >= height:
        return long, max(1, round(long * height / width))
    return max(1, round(long * width / height)), long


# Gemini -----------------------------------------------------------------------------------------


def gemini_tiles(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """258 for a small picture; else for each tile, whose side is two thirds of the short side.

    The document does not say how parts of tiles are rounded: its example rounds them up.
    """
    size = (width, height)
    if detail in constants["levels"]:
        return ImageCost(constants["levels"][detail], size)
    if max(size) <= constants["small"]:
        return ImageCost(constants["tile"], size, 1, (1, 1))
    unit = max(1, int(min(size) / 1.5))
    columns, rows = _up(width, unit), _up(height, unit)
    return ImageCost(constants["tile"] * columns * rows, size, columns * rows, (columns, rows))


def fixed_by_level(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """So many tokens at each level, whatever the size. For Gemini 3 it is the most there can be."""
    return ImageCost(constants["levels"][detail], (width, height))


# Sizes ------------------------------------------------------------------------------------------


def _inside(size: Size, side: int) -> Size:
    long = max(size)
    return size if long <= side else _scaled(size, side, long)


def _scaled(size: Size, numerator: int, denominator: int) -> Size:
    width, height = (max(1, round(each * numerator / denominator)) for each in size)
    return width, height
