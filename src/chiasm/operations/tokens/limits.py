"""What vendors take in one request: data with its source, beside the rules."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from importlib.resources import files

from chiasm.operations.tokens.table import spellings


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """None is not known, or no limit.

    images: pictures a request. side: pixels, of either. many, side_when_many: above so many
        pictures each side may have fewer. image_bytes: of one picture, in base64 where
        `in_base64`. request_bytes: of all of it.
    """

    source: str
    read: date
    images: int | None = None
    side: int | None = None
    many: int | None = None
    side_when_many: int | None = None
    image_bytes: int | None = None
    in_base64: bool = False
    request_bytes: int | None = None

    def refusal(self, sizes: list[tuple[int, int]]) -> str | None:
        """Why pictures of these sizes would not be taken together; None where they would."""
        if self.images is not None and len(sizes) > self.images:
            return f"It takes {self.images:,} pictures a request, and there are {len(sizes):,}."
        side = self.side
        if self.many is not None and len(sizes) > self.many and self.side_when_many is not None:
            side = self.side_when_many
        for at, size in enumerate(sizes):
            if side is not None and max(size) > side:
                return f"Picture {at + 1} is {size[0]:,}×{size[1]:,}; a side may have {side:,}."
        return None


def limits_for(model: str) -> RequestLimits | None:
    """A model's limits; None where none are known."""
    for name in spellings(model):
        for patterns, limits in _limits():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                return limits
    return None


@functools.cache
def _limits() -> tuple[tuple[tuple[str, ...], RequestLimits], ...]:
    text = files(__package__).joinpath("rules", "limits.toml").read_text(encoding="utf-8")
    return tuple(
        (tuple(entry.pop("patterns")), RequestLimits(**entry))
        for entry in tomllib.loads(text)["limits"]
    )
