"""What a vendor takes in one request: how many pictures, how large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chiasm.operations.tokens import limits_for


class Sized(Protocol):
    """A picture's size in pixels."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def refusal(model: str, pictures: Sequence[Sized]) -> str | None:
    """Why a request with these pictures would be refused; None where it would not, as far as known."""
    limits = limits_for(model)
    if limits is None:
        return None
    most = limits.images
    if most is not None and len(pictures) > most:
        return f"It takes {most:,} pictures a request."
    return None
