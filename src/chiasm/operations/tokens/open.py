"""The arithmetic of open models, as their published processors do it.

Constants are those of a checkpoint's configuration; `from_config` reads them there.
"""

from __future__ import annotations

import bisect
import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

from chiasm.models.tiling import (
    best_resolution,
    fitted,
    longest_edge,
    unpadded,
    whole_tiles,
)
from chiasm.operations.tokens.rule import ImageCost, refuse

Constants = Mapping[str, Any]


def fixed(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """The same for every size: LLaVA-1.5, PaliGemma, this product's own small model."""
    side = constants["side"]
    patches = constants.get("patches")
    return ImageCost(
        constants["tokens"],
        (side, side),
        constants.get("looks", 1),
        (patches, patches) if patches else None,
        constants.get("markers", 0),
    )


def llava_next(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """An overview, and of the best of several resolutions what the picture covers of it.

    Each row of features ends with one token for a new line.
    """
    side, patch = constants["side"], constants["patch"]
    resolutions = constants["resolutions"]
    across = side // patch
    resolution = best_resolution((width, height), resolutions)
    rows, columns = (length // side * across for length in resolution)
    seen = unpadded((width, height), rows, columns)
    tokens = across * across + seen.rows * (seen.columns + 1)
    down, along = resolution[0] // side, resolution[1] // side
    size = fitted((width, height), resolution)
    return ImageCost(tokens, size, down * along + 1, (along, down))


def qwen(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """Sides in whole steps, pixels between two bounds, and a token for each step squared."""
    step, least, most = constants["step"], constants["min_pixels"], constants["max_pixels"]
    if max(width, height) / min(width, height) > 200:
        raise refuse(
            width, height, "is more than 200 times as long as it is wide", "Cut it into pieces."
        )
    # Rounded as Python does, half to even, and without a lower bound: as the processor has it.
    across, down = round(width / step) * step, round(height / step) * step
    if across * down > most:
        scale = math.sqrt(height * width / most)
        down = max(step, math.floor(height / scale / step) * step)
        across = max(step, math.floor(width / scale / step) * step)
    elif across * down < least:
        scale = math.sqrt(least / (height * width))
        down = math.ceil(height * scale / step) * step
        across = math.ceil(width * scale / step) * step
    columns, rows = across // step, down // step
    return ImageCost(columns * rows, (across, down), 1, (columns, rows), markers=2)


def idefics3(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """Scaled, up or down, to one long side, cut into tiles, and an overview; SmolVLM as well."""
    tile, each = constants["tile"], constants["tokens"]
    across, down = whole_tiles(longest_edge((width, height), constants["longest"]), tile)
    columns, rows = across // tile, down // tile
    if columns * rows == 1:
        return ImageCost(each, (tile, tile), 1, (1, 1), markers=3)
    tiles = columns * rows + 1
    # Before each tile a mark and its place, after each row a new line; three round the overview,
    # and a new line before it.
    markers = 2 * columns * rows + rows + 3 + constants.get("newline", 0)
    return ImageCost(tiles * each, (across, down), tiles, (columns, rows), markers)


def internvl(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """As many square tiles as come nearest to the aspect, and an overview beside several.

    Enlarging the picture costs more, at times less: of equal aspects the one with more tiles is
    taken as long as the picture has half as many pixels.
    """
    side, each = constants["side"], constants["tokens"]
    columns, rows = _canvas(width, height, side, constants["least"], constants["most"])
    tiles = columns * rows
    tiles += 1 if tiles > 1 else 0
    return ImageCost(tiles * each, (columns * side, rows * side), tiles, (columns, rows), markers=2)


@functools.lru_cache(maxsize=64)
def tile_grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of every grid with so many tiles, the smallest first."""
    every = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    fitting = [pair for pair in every if least <= pair[0] * pair[1] <= most]
    return tuple(sorted(fitting, key=lambda pair: pair[0] * pair[1]))


def _canvas(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    aspect, area = width / height, width * height
    nearest, best = float("inf"), (1, 1)
    for columns, rows in tile_grids(least, most):
        distance = abs(aspect - columns / rows)
        if distance < nearest or (
            distance == nearest and area > 0.5 * side * side * columns * rows
        ):
            nearest, best = distance, (columns, rows)
    return best


def pixtral(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """A token for each patch, and one at each row's end."""
    longest, patch = constants["longest"], constants["patch"]
    ratio = max(width / longest, height / longest)
    if ratio > 1:
        size = math.floor(width / ratio), math.floor(height / ratio)
        if not min(size):
            why = f"is too thin: scaled to {longest:,} nothing is left of its shorter side"
            raise refuse(width, height, why, "Cut it into pieces.")
        width, height = size
    columns, rows = (width - 1) // patch + 1, (height - 1) // patch + 1
    return ImageCost(rows * (columns + 1), (columns * patch, rows * patch), 1, (columns, rows))


def llama4(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """The canvas of tiles that needs the least scaling, and an overview beside several."""
    side, each, most = constants["side"], constants["tokens"], constants["most"]
    columns, rows = _llama4_canvas(width, height, side, most)
    tiles = rows * columns
    # Padded on the right and below; enlarged to one tile, and not beyond.
    across = min(max(width, side), columns * side)
    down = min(max(height, side), rows * side)
    size = _inside(width, height, across, down)
    if tiles == 1:
        return ImageCost(each, size, 1, (1, 1), markers=3)
    # A separator after each tile: within its row, or at the row's end.
    return ImageCost((tiles + 1) * each, size, tiles + 1, (columns, rows), tiles + 3)


def _inside(width: int, height: int, across: int, down: int) -> tuple[int, int]:
    if across / width < down / height:
        return across, max(1, min(math.floor(height * (across / width)), down))
    return max(1, min(math.floor(width * (down / height)), across)), down


def _llama4_canvas(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(columns, rows).

    The processor takes, of the canvases that hold the whole picture, the one that enlarges it
    least, and where there is none, the one that shrinks it least; of equal ones the smallest.
    Scales are compared in single precision, as it compares them.
    """
    columns, rows = -(-width // side), -(-height // side)
    if columns * rows <= most:
        return columns, rows
    single = _singles(most)
    across = single.unpack(single.pack(*[count * side / width for count in range(1, most + 1)]))
    down = single.unpack(single.pack(*[count * side / height for count in range(1, most + 1)]))
    scale = max(min(across[count - 1], down[most // count - 1]) for count in range(1, most + 1))
    # Both grow with the count: these are the fewest columns and rows that reach the scale.
    return bisect.bisect_left(across, scale) + 1, bisect.bisect_left(down, scale) + 1


@functools.cache
def _singles(count: int) -> struct.Struct:
    return struct.Struct(f"{count}f")
