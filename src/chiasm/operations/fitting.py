"""The largest sizes of several pictures that take no more than so many tokens together.

All are scaled by one factor. Some rules cost less for a larger picture than for a smaller one, so
every scale is counted, thousands at a time, and the answer is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens import ImageRule
from chiasm.operations.tokens.fit import SMALLEST, all_scaled, scaled, sides_down
from chiasm.operations.tokens.vectors import REFUSED, Sides, counts

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


def fit_all(
    rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], room: Room
) -> list[Size]:
    """The sizes, (width, height) each, at the largest common scale that fits; none is enlarged.

    The scale goes by the longest side of all, in whole pixels; of no picture the shorter side is
    made less than 16 pixels. Raises TooMuch.
    """
    if _fits(rule, sizes, details, room):
        return list(sizes)
    together = _Together(rule, sizes, details)
    least = REFUSED
    for longs, own, whole in together.counted():
        good = own < REFUSED
        if room.tokens is not None:
            good &= own <= room.tokens
        if room.whole is not None:
            good &= whole <= room.whole
        if good.any():
            return together.at(int(longs[good.argmax()]))
        least = min(least, int(own.min()))
    raise TooMuch(least if least < REFUSED else None)


def least(rule: ImageRule, sizes: Sequence[Size], details: Sequence[str]) -> int | None:
    """What the pictures take together at least, at any common scale, without their markers."""
    if not sizes:
        return 0
    found = min(int(own.min()) for _, own, _ in _Together(rule, sizes, details).counted())
    return found if found < REFUSED else None


def level_of(rule: ImageRule, detail: str) -> str:
    """The detail as the rule has it: what it does not have is its default."""
    return detail if detail in rule.details else "auto"


def _fits(rule: ImageRule, sizes: Sequence[Size], details: Sequence[str], room: Room) -> bool:
    """Whether they fit as they are."""
    own = whole = 0
    for size, detail in zip(sizes, details, strict=True):
        try:
            cost = rule.cost(*size, level_of(rule, detail))
        except InvalidRequest:
            return False
        own += cost.tokens
        whole += cost.tokens + cost.markers
    return (room.tokens is None or own <= room.tokens) and (
        room.whole is None or whole <= room.whole
    )


class _Together:
    """Pictures that are scaled together, by the long side of the longest."""

    def __init__(self, rule: ImageRule, sizes: Sequence[Size], details: Sequence[str]) -> None:
        self._rule = rule
        self._sizes = sizes
        levels = [level_of(rule, detail) for detail in details]
        pairs = list(zip(sizes, levels, strict=True))
        self._kinds = {pair: pairs.count(pair) for pair in pairs}
        self._longest = max(max(size) for size in sizes)

    def at(self, long: int) -> list[Size]:
        """The sizes when the longest side of all is so long."""
        return [scaled(*size, self._side(size, long)) for size in self._sizes]

    def _side(self, size: Size, long: int) -> int:
        return max(1, round(max(size) * long / self._longest))

    def counted(self) -> Iterator[tuple[Sides, Sides, Sides]]:
        """Scales from the largest down; tokens at each, REFUSED or more where one is refused; and
        those with their markers.
        """
        for longs in sides_down(self._longest, self._least()):
            own = np.zeros_like(longs)
            whole = np.zeros_like(longs)
            for (size, level), times in self._kinds.items():
                sides = np.maximum(np.rint(max(size) * longs / self._longest), 1).astype(np.int64)
                tokens, markers = counts(self._rule, *all_scaled(*size, sides), level)
                tokens = np.minimum(tokens, REFUSED // 1024)  # so that sums stay in 64 bits
                own += times * tokens
                whole += times * (tokens + markers)
            own[own >= REFUSED // 1024] = REFUSED
            yield longs, own, whole

    def _least(self) -> int:
        """The least scale at which every picture keeps 16 pixels, or all it has if that is less."""
        low, high = 0, self._longest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_kept(middle) else (middle, high)
        return high

    def _is_kept(self, long: int) -> bool:
        return all(
            min(new) >= min(SMALLEST, *old)
            for new, old in zip(self.at(long), self._sizes, strict=True)
        )
