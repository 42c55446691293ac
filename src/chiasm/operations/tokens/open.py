"""The arithmetic of open models, as their published processors do it.

Constants are those of a checkpoint's configuration; `from_config` reads them there.
"""

from __future__ import annotations

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
    return ImageCost(constants["tokens"], (side, side), markers=constants.get("markers", 0))


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
def _canvases(least: int, most: int) -> tuple[tuple[int, int], ...]:
    every = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    fitting = [pair for pair in every if least <= pair[0] * pair[1] <= most]
    return tuple(sorted(fitting, key=lambda pair: pair[0] * pair[1]))


def _canvas(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    aspect, area = width / height, width * height
    nearest, best = float("inf"), (1, 1)
    for columns, rows in _canvases(least, most):
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
        width, height = (max(1, math.floor(each / ratio)) for each in (width, height))
    columns, rows = (width - 1) // patch + 1, (height - 1) // patch + 1
    return ImageCost(rows * (columns + 1), (columns * patch, rows * patch), 1, (columns, rows))


def llama4(constants: Constants, width: int, height: int, detail: str) -> ImageCost:
    """The canvas of tiles that needs the least scaling, and an overview beside several."""
    side, each = constants["side"], constants["tokens"]
    rows, columns = _llama4_canvas(width, height, side, constants["most"])
    tiles = rows * columns
    if tiles == 1:
        return ImageCost(each, (side, side), 1, (1, 1), markers=3)
    # A separator after each tile: within its row, or at the row's end.
    return ImageCost(
        (tiles + 1) * each, (columns * side, rows * side), tiles + 1, (columns, rows), tiles + 3
    )


def _llama4_canvas(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(rows, columns). Scales are compared in single precision, as the processor compares them."""

    def scale(canvas: tuple[int, int]) -> float:
        columns, rows = canvas
        return min(_single(columns * side / width), _single(rows * side / height))

    scales = [(scale(canvas), canvas) for canvas in _canvases(1, most)]
    enlarging = [each for each, _ in scales if each >= 1]
    chosen = min(enlarging) if enlarging else max(each for each, _ in scales)
    columns, rows = min(
        (canvas for each, canvas in scales if each == chosen),
        key=lambda canvas: canvas[0] * canvas[1],
    )
    return rows, columns


def _single(value: float) -> float:
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found
