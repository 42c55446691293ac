"""How many frames a file has, counted from its container alone and no further than a bound.

A decoder asked for the number may walk every frame in an interpreter's pace, or set memory aside
for as many as the file says it has; a few hundred bytes can say millions (CVE-2026-34755).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from chiasm.media.container import Malformed, tiff_pages

MOST_FRAMES = 10_000
"""Counting ends here, and so does what is given to a decoder that counts by itself."""

_MOST_BLOCKS = 1_000_000  # of 255 bytes each in a GIF
_MOST_PARTS = 100_000
_AVIF_TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # one within the other


def count_frames(stream: BinaryIO, kind: str) -> int:
    """Frames of an animation or pages of a document, 1 to `MOST_FRAMES`. kind: Pillow's name.

    The further views in the JPEG of some telephones are no frames. What follows a damaged place
    is not counted: of the first frame, the decoder is the judge.

    Raises `Malformed` for a WebP or AVIF file of more, whose decoders take memory for each, and
    for any that is built to waste a reader's time.
    """
    if kind in ("JPEG", "BMP"):
        return 1
    if kind == "TIFF":
        return tiff_pages(stream)
    stream.seek(0)
    data = stream.read()
    count = {"GIF": _gif, "PNG": _png, "WEBP": _webp, "AVIF": _avif}[kind](data)
    if count > MOST_FRAMES and kind in ("WEBP", "AVIF"):
        raise Malformed
    return min(max(1, count), MOST_FRAMES)


def _gif(data: bytes) -> int:
    """Image descriptors of a GIF file (GIF89a specification, 20)."""
    frames = blocks = 0
    position = 13 + _gif_table(data, 10)
    while frames < MOST_FRAMES and position + 2 <= len(data):
        kind = data[position]
        if kind == 0x2C:  # an image: its descriptor, its colours, the code size, its blocks
            frames += 1
            position += 11 + _gif_table(data, position + 9)
        elif kind == 0x21:  # an extension: its label, its blocks
            position += 2
        else:  # the trailer, or what is none of GIF's
            break
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
            if blocks > _MOST_BLOCKS:
                raise Malformed
        position += 1
        blocks += 1
    return frames


def _gif_table(data: bytes, at: int) -> int:
    """Bytes that the colour table takes which the flags at `at` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _png(data: bytes) -> int:
    """Frame control chunks of an animated PNG (third edition, 11.3.6.2)."""
    frames, animated, position = 0, False, 8
    for _ in range(_MOST_PARTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND" or frames >= MOST_FRAMES or (kind == b"IDAT" and not animated):
            break
        animated = animated or kind == b"acTL"
        frames += kind == b"fcTL"
        position += 12 + length
    return frames


def _webp(data: bytes) -> int:
    """Animation frames of a WebP file (RFC 9649, 2.7.1.1)."""
    frames = parts = 0
    position = 12
    while position + 8 <= len(data) and frames <= MOST_FRAMES:
        kind, length = struct.unpack_from("<4sI", data, position)
        frames += kind == b"ANMF"
        position += 8 + length + length % 2
        parts += 1
        if parts > _MOST_PARTS:
            raise Malformed
    return frames


def _avif(data: bytes) -> int:
    """Samples of the longest track of an AVIF sequence (ISO/IEC 14496-12, 8.7.3)."""
    most, boxes = 0, 0
    waiting = [(0, len(data), 0)]
    while waiting:
        position, end, depth = waiting.pop()
        while position + 8 <= end:
            boxes += 1
            if boxes > _MOST_PARTS:
                raise Malformed
            length, kind = struct.unpack_from(">I4s", data, position)
            body = position + 8
            if length == 1 and body + 8 <= end:
                (length,) = struct.unpack_from(">Q", data, body)
                body += 8
            length = length or end - position  # none stated: to the end
            if length < body - position:
                break
            close = min(position + length, end)
            if depth < len(_AVIF_TABLES) and kind == _AVIF_TABLES[depth]:
                waiting.append((body, close, depth + 1))
            elif depth == len(_AVIF_TABLES) and kind in (b"stsz", b"stts", b"stz2"):
                most = max(most, _samples(data, kind, body, close))
            position += length
    return most


def _samples(data: bytes, kind: bytes, body: int, end: int) -> int:
    """Samples that a table of sizes or of times states."""
    if kind != b"stts":
        return int.from_bytes(data[body + 8 : body + 12], "big") if body + 12 <= end else 0
    entries = min(int.from_bytes(data[body + 4 : body + 8], "big"), (end - body - 8) // 8)
    counts = (data[at : at + 4] for at in range(body + 8, body + 8 + 8 * entries, 8))
    total = 0
    for count in counts:
        total += int.from_bytes(count, "big")
        if total > MOST_FRAMES:
            break
    return total
