"""The rules' arithmetic over many sizes at once, to look for the one that fits a budget.

Each function gives what its namesake of `closed` or `open` gives, by the same operations in the
same order, so that rounding is the same to the last bit; tests hold them against each other. The
sizes are positive, int64. Tokens are REFUSED where the scalar rule raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from chiasm.operations.tokens.open import tile_grids
from chiasm.operations.tokens.rule import ImageRule

Constants = Mapping[str, Any]
Sides: TypeAlias = NDArray[np.int64]
Counts: TypeAlias = tuple[Sides, Sides]

REFUSED = 1 << 60
_LARGEST_SIDE = 4096  # of `models.tiling`


def counts(rule: ImageRule, widths: Sides, heights: Sides, detail: str = "auto") -> Counts:
    """Tokens of each size, and its markers."""
    level = rule.level(detail)
    tokens, markers = _FAMILIES[rule.family](rule.constants, widths, heights, level)
    return tokens, np.broadcast_to(np.asarray(markers, dtype=np.int64), tokens.shape)


def _up(sides: Sides, step: int) -> Sides:
    counted: Sides = -(-sides // step)
    return counted


def _same(widths: Sides, value: int) -> Sides:
    return np.full(widths.shape, value, dtype=np.int64)


# Sold -------------------------------------------------------------------------------------------


def openai_tiles(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    base, tile = constants["base"], constants["tile"]
    if detail == "low":
        return _same(widths, base), 0
    widths, heights = _within(widths, heights, 2048)
    short = np.maximum(np.minimum(widths, heights), 768)
    widths, heights = (sides * 768 // short for sides in (widths, heights))
    return base + tile * _up(widths, 512) * _up(heights, 512), 0


def openai_patches(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    level, hundredths = constants["levels"][detail], round(constants["multiplier"] * 100)
    if (longest := level.get("longest")) is not None:
        widths, heights = _within(widths, heights, longest)
    patches = _up(widths, 32) * _up(heights, 32)
    over = patches > level["patches"]
    if not level.get("refuses") and over.any():
        patches[over] = _within_patches(widths[over], heights[over], level["patches"])
    tokens = -(-patches * hundredths // 100)
    if level.get("refuses"):
        tokens[over] = REFUSED
    return tokens, 0


def _within(widths: Sides, heights: Sides, longest: int) -> tuple[Sides, Sides]:
    long = np.maximum(np.maximum(widths, heights), longest)  # `longest` leaves a size as it is
    width, height = (
        np.maximum((2 * sides * longest + long) // (2 * long), 1) for sides in (widths, heights)
    )
    return width, height


def _within_patches(widths: Sides, heights: Sides, most: int) -> Sides:
    scale = np.sqrt(32**2 * most / (widths * heights))
    across, down = widths * scale / 32, heights * scale / 32
    scale *= np.minimum(
        np.maximum(np.floor(across), 1) / across, np.maximum(np.floor(down), 1) / down
    )
    columns, rows = (
        _up(np.maximum((sides * scale + 1e-6).astype(np.int64), 1), 32)
        for sides in (widths, heights)
    )
    counted: Sides = columns * rows
    return counted


def claude(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    patch, most, edge = (int(constants[name]) for name in ("patch", "tokens", "edge"))
    long, short = np.maximum(widths, heights), np.minimum(widths, heights)
    aspect = long / short

    patches = _up(np.arange(edge + 2), patch)

    def shorter(long: Sides) -> Sides:
        return np.maximum(np.rint(long / aspect), 1).astype(np.int64)

    def fits(long: Sides) -> NDArray[np.bool_]:
        within: NDArray[np.bool_] = patches[long] * patches[shorter(long)] <= most
        return within & (long <= edge)

    # What fits grows with the long side, so any bisection ends at the same; none fits over `edge`.
    low, high = np.ones_like(long), np.minimum(long, edge + 1)
    for _ in range((edge + 1).bit_length()):
        middle = np.maximum((low + high) // 2, 1)
        good = fits(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    unscaled = (_up(long, patch) * patch <= edge) & (_up(long, patch) * _up(short, patch) <= most)
    tokens = np.where(
        unscaled, _up(long, patch) * _up(short, patch), patches[low] * patches[shorter(low)]
    )
    tokens[np.maximum(widths, heights) > constants["refused_above"]] = REFUSED
    return tokens, 0


def gemini_tiles(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    if detail in constants["levels"]:
        return _same(widths, constants["levels"][detail]), 0
    unit = np.maximum((np.minimum(widths, heights) / 1.5).astype(np.int64), 1)
    tiles = -(-widths // unit) * -(-heights // unit)
    small = np.maximum(widths, heights) <= constants["small"]
    return constants["tile"] * np.where(small, 1, tiles), 0


def gemini_grid(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    budget, patch = constants["levels"][detail], constants["patch"]
    scale = np.sqrt(budget * patch**2 / (widths * heights))
    columns = np.floor(scale * widths / patch).astype(np.int64)
    rows = np.floor(scale * heights / patch).astype(np.int64)
    flat = np.minimum(widths // heights, budget)
    tall = np.minimum(heights // widths, budget)
    tokens = np.where(rows == 0, flat, np.where(columns == 0, tall, columns * rows))
    return tokens, constants.get("markers", 0)


def fixed_by_level(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    return _same(widths, constants["levels"][detail]), 0


# Open -------------------------------------------------------------------------------------------


def fixed(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    return _same(widths, constants["tokens"]), constants.get("markers", 0)


def llava_next(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    side, patch = constants["side"], constants["patch"]
    area = widths * heights
    kept, merit = _same(widths, -1), _same(widths, 0)
    high, wide = np.zeros_like(widths), np.zeros_like(widths)
    for rows, columns in constants["resolutions"]:
        scale = np.minimum(columns / widths, rows / heights)
        covered = (widths * scale).astype(np.int64) * (heights * scale).astype(np.int64)
        keeps = np.minimum(covered, area)
        wastes = keeps - rows * columns
        better = (keeps > kept) | ((keeps == kept) & (wastes > merit))
        for to, value in ((kept, keeps), (merit, wastes), (high, rows), (wide, columns)):
            np.copyto(to, value, where=better)
    across = side // patch
    rows, columns = high // side * across, wide // side * across
    # Python rounds to seven digits where numpy scales by ten million: the same unless a length
    # ends within 5e-8 of a whole number, which a quotient of such small numbers cannot.
    flat = widths / heights > columns / rows
    seen_rows = rows - (rows - np.round(heights * (columns / widths), 7).astype(np.int64)) // 2 * 2
    seen = columns - (columns - np.round(widths * (rows / heights), 7).astype(np.int64)) // 2 * 2
    rows, columns = np.where(flat, seen_rows, rows), np.where(flat, columns, seen)
    return across * across + rows * (columns + 1), 0


def qwen(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    step, least, most = constants["step"], constants["min_pixels"], constants["max_pixels"]
    tokens = (np.rint(widths / step) * np.rint(heights / step)).astype(np.int64)
    area, pixels = heights * widths, tokens * (step * step)
    over, under = pixels > most, pixels < least
    if over.any():
        scale = np.sqrt(area[over] / most)
        across, down = (
            np.maximum(np.floor(sides[over] / scale / step), 1) for sides in (widths, heights)
        )
        tokens[over] = (across * down).astype(np.int64)
    if under.any():
        scale = np.sqrt(least / area[under])
        across, down = (np.ceil(sides[under] * scale / step) for sides in (widths, heights))
        tokens[under] = (across * down).astype(np.int64)
    tokens[np.maximum(widths, heights) / np.minimum(widths, heights) > 200] = REFUSED
    return tokens, constants.get("markers", 2)


def idefics3(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    tile, longest = constants["tile"], constants["longest"]
    widths, heights = _scaled(widths, heights, longest)
    wide = widths >= heights
    widths = np.maximum(np.where(wide, widths, widths + widths % 2), 1)
    heights = np.maximum(np.where(wide, heights + heights % 2, heights), 1)
    if longest > _LARGEST_SIDE:
        widths, heights = (
            np.maximum(sides, 1) for sides in _scaled(widths, heights, _LARGEST_SIDE)
        )
    wide, aspect = widths >= heights, widths / heights
    long = _up(np.where(wide, widths, heights), tile)
    other = np.where(wide, long * tile / aspect, long * tile * aspect).astype(np.int64)
    short = _up(other, tile)
    rows, single = np.where(wide, short, long), long * short == 1
    tiles = long * short
    tokens = constants["tokens"] * np.where(single, 1, tiles + 1)
    markers = 2 * tiles + rows + 3 + constants.get("newline", 0)
    return tokens, np.where(single, 3, markers)


def _scaled(widths: Sides, heights: Sides, longest: int) -> tuple[Sides, Sides]:
    wide, aspect = widths >= heights, widths / heights
    return (
        np.where(wide, longest, (longest * aspect).astype(np.int64)),
        np.where(wide, (longest / aspect).astype(np.int64), longest),
    )


def internvl(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    aspect, area = widths / heights, widths * heights
    nearest = np.full(widths.shape, np.inf)
    tiles = np.ones_like(widths)
    half = 0.5 * constants["side"] * constants["side"]
    grids = tile_grids(constants["least"], constants["most"])
    for columns, rows in _near(grids, float(aspect.min()), float(aspect.max())):
        distance = np.abs(aspect - columns / rows)
        better = distance < nearest
        better |= (distance == nearest) & (area > half * columns * rows)
        np.copyto(nearest, distance, where=better)
        np.copyto(tiles, columns * rows, where=better)
    return constants["tokens"] * (tiles + (tiles > 1)), 2


def _near(grids: Iterable[tuple[int, int]], low: float, high: float) -> list[tuple[int, int]]:
    """Those that can be the nearest to an aspect between two: of one picture few are."""
    distances = []
    for grid in grids:
        at = grid[0] / grid[1]
        distances.append((max(low - at, at - high, 0.0), max(abs(low - at), abs(high - at)), grid))
    enough = min(farthest for _, farthest, _ in distances)
    return [grid for closest, _, grid in distances if closest <= enough]


def pixtral(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    longest, patch = constants["longest"], constants["patch"]
    ratio = np.maximum(np.maximum(widths / longest, heights / longest), 1.0)
    widths, heights = (np.floor(sides / ratio).astype(np.int64) for sides in (widths, heights))
    tokens = _up(heights, patch) * (_up(widths, patch) + 1)
    tokens[np.minimum(widths, heights) < 1] = REFUSED
    return tokens, 0


def llama4(constants: Constants, widths: Sides, heights: Sides, detail: str) -> Any:
    side, most = constants["side"], constants["most"]
    tiles = _up(widths, side) * _up(heights, side)
    over = tiles > most
    if over.any():
        counts = np.arange(1, most + 1, dtype=np.int64)[:, None] * side  # [counts, sizes]
        across, down = ((counts / sides[over]).astype(np.float32) for sides in (widths, heights))
        scale = np.zeros(across.shape[1], dtype=np.float32)
        for count in range(1, most + 1):
            np.maximum(scale, np.minimum(across[count - 1], down[most // count - 1]), out=scale)
        columns, rows = ((scales < scale).sum(axis=0) + 1 for scales in (across, down))
        tiles[over] = columns * rows
    several = tiles > 1
    return constants["tokens"] * (tiles + several), 3 + np.where(several, tiles, 0)


_FAMILIES: Mapping[str, Callable[[Constants, Sides, Sides, str], Any]] = {
    "openai-tiles": openai_tiles,
    "openai-patches": openai_patches,
    "claude": claude,
    "gemini-tiles": gemini_tiles,
    "gemini-grid": gemini_grid,
    "fixed-by-level": fixed_by_level,
    "fixed": fixed,
    "llava-next": llava_next,
    "qwen": qwen,
    "idefics3": idefics3,
    "internvl": internvl,
    "pixtral": pixtral,
    "llama4": llama4,
}
