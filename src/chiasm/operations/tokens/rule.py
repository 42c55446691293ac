"""A rule: constants with their source, and the arithmetic that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from chiasm.errors import InvalidRequest

Evidence = Literal["bill", "code", "document"]
"""What stands behind a rule: what was charged, published code that runs, or a vendor's text."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one picture becomes.

    tokens: positions of the context that it takes, as they are billed.
    size: (width, height) in pixels to which it is resized; where a vendor does not say, its own.
    tiles: crops, the overview included. grid: (columns, rows) of the crops or patches that lie
        over the resized picture; None where nothing is cut.
    markers: tokens that stand around and between its own. They are part of the text.
    """

    tokens: int
    size: Size
    tiles: int = 1
    grid: tuple[int, int] | None = None
    markers: int = 0


Arithmetic = Callable[[Mapping[str, Any], int, int, str], ImageCost]


@dataclass(frozen=True, eq=False)
class ImageRule:
    """How a family of models counts pictures.

    name: unique, also among older rules of the same models. family: whose arithmetic it is.
    details: levels that a caller may choose, the one that `auto` means first; empty where there
        is nothing to choose. monotonic: of two sizes of one aspect the larger never costs less.
    """

    name: str
    family: str
    source: str
    read: date
    evidence: Evidence
    details: tuple[str, ...]
    monotonic: bool
    note: str
    arithmetic: Arithmetic = field(repr=False)
    constants: Mapping[str, Any] = field(repr=False)

    def cost(self, width: int, height: int, detail: str = "auto") -> ImageCost:
        """What a picture of so many pixels becomes.

        Raises InvalidRequest for a level that is not among `details`, and for a size that the
        vendor or the model refuses.
        """
        if width < 1 or height < 1:
            raise InvalidRequest(f"A picture of {width}×{height} pixels is none.")
        return self.arithmetic(self.constants, width, height, self.level(detail))

    def level(self, detail: str) -> str:
        """The level that a request's `detail` means. Raises InvalidRequest for one there is not."""
        if detail == "auto":
            return self.details[0] if self.details else "auto"
        if detail not in self.details:
            levels = f" It has {', '.join(self.details)}." if self.details else ""
            raise InvalidRequest(
                f"{self.name} has no level of detail {detail!r}.{levels}",
                hint="Leave `detail` out.",
                param="detail",
            )
        return detail


def refuse(width: int, height: int, why: str, hint: str) -> InvalidRequest:
    """The error for a size that would not be taken."""
    return InvalidRequest(f"A picture of {width:,}×{height:,} pixels {why}.", hint=hint)
