"""The largest sizes of several pictures that take no more than so many tokens together.

All are scaled by one factor. Some rules cost less for a larger picture than for a smaller one, so
the answer is found by looking at every size where it cannot be found by halving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chiasm.errors import InvalidRequest
from chiasm.operations import tokens
from chiasm.operations.tokens import ImageRule
from chiasm.operations.tokens.fit import scaled

Size = tuple[int, int]


class TooMuch(Exception):
    """Nothing fits. tokens: what the pictures take at least; None: they are refused at any size."""

    def __init__(self, least: int | None) -> None:
        super().__init__(least)
        self.tokens = least


@dataclass(frozen=True)
class Room:
    """What pictures may take together: tokens of their own; and those, markers included.

    None is any number.
    """

    tokens: int | None = None
    whole: int | None = None

    def holds(self, took: tuple[int, int] | None) -> bool:
        """Whether (tokens, tokens and markers) are within it; what is refused never is."""
        return (
            took is not None
            and (self.tokens is None or took[0] <= self.tokens)
            and (self.whole is None or took[1] <= self.whole)
        )


def fit_all(
    rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], room: Room
) -> list[Size]:
    """The sizes, (width, height) each, at the largest common scale that fits; none is enlarged.

    Raises TooMuch.
    """
    together = _Together(rule, sizes, details)
    took = together.took(together.longest)
    if room.holds(took):
        return list(sizes)
    if len(together.kinds) == 1 and took is not None and took[0] == took[1]:  # no markers
        alike = min(each for each in (room.tokens, room.whole) if each is not None) // len(sizes)
        try:
            return [tokens.fit(rule, *sizes[0], alike, level_of(rule, details[0]))] * len(sizes)
        except InvalidRequest:
            raise TooMuch(together.least()) from None
    long = together.largest(room)
    if long is None:
        raise TooMuch(together.least())
    return together.at(long)


def least(rule: ImageRule, sizes: Sequence[Size], details: Sequence[str]) -> int | None:
    """What the pictures take together at least, at any common scale, without their markers."""
    return _Together(rule, sizes, details).least() if sizes else 0


def level_of(rule: ImageRule, detail: str) -> str:
    """The detail as the rule has it: what it does not have is its default."""
    return detail if detail in rule.details else "auto"


class _Together:
    """Pictures that are scaled together, by the long side of the longest."""

    def __init__(self, rule: ImageRule, sizes: Sequence[Size], details: Sequence[str]) -> None:
        self._rule = rule
        self._sizes = sizes
        pairs = list(zip(sizes, details, strict=True))
        self.kinds = {pair: pairs.count(pair) for pair in pairs}
        self.longest = max(max(size) for size in sizes)

    def at(self, long: int) -> list[Size]:
        """The sizes when the longest side of all is so long."""
        return [self._scaled(size, long) for size in self._sizes]

    def took(self, long: int) -> tuple[int, int] | None:
        """Tokens of all of them then, and with their markers; None where one is refused."""
        own = whole = 0
        for (size, detail), times in self.kinds.items():
            try:
                cost = self._rule.cost(*self._scaled(size, long), level_of(self._rule, detail))
            except InvalidRequest:
                return None
            own += times * cost.tokens
            whole += times * (cost.tokens + cost.markers)
        return own, whole

    def largest(self, room: Room) -> int | None:
        """The largest long side that fits."""
        if not self._rule.monotonic:
            sides = range(self.longest, 0, -1)
            return next((long for long in sides if room.holds(self.took(long))), None)
        low, high = 0, self.longest + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if room.holds(self.took(middle)) else (low, middle)
        return low or None

    def least(self) -> int | None:
        """Tokens that they take at least; None where they are refused at any scale."""
        taken = (self.took(long) for long in range(1, self.longest + 1))
        return min((each[0] for each in taken if each is not None), default=None)

    def _scaled(self, size: Size, long: int) -> Size:
        return scaled(*size, max(1, round(max(size) * long / self.longest)))
