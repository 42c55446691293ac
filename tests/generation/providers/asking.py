"""How tests ask a generator, and pictures of which it is known what may leave of them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from chiasm.generation import Completed, Event, Generator, Message, Request, TextDelta, Usage
from chiasm.media.encoded import EncodedImage, read_encoded
from chiasm.media.limits import Limits

LIMITS = Limits()


def asked(*parts: Any, **options: Any) -> Request:
    """A user's question."""
    return Request((Message.user(*(parts or ("What is this?",))),), **options)


def answers(generator: Generator, request: Request) -> list[Event]:
    """Everything that it says, without an event loop."""
    events = list(generator.run(request))
    assert isinstance(events[-1], Completed)
    return events


def said(events: list[Event], choice: int = 0) -> str:
    """The text of one answer."""
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.choice == choice)


def usage(events: list[Event]) -> Usage:
    """What it cost."""
    assert isinstance(events[-1], Completed)
    return events[-1].usage


def pixels(width: int = 40, height: int = 24) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise: no two pictures are taken for one another. uint8 [height, width, 3]."""
    return np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def jpeg(width: int = 40, height: int = 24, **options: Any) -> bytes:
    """A file with nothing but its picture, unless the options say otherwise."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(width, height)).save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


def png_with_words(secret: str) -> bytes:
    """A picture whose file says more than it shows."""
    buffer, words = io.BytesIO(), PngInfo()
    words.add_text("Comment", secret)
    PIL.Image.fromarray(pixels()).save(buffer, "PNG", pnginfo=words)
    return buffer.getvalue()


def encoded(file: bytes) -> EncodedImage:
    """As it comes in a data URL."""
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    text = base64.b64encode(file).decode()
    return read_encoded(f"data:image/{kind};base64,{text}", limits=LIMITS, name="picture")


def file_in(url: str) -> tuple[str, bytes]:
    """Media type and bytes of a data URL that was received."""
    head, _, data = url.partition(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data, validate=True)


def shown(file: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What is to be seen in a file."""
    return np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB"))


def compact(value: Any) -> str:
    """JSON as it is sent."""
    return json.dumps(value, separators=(",", ":"))
