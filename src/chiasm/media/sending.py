"""What of a picture leaves for a model elsewhere: its pixels, and nothing that came with them.

A file that carries nothing but its picture is sent as it came, in the caller's own base64.
Everything else is made anew from its pixels, upright and in sRGB, so that no position, no
thumbnail, no comment and no second file goes along.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from chiasm.errors import ImageTooLarge
from chiasm.media.encode import encode_jpeg, encode_png, encode_webp
from chiasm.media.encoded import EncodedImage
from chiasm.media.image import Image
from chiasm.media.limits import Limits
from chiasm.media.transform import resize

Change = Literal["none", "remade", "compressed", "smaller"]

SENDABLE = frozenset({"JPEG", "PNG", "WEBP"})
"""What every provider reads."""

_QUALITY = 92  # with chroma in full: coloured text on a coloured ground needs it
_SMALLER_QUALITY = 80  # with chroma at half resolution, before size is given up
_PNG_EFFORT = 1  # for a photograph a fifth of the time of the usual 6, and a sixth more bytes
_SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Sent:
    """A picture as it leaves.

    media_type: "image/jpeg", "image/png" or "image/webp".
    base64: RFC 4648 section 4, padded.
    size: (width, height) in pixels of what is sent.
    change: "none" where the file is the caller's own; "remade" from its pixels at the size asked
        for, with no loss where its format has none; "compressed" with loss to fit `max_bytes`;
        "smaller" than asked for, for the same reason.
    """

    media_type: str
    base64: str = field(repr=False)
    size: tuple[int, int]
    change: Change = "none"

    @property
    def data_url(self) -> str:
        """As OpenAI's API takes it."""
        return f"data:{self.media_type};base64,{self.base64}"


class _Encode(Protocol):
    def __call__(self, image: Image) -> bytes: ...


def for_sending(
    image: Image | EncodedImage,
    *,
    formats: frozenset[str] = SENDABLE,
    max_bytes: int | None = None,
    max_size: tuple[int, int] | None = None,
    limits: Limits,
) -> Sent:
    """`image` without anything but its picture, unchanged where it can be.

    formats: what the receiver reads; of these "JPEG", "PNG" and "WEBP" are sent.
    max_bytes: of the base64 text, which is what providers count. A picture that has more is
        compressed with loss (JPEG, or WebP), and only then made smaller; `Sent.change` tells.
    max_size: the exact (width, height) to send, as a budget of tokens allows it.

    Pictures that were compressed with loss are made anew as JPEG of quality 92 with chroma in
    full; all others, and those whose origin is not known, as PNG. Blocks for as long as that
    takes. Raises what decoding raises, and `ImageTooLarge` where nothing legible would fit.
    """
    formats &= SENDABLE
    if not formats:
        raise ValueError("a receiver must read JPEG, PNG or WebP")
    if isinstance(image, EncodedImage):
        if image.travels and image.format in formats and max_size in (None, image.size):
            text = _base64(image.data) if image.base64 is None else image.base64
            if max_bytes is None or len(text) <= max_bytes:
                return Sent(_media_type(image.format), text, image.size)
        # From twice the size down, a JPEG's own scales cannot be told from a full decode.
        pixels = image.open(limits, None if max_size is None else 2 * min(max_size))
        lossy = image.lossy
    else:
        pixels, lossy = image, False
    if max_size is not None and max_size != pixels.size:
        pixels = _resized(pixels, max_size)
    return _written(pixels, list(_ways(lossy, formats)), max_bytes)


def _ways(lossy: bool, formats: frozenset[str]) -> Iterator[tuple[Change, str, _Encode]]:
    """How a picture may be written, the best way first: (what that changes, format, how)."""
    with_loss = "JPEG" if "JPEG" in formats else "WEBP" if "WEBP" in formats else None
    if with_loss is None or not lossy:
        if "PNG" in formats:
            yield "remade", "PNG", partial(encode_png, effort=_PNG_EFFORT)
        elif "WEBP" in formats:
            yield "remade", "WEBP", partial(encode_webp, lossless=True)
        else:
            lossy = True  # what is best then is all that there is
    best: _Encode
    if with_loss == "JPEG":
        best = partial(encode_jpeg, quality=_QUALITY, full_chroma=True)
        yield ("remade" if lossy else "compressed"), "JPEG", best
        yield "compressed", "JPEG", partial(encode_jpeg, quality=_SMALLER_QUALITY)
    elif with_loss == "WEBP":
        best = partial(encode_webp, quality=_QUALITY)
        yield ("remade" if lossy else "compressed"), "WEBP", best
        yield "compressed", "WEBP", partial(encode_webp, quality=_SMALLER_QUALITY)


def _written(image: Image, ways: list[tuple[Change, str, _Encode]], max_bytes: int | None) -> Sent:
    for change, kind, encode in ways:
        data = encode(image)
        if max_bytes is None or _base64_length(data) <= max_bytes:
            return Sent(_media_type(kind), _base64(data), image.size, change)
    assert max_bytes is not None
    _, kind, encode = ways[-1]
    small = image
    while True:
        # Bytes go with the area, or a little slower: a try or two reaches the goal.
        scale = min(0.9, 0.95 * (max_bytes / _base64_length(data)) ** 0.5)
        width, height = (max(1, int(side * scale)) for side in small.size)
        if max(width, height) < _SMALLEST_SIDE:
            raise ImageTooLarge(
                image.name,
                f"nothing legible of it fits into the {max_bytes:,} bytes that the model takes.",
                hint="Send a smaller picture, or ask another model.",
            )
        small = _resized(image, (width, height))
        data = encode(small)
        if _base64_length(data) <= max_bytes:
            return Sent(_media_type(kind), _base64(data), small.size, "smaller")


def _resized(image: Image, size: tuple[int, int]) -> Image:
    pixels = resize(image, size, resample="lanczos")
    return Image(pixels, original_size=image.original_size, name=image.name)


def _media_type(kind: str) -> str:
    return f"image/{kind.lower()}"


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _base64_length(data: bytes) -> int:
    return (len(data) + 2) // 3 * 4
