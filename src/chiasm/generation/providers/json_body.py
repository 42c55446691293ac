"""A request's body in which pictures are no part of the JSON until it is written.

A picture of some megabytes would be walked through letter by letter for what must be escaped, and
copied each time that the text around it grows. Here a short word stands in its place while the
JSON is made; then the text is cut there and the picture's base64, which needs no escapes, is put
between. It is copied once, from text to bytes; what is sent are the pieces as they are.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from chiasm.media.sending import Sent


class JsonBody:
    """Takes pictures while a body is put together, and then writes it."""

    def __init__(self) -> None:
        # Nobody can guess it, so no text of a conversation is taken for a picture's place.
        self._word = secrets.token_hex(16)
        self._pictures: list[Sent] = []

    def data_url(self, picture: Sent) -> str:
        """What stands in the body for this picture's data URL."""
        self._pictures.append(picture)
        return f"data:{picture.media_type};base64,{self._word}{len(self._pictures) - 1};"

    def base64(self, picture: Sent) -> str:
        """What stands in the body for this picture's base64."""
        self._pictures.append(picture)
        return f"{self._word}{len(self._pictures) - 1};"

    def pieces(self, body: Mapping[str, Any]) -> list[bytes]:
        """The JSON, cut before and after each picture."""
        text = json.dumps(body, separators=(",", ":")).encode()
        if not self._pictures:
            return [text]
        parts = re.split(rb"%b(\d+);" % self._word.encode(), text)
        return [
            self._pictures[int(part)].base64.encode("ascii") if index % 2 else part
            for index, part in enumerate(parts)
        ]
