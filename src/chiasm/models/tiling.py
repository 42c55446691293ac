"""How pictures of any size are cut into tiles of one size: arithmetic on sizes alone.

Reader and network must agree to the pixel, and both with the published processors, so the order
of the floating-point operations is theirs: it decides the border cases.

Sizes are (width, height), as everywhere; the resolutions of LLaVA-NeXT's configurations are
(height, width), as in its files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]

_LARGEST_SIDE = 4096  # Idefics3's processor never scales a picture beyond this


# Any resolution (LLaVA-NeXT) --------------------------------------------------------------------


def best_resolution(size: Size, resolutions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) among `resolutions` that keeps most of a picture and wastes least.

    Kept: the picture's pixels after scaling it to fit, at most as many as it has. Wasted: what
    remains of the resolution. The first of equals wins.
    """
    width, height = size

    def merit(resolution: tuple[int, int]) -> tuple[int, int]:
        rows, columns = resolution
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns

    return max(resolutions, key=merit)


def fitted(size: Size, resolution: tuple[int, int]) -> Size:
    """The largest (width, height) of a picture's aspect inside `resolution` (height, width)."""
    (width, height), (rows, columns) = size, resolution
    across, down = columns / width, rows / height
    if across < down:
        return columns, min(math.ceil(height * across), rows)
    return min(math.ceil(width * down), columns), rows


@dataclass(frozen=True)
class Window:
    """A part of a grid of features: rows from `top` to `bottom`, columns from `left` to `right`."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        """How many rows are in it."""
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        """How many columns are in it."""
        return self.right - self.left


def unpadded(size: Size, rows: int, columns: int) -> Window:
    """The part of a grid of features that a picture of `size` covers and its padding does not.

    Of a very long and thin picture nothing may be left.
    """
    width, height = size
    if width / height > columns / rows:
        covered = int(round(height * (columns / width), 7))
        padding = (rows - covered) // 2
        return Window(padding, rows - padding, 0, columns)
    covered = int(round(width * (rows / height), 7))
    padding = (columns - covered) // 2
    return Window(0, rows, padding, columns - padding)


# Tiles of a scaled picture (Idefics3) -----------------------------------------------------------


def longest_edge(size: Size, longest: int) -> Size:
    """`size` scaled so that its longer side is `longest`, up or down; the shorter is made even."""
    width, height = _scaled(size, longest)
    if width >= height:
        height = max(height + height % 2, 1)
    else:
        width = max(width + width % 2, 1)
    if max(width, height) > _LARGEST_SIDE:
        width, height = _scaled((width, height), _LARGEST_SIDE)
    return max(width, 1), max(height, 1)


def whole_tiles(size: Size, tile: int) -> Size:
    """The size, in whole tiles, that a picture is stretched to before it is cut."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = _up(width, tile)
        return width, _up(int(width / aspect), tile)
    height = _up(height, tile)
    return _up(int(height * aspect), tile), height


def _scaled(size: Size, longest: int) -> Size:
    width, height = size
    aspect = width / height
    if width >= height:
        return longest, int(longest / aspect)
    return int(longest * aspect), longest


def _up(length: int, step: int) -> int:
    return math.ceil(length / step) * step
