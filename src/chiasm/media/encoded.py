"""A picture as it came: looked at, but not decoded.

Most pictures that a gateway sees are for a model elsewhere. Their size decides what they cost,
and their bytes can often be sent on unchanged, so nothing here spends time on pixels.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO

from chiasm.errors import BrokenImage, ImageError
from chiasm.media.container import Malformed
from chiasm.media.decode import read_header
from chiasm.media.image import Image
from chiasm.media.limits import Limits
from chiasm.media.sandbox import open_in_time
from chiasm.media.source import base64_payload, decode_data_url, display_name, is_data_url
from chiasm.media.walk import is_plain

_WEBP_FRAME = re.compile(rb"VP8[ L]")


@dataclass(eq=False)
class EncodedImage:
    """A file whose header was read and held against the limits. Made by `read_encoded` alone.

    name: what to call the picture in a message.
    format: "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF" or "AVIF".
    size: (width, height) in pixels, upright: after the EXIF orientation.
    frames: of an animation, or pages of a document; only the first is ever decoded.
    travels: it carries nothing but its picture, no metadata and no second file, and stands
        upright, so it may be sent on as it is (`chiasm.media.walk`).
    base64: the caller's own text where it is exactly how `data` is written, so that it need not
        be made again.
    lossy: its format has lost detail already, so that a photograph is likely.
    """

    _data: bytes | None = field(repr=False)
    name: str
    format: str
    size: tuple[int, int]
    frames: int = 1
    travels: bool = False
    base64: str | None = field(default=None, repr=False)
    lossy: bool = False
    _resting: tuple[BinaryIO, int, int] | None = field(default=None, repr=False)

    @property
    def data(self) -> bytes:
        """The encoded bytes. Reads them back, each time, while they rest on the disk."""
        if self._data is not None:
            return self._data
        assert self._resting is not None
        file, start, length = self._resting
        # Not by seek and read: other pictures of the file may be read in other threads.
        return os.pread(file.fileno(), length, start)

    def rest(self, file: BinaryIO) -> None:
        """Move the bytes to the end of `file`, which whoever has made it does not close. Blocks."""
        if self._data is not None:
            start = file.seek(0, os.SEEK_END)
            file.write(self._data)
            file.flush()
            self._resting = (file, start, len(self._data))
            self._data = self.base64 = None

    @property
    def width(self) -> int:
        """Width of the upright picture."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height of the upright picture."""
        return self.size[1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the encoded bytes, as 64 hexadecimal digits; never that of an `Image`.

        The same pixels in another file have another digest.
        """
        hasher = hashlib.sha256(b"chiasm-encoded-1\n")
        hasher.update(self.data)
        return hasher.hexdigest()

    def open(self, limits: Limits, shortest_side: int | None = None) -> Image:
        """Decode it, in a process that is stopped when it takes too long. Blocks.

        Arguments and errors: as for `chiasm.media.sandbox.open_in_time`.
        """
        return open_in_time(
            self.data,
            kind=self.format,
            size=self.size,
            limits=limits,
            shortest_side=shortest_side,
            name=self.name,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedImage):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def read_encoded(source: bytes | str, *, limits: Limits, name: str | None = None) -> EncodedImage:
    """Check a picture without decoding it.

    source: encoded bytes, or a data URL; a string of any other kind is refused: no path, no
        address. name: what to call it in messages.

    Raises what `open_image` raises, as far as the header and the container tell: `ImageTooLarge`
    before base64 is decoded, `BrokenImage` for a file that is cut short. Damage within the
    compressed pixels of a file that is whole is not found here.
    """
    name = display_name(source, name)
    base64 = None
    if isinstance(source, str):
        if not is_data_url(source):
            raise ImageError(
                name,
                "this is not a data URL.",
                hint='A data URL starts with "data:image/jpeg;base64,".',
            )
        data = decode_data_url(source, limits, name)
        base64 = _canonical(base64_payload(source), data)
    else:
        data = source
    header = read_header(data, limits=limits, name=name)
    try:
        travels = is_plain(data, header.format) and header.frames == 1
    except Malformed:
        raise BrokenImage(name, "it is damaged or cut short.") from None
    kind, size, frames = header.format, header.size, header.frames
    return EncodedImage(data, name, kind, size, frames, travels, base64, _is_lossy(data, kind))


def _is_lossy(data: bytes, kind: str) -> bool:
    if kind == "WEBP":
        frame = _WEBP_FRAME.search(data, 12)
        return frame is not None and frame[0] == b"VP8 "
    return kind in ("JPEG", "AVIF")


def _canonical(payload: str | None, data: bytes) -> str | None:
    """`payload` if it is base64 as RFC 4648 section 4 writes it, padding and unused bits too."""
    if payload is None or len(payload) != (len(data) + 2) // 3 * 4:
        return None
    tail = data[len(data) - (len(data) % 3 or 3) :]
    if not payload.endswith(binascii.b2a_base64(tail, newline=False).decode()):
        return None
    # The right length leaves no room for line ends or escapes; the URL-safe alphabet is left.
    return None if "-" in payload or "_" in payload else payload
