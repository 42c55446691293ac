"""The parts that messages and embeddings share: a text, or a picture as a data URL.

Read by hand: of a union's branches pydantic would report each one's failure, and a caller who
mistyped one part would have to guess which of them was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from chiasm.errors import InvalidRequest
from chiasm.media.limits import Limits
from chiasm.server.pictures import Encoded, from_data_url
from chiasm.server.schemas import LONGEST_TEXT, is_unicode

Part = str | Encoded
"""A text, or a picture that is not decoded yet."""


def read_part(value: Any, place: str, limits: Limits, fetched: Mapping[str, bytes]) -> Part:
    """A text, or a part as chat messages have it. `place` names it in messages.

    fetched: what was found at the addresses of pictures.
    """
    if isinstance(value, str):
        return read_text(value, place)
    if not isinstance(value, dict):
        refuse(place, "must be a text, a part or a list of parts")
    if value.get("type") == "text":
        return read_text(value.get("text"), f"{place}.text")
    if value.get("type") != "image_url":
        refuse(f"{place}.type", 'must be "text" or "image_url"')
    image, place = value.get("image_url"), f"{place}.image_url"
    if isinstance(image, dict):
        image, place = image.get("url"), f"{place}.url"
    if not isinstance(image, str):
        refuse(place, "must be a data URL")
    if image in fetched:
        data = fetched[image]
        return Encoded(place, lambda: data)
    return from_data_url(image, limits=limits, name=place)


def read_text(value: Any, place: str) -> str:
    """A text that is one: not empty, not endless, and no picture in disguise."""
    if not isinstance(value, str):
        refuse(place, "must be a text")
    if not value:
        refuse(place, "is an empty text", hint="Leave it out, or write something.")
    if not is_unicode(value):
        refuse(place, "holds half of a surrogate pair, which is no character")
    if len(value) > LONGEST_TEXT:
        refuse(place, f"has {len(value):,} characters; {LONGEST_TEXT:,} are the most")
    if value[:5].lower() == "data:" and ";base64," in value[:200]:
        refuse(
            place,
            "is a data URL where a text belongs",
            hint='Send a picture as {"type": "image_url", "image_url": {"url": "data:…"}}.',
        )
    return value


def refuse(place: str, what: str, *, hint: str | None = None) -> NoReturn:
    """Raise InvalidRequest about the argument at `place`."""
    raise InvalidRequest(f"{place} {what}.", hint=hint, param=place)
