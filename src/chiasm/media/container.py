"""What a file says of itself, read without a decoder.

The format is told from the first bytes, never from a name or a declared type. For the formats
whose decoders allocate or loop before anyone could ask them for a size, the few fields that bound
their work are read here first.
"""

from __future__ import annotations

import io
import re
import struct
from typing import BinaryIO

PREFIX = 64
"""Bytes that `identify` and `webp_size` need."""

MOST_JPEG_SCANS = 64  # encoders write about ten
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # stuffing and restarts left out
_MOST_PNG_CHUNKS = 100_000
_MOST_TIFF_PAGES = 10_000
_MOST_TIFF_VALUES = 262_144  # eight planes of the tallest picture, a strip for each row
_TIFF_BYTES = (1, 2, 6, 7)  # BYTE, ASCII, SBYTE, UNDEFINED: kept as they are, at no cost

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}
_UNREAD = (
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"<svg", "SVG"),
)


class Malformed(Exception):
    """The container contradicts itself, or is built to waste a reader's time."""


def identify(prefix: bytes) -> str | None:
    """The format (Pillow's name for it) that the first bytes announce, or None."""
    for magic, name in _MAGIC:
        if prefix.startswith(magic):
            return name
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WEBP"
    if prefix[:2] == b"BM" and int.from_bytes(prefix[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if prefix[4:8] == b"ftyp" and _brands(prefix) & {b"avif", b"avis"}:
        return "AVIF"
    return None


def unread_format(prefix: bytes) -> str | None:
    """The name of a well-known format that is not read here, or None."""
    for magic, name in _UNREAD:
        if prefix.startswith(magic):
            return name
    if prefix[4:8] == b"ftyp" and any(brand[:3] in (b"hei", b"hev") for brand in _brands(prefix)):
        return "HEIC"
    return None


def _brands(prefix: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO base media file (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(prefix[:4], "big"), len(prefix))
    return {prefix[8:12], *(prefix[start : start + 4] for start in range(16, end - 3, 4))}


def webp_size(prefix: bytes) -> tuple[int, int]:
    """Canvas (width, height) of a WebP file (RFC 9649, 2.5 to 2.7).

    Its decoder allocates two canvases as soon as it is made, so the size is wanted before.
    """
    kind = prefix[12:16]
    if len(prefix) >= 30:
        if kind == b"VP8X":
            width = int.from_bytes(prefix[24:27], "little") + 1
            return width, int.from_bytes(prefix[27:30], "little") + 1
        if kind == b"VP8L":
            bits = int.from_bytes(prefix[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", prefix, 26)
            return width & 0x3FFF, height & 0x3FFF
    raise Malformed


def check_jpeg_scans(data: bytes) -> None:
    """Raise `Malformed` for a JPEG file of more scans than any encoder writes.

    Each scan of a progressive file is a pass over every block of the picture and may be as short
    as some hundred bytes, so that a small file could keep a decoder busy for hours.
    """
    components = scans = 0
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        kind = data[marker.end() - 1]
        if kind == 0xD9:  # end of image
            return
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if kind in (0xC0, 0xC1) and not components:  # frame header, sequential
            components = int.from_bytes(data[marker.end() + 7 : marker.end() + 8], "big")
        elif kind == 0xDA:  # scan header
            scans += 1
            if components and data[marker.end() + 2 : marker.end() + 3] == bytes([components]):
                return  # all components at once: a sequential decoder reads no second scan
            if scans > MOST_JPEG_SCANS:
                raise Malformed


def png_exif(stream: BinaryIO) -> bytes | None:
    """The eXIf chunk of a PNG file, which may stand behind the pixels; None without one.

    Raises `Malformed` for more chunks than any encoder writes.
    """
    stream.seek(8)
    for _ in range(_MOST_PNG_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            return None
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return stream.read(min(length, 1 << 20))
        if kind == b"IEND":
            return None
        stream.seek(length + 4, io.SEEK_CUR)
    raise Malformed


def tiff_pages(stream: BinaryIO) -> int:
    """Number of pages in a TIFF file, counted no further than 10,000.

    Raises `Malformed` where the first page has a list of numbers longer than any picture needs,
    as of strips: each number costs a decoder about a hundred times the bytes it takes here.
    """
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    # The count of entries; an entry, without its value; the offset. BigTIFF has wider ones.
    count, entry, link = (
        order + code for code in (("Q", "HHQ", "Q") if big else ("H", "HHL", "L"))
    )
    width = struct.calcsize(entry) + struct.calcsize(link)
    pages: set[int] = set()
    try:
        (offset,) = struct.unpack_from(link, head, 8 if big else 4)
        while offset and offset not in pages and len(pages) < _MOST_TIFF_PAGES:
            stream.seek(offset)
            (entries,) = struct.unpack(count, stream.read(struct.calcsize(count)))
            if not pages:  # the others are never decoded
                table = stream.read(min(entries, 65_535) * width)
                for start in range(0, len(table) - width + 1, width):
                    _, kind, values = struct.unpack_from(entry, table, start)
                    if kind not in _TIFF_BYTES and values > _MOST_TIFF_VALUES:
                        raise Malformed
            pages.add(offset)
            stream.seek(offset + struct.calcsize(count) + entries * width)
            (offset,) = struct.unpack(link, stream.read(struct.calcsize(link)))
    except (struct.error, OverflowError, ValueError):
        pass  # cut short: what there is of the first page is the decoder's to judge
    return max(1, len(pages))


class _Counted:
    """Stops a reader that asks more often than any sound header makes it ask.

    Pillow steps over padding between JPEG markers and over extension blocks of a GIF a byte or
    two at a time, in Python: some megabytes of them would keep it for seconds.

    reads_left: to be raised by whoever goes on to read more than the header.
    """

    reads_left = 200_000

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise Malformed
        data: bytes = super().read(size)  # type: ignore[misc]
        return data


class CountedBytes(_Counted, io.BytesIO):
    """Bytes in memory, read as a header is."""


class CountedFile(_Counted, io.BufferedReader):
    """An open file, read as a header is."""


Stream = CountedBytes | CountedFile
