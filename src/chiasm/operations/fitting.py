"""The largest sizes of several pictures that take no more than so many tokens together.

All are scaled by one factor. Some rules cost less for a larger picture than for a smaller one, so
every scale is counted, thousands at a time, and the answer is exact. As `tokens.fit` does it, no
picture's shorter side is scaled below 16 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens import ImageRule
from chiasm.operations.tokens.fit import all_scaled, scaled, shortest, sides_down

if TYPE_CHECKING:
    from chiasm.operations.tokens.vectors import Sides

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
    if room.holds(together.took(together.longest)):
        return list(sizes)
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
        for longs, own, whole, refused in self._all():
            fits = ~refused
            if room.tokens is not None:
                fits &= own <= room.tokens
            if room.whole is not None:
                fits &= whole <= room.whole
            found = fits.nonzero()[0]
            if len(found):
                return int(longs[found[0]])
        return None

    def least(self) -> int | None:
        """Tokens that they take at least; None where they are refused at any scale."""
        found = [
            int(own[~refused].min()) for _, own, _, refused in self._all() if not refused.all()
        ]
        return min(found, default=None)

    def _all(self) -> Iterator[tuple[Sides, Sides, Sides, Any]]:
        """Long sides from the longest down, what each `took`, and whether it is refused."""
        import numpy as np

        from chiasm.operations.tokens.vectors import REFUSED, counts

        for longs in sides_down(self.longest, self._shortest()):
            own, whole = np.zeros_like(longs), np.zeros_like(longs)
            refused = np.zeros(longs.shape, dtype=bool)
            for (size, detail), times in self.kinds.items():
                mine = np.maximum(np.rint(max(size) * longs / self.longest), 1).astype(np.int64)
                tokens, markers = counts(
                    self._rule, *all_scaled(*size, mine), level_of(self._rule, detail)
                )
                no = tokens == REFUSED
                refused |= no
                tokens = np.where(no, 0, tokens)
                own += times * tokens
                whole += times * (tokens + markers)
            yield longs, own, whole, refused

    def _shortest(self) -> int:
        """The least long side at which no picture is too thin."""
        needed = 1
        for size in {size for size, _ in self.kinds}:
            while self._own(size, needed) < shortest(*size):
                gap = shortest(*size) - self._own(size, needed)
                needed += max(1, int((gap - 1) * self.longest / max(size)))
        return needed

    def _scaled(self, size: Size, long: int) -> Size:
        return scaled(*size, self._own(size, long))

    def _own(self, size: Size, long: int) -> int:
        """A picture's own long side when the longest of all is so long."""
        return max(1, round(max(size) * long / self.longest))
