"""What a plan says: a row a model and detail level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from chiasm.operations.tokens import ImageCost


@dataclass(frozen=True)
class Picture:
    """A picture as a plan needs it. digest: tells whether two are the same; empty: unknown."""

    width: int
    height: int
    name: str = ""
    digest: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


@dataclass(frozen=True)
class Repeat:
    """A picture of a conversation that is there already. Both count from 0."""

    picture: int
    first: int


@dataclass(frozen=True)
class PlanRow:
    """One model at one detail level.

    target: as callers ask for it. images: what each picture becomes, in order. sent: the sizes at
        which they are sent: their own, or as a budget has them.
    text_error: nine of ten texts are within this share of text_tokens; 0 is exact. text_by: what
        has counted them. answer_tokens: assumed.
    cost: USD; None where no price is known. repeated: of the cost, for pictures that were there
        already. price: where the prices are from.
    seconds_to_first_token: as measured of late; None where it was not.
    vision_flops, language_flops: of the prompt, of open models whose sizes are known.
    fits_context: None where the context's size is not known.
    source, read, evidence: of the rule for pictures.
    refusal: why the vendor would not take this; the pictures are left out of all numbers then.
    """

    target: str
    model: str
    provider: str
    detail: str
    images: tuple[ImageCost, ...]
    sent: tuple[tuple[int, int], ...]
    image_tokens: int
    text_tokens: int
    text_error: float
    text_by: str
    answer_tokens: int
    cost: Decimal | None
    repeated: Decimal | None
    seconds_to_first_token: float | None
    seconds_known: Literal["measured"] | None
    vision_flops: int | None
    language_flops: int | None
    context: int | None
    fits_context: bool | None
    source: str
    read: date | None
    evidence: str
    price: str
    refusal: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As `chiasm plan --json` and `POST /v1/plan` say it. Money in USD."""
        return {
            "model": self.target,
            "name": self.model,
            "provider": self.provider,
            "detail": self.detail,
            "images": [
                {
                    "tokens": each.tokens,
                    "width": each.size[0],
                    "height": each.size[1],
                    "tiles": each.tiles,
                    "grid": None if each.grid is None else list(each.grid),
                    "sent": list(size),
                }
                for each, size in zip(self.images, self.sent, strict=True)
            ],
            "image_tokens": self.image_tokens,
            "text_tokens": self.text_tokens,
            "text_error": round(self.text_error, 3),
            "text_by": self.text_by,
            "answer_tokens": self.answer_tokens,
            "cost": _number(self.cost),
            "repeated_cost": _number(self.repeated),
            "seconds_to_first_token": self.seconds_to_first_token,
            "seconds_known": self.seconds_known,
            "vision_flops": self.vision_flops,
            "language_flops": self.language_flops,
            "context": self.context,
            "fits_context": self.fits_context,
            "source": self.source,
            "read": None if self.read is None else self.read.isoformat(),
            "evidence": self.evidence,
            "price_source": self.price,
            "refusal": self.refusal,
        }


def plan_as_dict(
    rows: Sequence[PlanRow], pictures: Sequence[Picture], repeats: Sequence[Repeat]
) -> dict[str, Any]:
    """A whole plan, as `chiasm plan --json` and `POST /v1/plan` say it."""
    return {
        "object": "plan",
        "currency": "USD",
        "pictures": [
            {"name": each.name, "width": each.width, "height": each.height} for each in pictures
        ],
        "repeats": [{"picture": each.picture, "first": each.first} for each in repeats],
        "data": [row.as_dict() for row in rows],
    }


def _number(cost: Decimal | None) -> float | None:
    return None if cost is None else float(cost)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is expected to take of one model.

    known: whether there is a rule for its pictures; without one they are counted high. most: the
    cost where the text has as many more tokens than estimated as nine texts of ten may have.
    """

    text_tokens: int
    image_tokens: int
    answer_tokens: int
    cost: Decimal | None
    known: bool
    most: Decimal | None = None

    @property
    def prompt_tokens(self) -> int:
        """Text and pictures together."""
        return self.text_tokens + self.image_tokens
