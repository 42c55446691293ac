"""The largest size of a picture that takes no more than so many tokens.

Some rules ask more for a smaller picture than for a larger, and with the rounded side nearly all do
so here and there. So every size is counted, thousands at a time, and the answer is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens.rule import ImageRule, Size

if TYPE_CHECKING:
    from chiasm.operations.tokens.vectors import Sides

SMALLEST = 16
"""Pixels of the shorter side below which nothing is scaled: there is nothing left to see."""

_AT_ONCE = 2048  # sizes counted in one go


def fit(rule: ImageRule, width: int, height: int, tokens: int, detail: str = "auto") -> Size:
    """(width, height), of the same aspect and no larger than the picture is.

    The long side is the largest whole number of pixels whose picture, the short side rounded,
    costs no more than `tokens`. The short side keeps 16 pixels, or what it has if that is less.

    Raises InvalidRequest, which names the least that the picture can cost, if none fits; and what
    `ImageRule.cost` raises for a level that there is not, or where every size is refused.
    """
    found = _search(rule, width, height, tokens, rule.level(detail))
    if found.long:
        return scaled(width, height, found.long)
    if not found.least_at:
        rule.cost(*scaled(width, height, shortest(width, height)), detail)  # says why
        raise InvalidRequest(f"{rule.name} takes this picture at no size.")
    at = scaled(width, height, found.least_at)
    raise InvalidRequest(
        f"No size of this picture takes {tokens:,} tokens or fewer of {rule.name}; the least "
        f"is {found.least:,}, at {at[0]:,}×{at[1]:,}.",
        hint="Raise max_image_tokens, choose a lower detail, or ask another model.",
        param="max_image_tokens",
    )


def scaled(width: int, height: int, long: int) -> Size:
    """The size whose longer side is `long`; the other is rounded, half to even."""
    if width >= height:
        return long, max(1, round(long * height / width))
    return max(1, round(long * width / height)), long


def shortest(width: int, height: int) -> int:
    """The least longer side, in pixels, that a picture is scaled to."""
    long, short = max(width, height), min(width, height)
    floor = min(SMALLEST, short)
    if floor == 1:
        return 1  # it is never rounded to less
    # The rounded side is that large from half a pixel below on, and grows with the other.
    side = int((floor - 0.5) * long / short)
    while min(scaled(width, height, side)) < floor:
        side += 1
    return side


def all_scaled(width: int, height: int, longs: Sides) -> tuple[Sides, Sides]:
    """`scaled` for many longer sides."""
    import numpy as np

    long, short = max(width, height), min(width, height)
    others = np.maximum(np.rint(longs * short / long), 1).astype(np.int64)
    return (longs, others) if width >= height else (others, longs)


def sides_down(long: int, least: int) -> Iterator[Sides]:
    """All whole numbers from `long` down to `least`, in pieces."""
    import numpy as np

    for top in range(long, least - 1, -_AT_ONCE):
        yield np.arange(top, max(top - _AT_ONCE, least - 1), -1, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Found:
    """long: the largest longer side that fits, 0 if none does. least, least_at: the fewest tokens
    of those that do not, and the largest longer side that takes them, 0 if all are refused.
    """

    long: int
    least: int = 0
    least_at: int = 0


@functools.lru_cache(maxsize=4096)
def _search(rule: ImageRule, width: int, height: int, tokens: int, detail: str) -> _Found:
    longest = max(width, height)
    try:
        if rule.cost(width, height, detail).tokens <= tokens:
            return _Found(longest)
    except InvalidRequest:
        if width < 1 or height < 1:
            raise
    from chiasm.operations.tokens.vectors import REFUSED, counts

    least, least_at = REFUSED, 0
    for longs in sides_down(longest, shortest(width, height)):
        counted, _ = counts(rule, *all_scaled(width, height, longs), detail)
        good = (counted <= tokens).nonzero()[0]
        if len(good):
            return _Found(int(longs[good[0]]))
        at = int(counted.argmin())
        if counted[at] < least:
            least, least_at = int(counted[at]), int(longs[at])
    return _Found(0, least, least_at)
