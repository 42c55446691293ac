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

    Never enlarged. The first resize is to the nearest pixel, which the guide does not say but bills
    do (2049×513 costs eight tiles, 2050×513 four); the second is rounded down, which it says.
    """
    base, tile = constants["base"], constants["tile"]
    if detail == "low":
        return ImageCost(base, _inside(width, height, _TILE), 1, (1, 1))
    width, height = _inside(width, height, _LONG_SIDE)
    short = min(width, height)
    if short > _SHORT_SIDE:
        width, height = width * _SHORT_SIDE // short, height * _SHORT_SIDE // short
    columns, rows = _up(width, _TILE), _up(height, _TILE)
    tiles = columns * rows
    return ImageCost(base + tile * tiles, (width, height), tiles + 1, (columns, rows))


def openai_patches(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """So much for each patch of 32 pixels, of at most so many."""
    level = constants["levels"][detail]
    most, longest = level["patches"], level.get("longest")
    size = (width, height) if longest is None else _inside(width, height, longest)
    columns, rows = _up(size[0], _PATCH), _up(size[1], _PATCH)
    if columns * rows > most:
        if level.get("refuses"):
            raise refuse(width, height, f"has more than {most:,} patches", "Send it smaller.")
        size = _within_patches(size, most)
        columns, rows = _up(size[0], _PATCH), _up(size[1], _PATCH)
    # In whole numbers: 1.2 × 5 is 6, not a little more.
    tokens = _up(columns * rows * round(constants["multiplier"] * 100), 100)
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

    def fits(long: int, short: int) -> bool:
        columns, rows = -(-long // patch), -(-short // patch)
        return columns * patch <= edge and columns * rows <= most

    long, short = max(width, height), min(width, height)
    if not fits(long, short):
        aspect = long / short
        # What fits grows with the long side; over the edge nothing does.
        low, high = 1, min(long, edge + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if fits(middle, max(1, round(middle / aspect))):
                low = middle
            else:
                high = middle
        long, short = low, max(1, round(low / aspect))
    size = (long, short) if width >= height else (short, long)
    columns, rows = _up(size[0], patch), _up(size[1], patch)
    return ImageCost(columns * rows, size, 1, (columns, rows))


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


def gemini_grid(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """As many whole patches as a budget holds, the picture scaled to them, up or down.

    So does the published processor of Gemma 4. That Gemini 3 does is nowhere written, but the API's
    counts are these: 1,089 for squares of any size, 1,081 for 2:1, 1,056 for 4:1, 1,064 for 4:3.
    """
    budget, patch = constants["levels"][detail], constants["patch"]
    scale = math.sqrt(budget * patch**2 / (width * height))
    columns = math.floor(scale * width / patch)
    rows = math.floor(scale * height / patch)
    if rows == 0:
        columns, rows = min(width // height, budget), 1
    elif columns == 0:
        columns, rows = 1, min(height // width, budget)
    size = (columns * patch, rows * patch)
    return ImageCost(columns * rows, size, 1, (columns, rows), constants.get("markers", 0))


def fixed_by_level(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """So many tokens at each level, whatever the size. For Gemini 3 it is the most there can be."""
    return ImageCost(constants["levels"][detail], (width, height))


# Sizes ------------------------------------------------------------------------------------------


def _inside(width: int, height: int, side: int) -> Size:
    """Scaled down so that neither is over `side`, to the nearest pixel, halves up."""
    long = max(width, height)
    if long <= side:
        return width, height
    return (
        max((2 * width * side + long) // (2 * long), 1),
        max((2 * height * side + long) // (2 * long), 1),
    )
