"""From a file's first byte to its last without a decoder: is it whole, and is it only a picture?

A file that is *plain* holds what its pixels need and nothing else: no EXIF, no position, no XMP,
no comment, no thumbnail, no profile (which has room for any text), no animation, and no byte that
no picture needs. It may be sent on as it is. Sources: ITU-T T.81, Annex B; PNG (third edition),
5 and 11; RFC 9649, 2.

What stands inside the compressed pixels is not looked at, but for the marks of the kinds of files
that are known to be hidden there.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from chiasm.media.container import MOST_JPEG_SCANS, Malformed

_MOST_PARTS = 100_000  # segments or chunks; encoders write some tens, of 8 KB each in long PNGs
_WINDOW = 256 * 1024
_SCRIPT = re.compile(rb"<(?:\?php|(?i:script))")
_ZIP_END = b"PK\x05\x06"  # found by its readers in the last 65,557 bytes
_PNG_ONCE = {b"gAMA": (4, 4), b"cHRM": (32, 32), b"sRGB": (1, 1), b"pHYs": (9, 9)}
_PNG_ONCE |= {b"PLTE": (3, 768), b"tRNS": (1, 256)}
_WEBP_ORDERS = {
    (b"VP8 ",),
    (b"VP8L",),
    (b"VP8X", b"VP8 "),
    (b"VP8X", b"VP8L"),
    (b"VP8X", b"ALPH", b"VP8 "),
}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WEBP_ALPHA = 0x10  # the one flag of VP8X that says nothing of metadata or animation


def is_plain(data: bytes, kind: str) -> bool:
    """Whether the file holds nothing but its picture. kind: the format, by Pillow's name.

    Only JPEG, PNG and WebP files can be plain, and are walked to their end.
    Raises `Malformed` for one that is cut short.
    """
    walk = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp}.get(kind)
    return walk is not None and walk(data) and not _disguised(data)


def is_sequential_jpeg(data: bytes) -> bool:
    """Whether a JPEG file's frame is a sequential one (SOF0, SOF1), written by Huffman's code."""
    position = 2
    with contextlib.suppress(Malformed):
        for _ in range(1_000):
            position, kind = _next_marker(data, position)
            if kind in _FRAMES:
                return kind in (0xC0, 0xC1)
            if kind in (0xD9, 0xDA):
                break
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _disguised(data: bytes) -> bool:
    """Whether a reader of archives, documents or scripts could take the file for its own."""
    return (
        data.find(_ZIP_END, max(0, len(data) - 65_557)) >= 0
        or data.find(b"%PDF-", 0, 1_100) >= 0
        or _SCRIPT.search(data) is not None
    )


# JPEG -------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> bool:
    plain, in_scan, frames, scans, tables = True, False, 0, 0, 0
    position = 2
    for _ in range(_MOST_PARTS):
        at, kind = _next_marker(data, position)
        # Between segments nothing else may stand; pixels end where the marker begins.
        plain = plain and (at == position if not in_scan else data[at - 1] != 0xFF)
        if kind == 0xD9:  # end of image
            if not scans:
                raise Malformed
            return plain and frames == 1 and at + 2 == len(data)
        if kind in (0x01, 0xD8):  # without a length, and of no use here
            plain, position = False, at + 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        position = at + 2 + length
        if length < 2 or position > len(data):
            raise Malformed
        in_scan = kind == 0xDA
        frames += kind in (0xC0, 0xC1, 0xC2)
        scans += in_scan
        tables += kind == 0xDB
        if scans > MOST_JPEG_SCANS:
            raise Malformed
        plain = plain and tables <= 4 and _jpeg_segment(kind, data[at + 4 : position])
    raise Malformed


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """Where the next marker begins, and its second byte; stuffing and restarts are none."""
    if data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] > b"\0":
        kind = data[position + 1]
        if kind != 0xFF and not 0xD0 <= kind <= 0xD7:
            return position, kind
    values = np.frombuffer(data, dtype=np.uint8)
    for start in range(position, len(data) - 1, _WINDOW):
        window = values[start : start + _WINDOW + 1]
        at = np.flatnonzero(window[:-1] == 0xFF)
        kinds = window[at + 1]
        found = np.flatnonzero((kinds != 0) & (kinds != 0xFF) & ((kinds & 0xF8) != 0xD0))
        if found.size:
            return start + int(at[found[0]]), int(kinds[found[0]])
    raise Malformed  # the file ends before the picture does


def _jpeg_segment(kind: int, body: bytes) -> bool:
    """Whether a segment is one that pixels need, with not a byte too many."""
    if kind == 0xE0:  # JFIF, without a thumbnail
        return len(body) == 14 and body[:5] == b"JFIF\0" and body[12:] == b"\0\0"
    if kind == 0xEE:
        return len(body) == 12 and body[:5] == b"Adobe"
    if kind in (0xC0, 0xC1, 0xC2):  # eight bits, grey or colour: ink is read in two ways
        return (
            len(body) >= 6 and body[0] == 8 and body[5] in (1, 3) and len(body) == 6 + 3 * body[5]
        )
    if kind == 0xDA:
        return len(body) >= 1 and 1 <= body[0] <= 3 and len(body) == 4 + 2 * body[0]
    if kind == 0xDD:
        return len(body) == 2
    if kind == 0xDB:
        return _fits(body, lambda at: 129 if body[at] >> 4 else 65)
    if kind == 0xC4:
        return _fits(body, lambda at: 17 + sum(body[at + 1 : at + 17]))
    return False


def _fits(body: bytes, length_at: Callable[[int], int]) -> bool:
    at = 0
    while at < len(body):
        at += length_at(at)
    return at == len(body)


# PNG --------------------------------------------------------------------------------------------


def _png(data: bytes) -> bool:
    view, plain, before = memoryview(data), True, b""
    seen: set[bytes] = set()
    position = 8
    for _ in range(_MOST_PARTS):
        if position + 12 > len(data):
            raise Malformed
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise Malformed
        if plain:
            (stated,) = struct.unpack_from(">I", data, end - 4)
            plain = stated == zlib.crc32(view[position + 4 : end - 4]) and _png_chunk(
                kind, length, seen, before
            )
        if kind == b"IEND":
            if b"IDAT" not in seen and plain:
                raise Malformed
            return plain and end == len(data)
        seen.add(kind)
        before, position = kind, end
    raise Malformed


def _png_chunk(kind: bytes, length: int, seen: set[bytes], before: bytes) -> bool:
    """Whether a chunk is one that pixels need, at a place where it may stand."""
    if kind == b"IDAT":
        return before == b"IDAT" or (b"IHDR" in seen and b"IDAT" not in seen)
    if kind == b"IHDR":
        return length == 13 and not seen
    if kind == b"IEND":
        return length == 0
    least, most = _PNG_ONCE.get(kind, (1, 0))
    return least <= length <= most and b"IDAT" not in seen and kind not in seen


# WebP -------------------------------------------------------------------------------------------


def _webp(data: bytes) -> bool:
    stated = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < stated:
        raise Malformed
    if len(data) > stated:
        return False
    chunks = dict[bytes, bytes]()
    order = []
    for kind, start, length in _webp_chunks(data):
        order.append(kind)
        chunks[kind] = data[start : start + min(length, 16)]
        padding = data[start + length : start + length + length % 2]
        if len(order) > 3 or padding.strip(b"\0"):
            return False
    if tuple(order) not in _WEBP_ORDERS:
        return False
    head = chunks.get(b"VP8X")
    if head is None:
        return True
    canvas = tuple(int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
    flags = int.from_bytes(head[:4], "little")
    return len(head) == 10 and flags in (0, _WEBP_ALPHA) and canvas == _webp_frame_size(chunks)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where the payload starts, its length) of each chunk up to the end of the file."""
    position = 12
    for _ in range(_MOST_PARTS):
        if position == len(data):
            return
        if position + 8 > len(data):
            raise Malformed
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > len(data):
            raise Malformed
        yield kind, position + 8, length
        position = min(position + 8 + length + length % 2, len(data))
    raise Malformed


def _webp_frame_size(chunks: dict[bytes, bytes]) -> tuple[int, ...]:
    if b"VP8L" in chunks:
        bits = int.from_bytes(chunks[b"VP8L"][1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    sides = (int.from_bytes(chunks[b"VP8 "][at : at + 2], "little") for at in (6, 8))
    return tuple(side & 0x3FFF for side in sides)
