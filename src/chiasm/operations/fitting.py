"""The largest sizes of several pictures that take no more than so many tokens together.

All are scaled by one factor. Some rules cost less for a larger picture than for a smaller one, so
the answer is found by looking at every size where it cannot be found by halving.
"""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.errors import InvalidRequest
from chiasm.operations import tokens
from chiasm.operations.tokens import ImageRule

Size = tuple[int, int]

_REFUSED = 1 << 60  # what a vendor refuses does not fit, whatever the budget


class TooMuch(Exception):
    """Nothing fits. tokens: what they take at least."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.tokens = least


def fit_all(
    rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], budget: int
) -> list[Size]:
    """The sizes, (width, height) each, at the largest common scale that fits; none is enlarged.

    Raises TooMuch.
    """
    together = _Together(rule, sizes, details)
    if together.cost(together.longest) <= budget:
        return list(sizes)
    found = _only(rule, sizes, details, budget) if len(together.kinds) == 1 else None
    if found is not None:
        return [found] * len(sizes)
    long = together.largest(budget)
    if long is None:
        raise TooMuch(together.least())
    return together.at(long)


def least(rule: ImageRule | None, sizes: Sequence[Size], details: Sequence[str]) -> int:
    """What the pictures take together at least, at any common scale."""
    return 0 if rule is None or not sizes else _Together(rule, sizes, details).least()


def _only(
    rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], budget: int
) -> Size | None:
    """The one size, where all are of one; None if it does not fit."""
    try:
        return tokens.fit(rule, *sizes[0], budget // len(sizes), details[0])
    except InvalidRequest:
        return None


class _Together:
    """Pictures that are scaled together, by the long side of the longest."""

    def __init__(self, rule: ImageRule, sizes: Sequence[Size], details: Sequence[str]) -> None:
        self._rule = rule
        self._pairs = list(zip(sizes, details, strict=True))
        self.kinds = {pair: self._pairs.count(pair) for pair in self._pairs}
        self.longest = max(max(size) for size in sizes)
        self._known: dict[tuple[Size, str], int] = {}

    def at(self, long: int) -> list[Size]:
        """The sizes when the longest side of all is so long."""
        return [self._scaled(size, long) for size, _ in self._pairs]

    def cost(self, long: int) -> int:
        """Tokens of all of them then."""
        total = 0
        for (size, detail), times in self.kinds.items():
            total += times * self._one(self._scaled(size, long), detail)
        return total

    def largest(self, budget: int) -> int | None:
        """The largest long side that fits."""
        if not self._rule.monotonic:
            sides = range(self.longest, 0, -1)
            return next((long for long in sides if self.cost(long) <= budget), None)
        low, high = 0, self.longest + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.cost(middle) <= budget else (low, middle)
        return low or None

    def least(self) -> int:
        """What they take at least."""
        return min(self.cost(long) for long in range(1, self.longest + 1))

    def _scaled(self, size: Size, long: int) -> Size:
        side = max(size)
        mine = max(1, round(side * long / self.longest))
        width, height = (max(1, round(mine * each / side)) for each in size)
        return width, height

    def _one(self, size: Size, detail: str) -> int:
        key = (size, detail)
        found = self._known.get(key)
        if found is None:
            try:
                level = detail if detail in self._rule.details else "auto"
                found = self._rule.cost(*size, level).tokens
            except InvalidRequest:
                found = _REFUSED
            self._known[key] = found
        return found
