"""Encoded pictures for the tests, written by Pillow or, where it cannot, by hand."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image

ORIENTATION = 0x0112
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def encode(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int = 64, height: int = 48) -> PIL.Image.Image:
    """A smooth picture, different in each corner and in each channel."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256], axis=-1
    )
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def photograph(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Structure at every scale, as in a photograph: octaves of noise, and some hard edges."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(2, 8):
        coarse = rng.normal(size=(2**octave, 2**octave, 3)) * 127 / octave + 127
        layer = PIL.Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        total += np.asarray(layer.resize((width, height), PIL.Image.Resampling.BICUBIC)) - 127.0
    total[height // 3 : height // 2, width // 4 : width // 2] += 60
    return PIL.Image.fromarray(np.clip(total / 2 + 127, 0, 255).astype(np.uint8))


def quarters(width: int = 64, height: int = 32) -> PIL.Image.Image:
    """Red, green over blue, yellow: any wrong turn or mirror shows."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = YELLOW
    return PIL.Image.fromarray(pixels)


def exif(orientation: int) -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def one_of_each() -> dict[str, bytes]:
    """A small file for each format and for each road through its decoder."""
    rgb = scene()
    wide = PIL.Image.fromarray(np.asarray(rgb)[..., 0].astype(np.uint16) * 257)
    more = [rgb.rotate(90), rgb.rotate(180)]
    files = {
        "jpeg": encode(rgb, "JPEG", exif=exif(6)),
        "jpeg-progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "png": encode(rgb, "PNG", exif=exif(6)),
        "png-palette": encode(rgb.convert("P"), "PNG", transparency=3),
        "png-16": encode(wide, "PNG"),
        "apng": encode(rgb, "PNG", save_all=True, append_images=more),
        "gif": encode(rgb, "GIF", save_all=True, append_images=more),
        "bmp": encode(rgb, "BMP"),
        "bmp-palette": encode(rgb.convert("P"), "BMP"),
        "webp": encode(rgb, "WEBP", exif=exif(6)),
        "webp-lossless": encode(rgb.convert("RGBA"), "WEBP", lossless=True),
        "webp-animated": encode(rgb, "WEBP", save_all=True, append_images=more),
        "avif": encode(rgb, "AVIF", exif=exif(6)),
        "tiff-16": encode(wide, "TIFF"),
        "tiff-fax": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff-big": encode(rgb, "TIFF", big_tiff=True, save_all=True, append_images=more),
        "tiff-pages": encode(rgb, "TIFF", save_all=True, append_images=more),
    }
    for compression in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        files[f"tiff-{compression}"] = encode(rgb, "TIFF", compression=compression, exif=exif(6))
    return files


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour: int = 0,
    rows: bytes = b"",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG file from its parts; `before` and `after` are chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            before,
            png_chunk(b"IDAT", zlib.compress(rows)),
            after,
            png_chunk(b"IEND"),
        ]
    )


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"", *, order: str = "<") -> bytes:
    """A TIFF file of one page: tag → (type, count, value), pixels at offset 512."""
    entries = b"".join(
        struct.pack(f"{order}HHL", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else b"")
        + (struct.pack(f"{order}L", value) if kind != 3 or count > 1 else b"")
        for tag, (kind, count, value) in sorted(tags.items())
    )
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8)
    return (start + directory).ljust(512, b"\0") + data


def bmp(width: int, height: int, bits: int, data: bytes, *, extra: bytes = b"") -> bytes:
    """A bitmap without compression; `extra` lengthens the header (masks of a V4 header)."""
    compression = 3 if extra else 0
    header = struct.pack("<iiHHIIiiII", width, height, 1, bits, compression, 0, 0, 0, 0, 0) + extra
    start = 18 + len(header)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(data), 0, 0, start)
        + struct.pack("<I", len(header) + 4)
        + header
        + data
    )


def bombs() -> dict[str, bytes]:
    """Small files that claim enormous pictures."""
    jpeg = bytearray(encode(scene(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    avif = bytearray(encode(scene(), "AVIF"))
    extent = avif.index(b"ispe") + 8
    avif[extent : extent + 8] = struct.pack(">II", 16_000, 16_000)
    gif = bytearray(encode(scene(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    gif_frame = bytearray(encode(scene(), "GIF"))
    extent = gif_frame.index(b",\0\0\0\0") + 5
    gif_frame[extent : extent + 4] = struct.pack("<HH", 65_535, 65_535)
    bitmap = bytearray(encode(scene(), "BMP"))
    bitmap[18:26] = struct.pack("<ii", 60_000, 60_000)
    extended = b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2
    lossless = b"VP8L\x40\0\0\0\x2f" + struct.pack("<I", 0x0FFF_FFFF) + bytes(60)
    claims = {256: (4, 1, 60_000), 257: (4, 1, 60_000), 258: (3, 1, 8), 262: (3, 1, 1)}
    rows = {259: (3, 1, 5), 273: (4, 1, 512), 278: (4, 1, 60_000), 279: (4, 1, 64)}
    return {
        "png": png(60_000, 60_000, colour=2, rows=bytes(100)),
        "jpeg": bytes(jpeg),
        "avif": bytes(avif),
        "gif": bytes(gif),
        "gif frame": bytes(gif_frame),
        "bmp": bytes(bitmap),
        "webp": b"RIFF\x16\0\0\0WEBP" + extended + bytes(8),
        "webp lossless": b"RIFF\x50\0\0\0WEBP" + lossless,
        "tiff": tiff(claims | rows, bytes(64)),
    }


def icc_profile(to_xyz: np.ndarray, gamma: float, *, space: bytes = b"RGB ") -> bytes:
    """A version 2 display profile: columns of `to_xyz` are the primaries' XYZ under D50."""

    def xyz(column: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in column)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for channel, letter in enumerate((b"r", b"g", b"b")):
            tags[letter + b"XYZ"] = xyz(to_xyz[:, channel])
            tags[letter + b"TRC"] = curve
    return _profile(b"mntr", space, b"XYZ ", tags)


def ink_profile(colours: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """A press profile: full or no ink of each colour → L*, a*, b*; linear between them."""
    table = b"".join(
        bytes([round(lab[0] * 2.55), lab[1] + 128, lab[2] + 128])
        for lab in (colours[ink] for ink in itertools.product((0, 1), repeat=4))
    )
    identity = b"".join(_fixed(float(value)) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    straight = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + table + straight * 3
    lut += bytes(-len(lut) % 4)
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut})


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    description = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = (0.9642, 1.0, 0.8249)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in white),
    } | tags
    table = struct.pack(">I", len(tags))
    body = b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    head = struct.pack(">I", 128 + len(table) + len(body)) + bytes(4) + b"\x02\x10\0\0"
    head += device + space + connection + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(_fixed(value) for value in white)
    return head.ljust(128, b"\0") + table + body
