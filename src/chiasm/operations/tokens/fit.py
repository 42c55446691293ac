"""The largest size of a picture that takes no more than so many tokens."""

from __future__ import annotations

import functools

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens.rule import ImageRule, Size


def fit(rule: ImageRule, width: int, height: int, tokens: int, detail: str = "auto") -> Size:
    """(width, height), of the same aspect and no larger than the picture is.

    The long side is the largest whole number of pixels whose picture, the short side rounded,
    costs no more than `tokens`. Some rules ask more for a smaller picture than for a larger, and
    with the rounded side nearly all do so here and there: so where a rule is not known to be
    monotonic every size is looked at, from the top.

    Raises InvalidRequest, which names the least that the picture can cost, if none fits; and what
    `ImageRule.cost` raises for a level that there is not.
    """
    rule.cost(1, 1, detail)  # a level that there is not is refused as such
    long = _largest(rule, width, height, tokens, detail)
    if long is None:
        raise InvalidRequest(
            f"No size of this picture takes {tokens:,} tokens or fewer of {rule.name}; the least "
            f"is {_least(rule, width, height, detail):,}.",
            hint="Raise max_image_tokens, choose a lower detail, or ask another model.",
            param="max_image_tokens",
        )
    return scaled(width, height, long)


def scaled(width: int, height: int, long: int) -> Size:
    """The size whose longer side is `long`; the other is rounded, half to even."""
    if width >= height:
        return long, max(1, round(long * height / width))
    return max(1, round(long * width / height)), long


@functools.lru_cache(maxsize=4096)
def _largest(rule: ImageRule, width: int, height: int, tokens: int, detail: str) -> int | None:
    def fits(long: int) -> bool:
        cost = _cost(rule, *scaled(width, height, long), detail)
        return cost is not None and cost <= tokens

    longest = max(width, height)
    if not rule.monotonic:
        return next((long for long in range(longest, 0, -1) if fits(long)), None)
    low, high = 0, longest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


@functools.lru_cache(maxsize=1024)
def _least(rule: ImageRule, width: int, height: int, detail: str) -> int:
    costs = (
        _cost(rule, *scaled(width, height, long), detail)
        for long in range(1, max(width, height) + 1)
    )
    return min(cost for cost in costs if cost is not None)


def _cost(rule: ImageRule, width: int, height: int, detail: str) -> int | None:
    """None for a size that is refused."""
    try:
        return rule.cost(width, height, detail).tokens
    except InvalidRequest:
        return None
