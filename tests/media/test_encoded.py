"""Pictures that are looked at but not decoded."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import tempfile
import zipfile

import numpy as np
import PIL.Image
import pytest
from picture_files import encode, exif, icc_profile, one_of_each, photograph, png, png_chunk, scene

from chiasm.errors import BrokenImage, ImageError, ImageTooLarge, NotAnImage
from chiasm.media import EncodedImage, Limits, open_image, read_encoded
from chiasm.media.walk import is_plain

LIMITS = Limits()


def read(data: bytes) -> EncodedImage:
    return read_encoded(data, limits=LIMITS, name="picture")


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def behind_soi(jpeg: bytes, extra: bytes) -> bytes:
    return jpeg[:2] + extra + jpeg[2:]


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hidden.txt", "hidden")
    return buffer.getvalue()


JPEG = encode(scene(), "JPEG")
PNG = encode(scene(), "PNG")
WEBP = encode(scene(), "WEBP")

PLAIN = {
    "jpeg": JPEG,
    "jpeg-progressive": encode(scene(), "JPEG", progressive=True),
    "jpeg-grey": encode(scene().convert("L"), "JPEG"),
    "jpeg-444": encode(scene(), "JPEG", subsampling=0, quality=97),
    "jpeg-restarts": encode(photograph(200, 120), "JPEG", restart_marker_blocks=3),
    "jpeg-optimised": encode(photograph(300, 200), "JPEG", optimize=True),
    "png": PNG,
    "png-palette": encode(scene().convert("P"), "PNG", transparency=3),
    "png-alpha": encode(scene().convert("RGBA"), "PNG"),
    "png-dpi": encode(scene(), "PNG", dpi=(72, 72)),
    "png-gamma": png(8, 8, rows=bytes(72), before=png_chunk(b"gAMA", bytes(4))),
    "webp": WEBP,
    "webp-lossless": encode(scene(), "WEBP", lossless=True),
    "webp-alpha": encode(scene().convert("RGBA").rotate(20), "WEBP"),
}

SRGB = icc_profile(np.eye(3), 2.2)
LADEN = {
    "jpeg-exif": encode(scene(), "JPEG", exif=exif(1)),
    "jpeg-turned": encode(scene(), "JPEG", exif=exif(6)),
    "jpeg-comment": encode(scene(), "JPEG", comment=b"about somebody"),
    "jpeg-profile": encode(scene(), "JPEG", icc_profile=SRGB),
    "jpeg-xmp": behind_soi(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")),
    "jpeg-photoshop": behind_soi(JPEG, segment(0xED, b"Photoshop 3.0\x008BIM")),
    "jpeg-jfif-thumbnail": JPEG.replace(
        JPEG[2:20], segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\1\1" + bytes(3)), 1
    ),
    "jpeg-jfif-longer": JPEG.replace(JPEG[2:20], segment(0xE0, JPEG[6:20] + b"and more"), 1),
    "jpeg-trailing-zip": JPEG + zip_archive(),
    "jpeg-trailing-byte": JPEG + b"\0",
    "jpeg-zip-in-pixels": JPEG[:-2] + zip_archive() + JPEG[-2:],
    "jpeg-second-picture": JPEG + JPEG,
    "jpeg-between-segments": JPEG[:20] + b"hidden" + JPEG[20:],
    "jpeg-wide-table": JPEG[:-2] + segment(0xDB, bytes(65) + b"hidden") + JPEG[-2:],
    "jpeg-many-tables": behind_soi(JPEG, segment(0xDB, bytes(65)) * 5),
    "jpeg-ink": encode(scene().convert("CMYK"), "JPEG"),
    "jpeg-script": JPEG[:-2] + b"<?php evil(); ?>" + JPEG[-2:],
    "png-text": png(8, 8, rows=bytes(72), before=png_chunk(b"tEXt", b"Comment\0hidden")),
    "png-text-behind": png(8, 8, rows=bytes(72), after=png_chunk(b"zTXt", b"Comment\0\0x")),
    "png-exif": encode(scene(), "PNG", exif=exif(1)),
    "png-profile": encode(scene(), "PNG", icc_profile=SRGB),
    "png-unknown": png(8, 8, rows=bytes(72), before=png_chunk(b"prVt", b"hidden")),
    "png-long-gamma": png(8, 8, rows=bytes(72), before=png_chunk(b"gAMA", b"hidden text")),
    "png-gamma-twice": png(8, 8, rows=bytes(72), before=png_chunk(b"gAMA", b"hidd") * 2),
    "png-iend-text": PNG[:-12] + png_chunk(b"IEND", b"hidden"),
    "png-trailing-zip": PNG + zip_archive(),
    "png-trailing-byte": PNG + b"\0",
    "png-animated": one_of_each()["apng"],
    "webp-exif": encode(scene(), "WEBP", exif=exif(1)),
    "webp-xmp": encode(scene(), "WEBP", xmp=b"<x/>"),
    "webp-profile": encode(scene(), "WEBP", icc_profile=SRGB),
    "webp-animated": one_of_each()["webp-animated"],
    "webp-unknown": riff(WEBP[12:], webp_chunk(b"HIDE", b"hidden")),
    "webp-trailing-zip": WEBP + zip_archive(),
    "webp-padding": riff(WEBP[12:], b"\1"),
    "gif": encode(scene(), "GIF"),
    "bmp": encode(scene(), "BMP"),
    "tiff": encode(scene(), "TIFF"),
    "avif": encode(scene(), "AVIF"),
}


@pytest.mark.parametrize("which", PLAIN)
def test_a_file_that_is_only_a_picture_travels(which: str) -> None:
    encoded = read(PLAIN[which])
    assert encoded.travels
    assert encoded.size == open_image(PLAIN[which]).size == (encoded.width, encoded.height)
    assert encoded.open(LIMITS) == open_image(PLAIN[which])


@pytest.mark.parametrize("which", LADEN)
def test_a_file_with_anything_else_does_not(which: str) -> None:
    data = LADEN[which]
    if which in {"webp-padding"}:  # not even a whole file
        with pytest.raises(BrokenImage):
            read(data)
        return
    assert not read(data).travels


@pytest.mark.parametrize("which", [*PLAIN, "jpeg-exif", "png-exif", "webp-exif"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_file_that_is_cut_short_is_refused_without_decoding(which: str, share: float) -> None:
    data = (PLAIN | LADEN)[which]
    with pytest.raises(BrokenImage):
        read(data[: int(len(data) * share)])
    with pytest.raises(BrokenImage):
        read(data[:-1])


def test_damaged_checksum_does_not_travel() -> None:
    at = PNG.index(b"IDAT") + 20
    assert not read(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :]).travels


def test_canvas_of_another_size_than_its_picture_is_not_plain() -> None:
    for side in (64, 65):
        canvas = bytes(4) + (side - 1).to_bytes(3, "little") + (47).to_bytes(3, "little")
        assert is_plain(riff(webp_chunk(b"VP8X", canvas), WEBP[12:]), "WEBP") == (side == 64)


def test_size_is_upright() -> None:
    assert read(encode(scene(64, 48), "JPEG", exif=exif(6))).size == (48, 64)


def test_frames_are_told() -> None:
    assert read(one_of_each()["gif"]).frames == 3
    assert read(PNG).frames == 1


# Digest and base64 ------------------------------------------------------------------------------


def test_digest_is_that_of_the_bytes_in_a_domain_of_its_own() -> None:
    first = read(PNG)
    assert first.digest == hashlib.sha256(b"chiasm-encoded-1\n" + PNG).hexdigest()
    assert first == read_encoded(url(PNG), limits=LIMITS)
    assert hash(first) == hash(read(PNG))
    assert first != read(JPEG)
    assert first.digest != open_image(PNG).digest


def test_another_palette_for_the_same_indices_is_another_picture() -> None:
    picture = PIL.Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    other = picture.copy()
    other.putpalette([255, 0, 0, 0, 0, 255])
    assert read(encode(picture, "PNG")) != read(encode(other, "PNG"))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_callers_base64_is_kept_where_it_is_canonical(extra: int) -> None:
    data = PNG + bytes(extra)  # all three paddings
    text = base64.b64encode(data).decode()
    assert read_encoded(url(data), limits=LIMITS).base64 == text
    head = "data:image/png;base64,"
    others = [f"{text[:76]}\n{text[76:]}", f" {text}", text.replace("A", "%41", 1)]
    others += [base64.urlsafe_b64encode(data).decode()] if set("+/") & set(text) else []
    if text.endswith("="):
        # Bits that no byte holds: another text for the same bytes.
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        pads = text.count("=")
        last = letters[letters.index(text[-pads - 1]) + 1]
        others += [text.rstrip("="), text[: -pads - 1] + last + "=" * pads]
    for other in others:
        encoded = read_encoded(head + other, limits=LIMITS)
        assert encoded.data == data
        assert encoded.base64 is None


def test_percent_encoded_picture_has_no_base64() -> None:
    escaped = "".join(f"%{byte:02x}" for byte in PNG)
    encoded = read_encoded(f"data:image/png,{escaped}", limits=LIMITS)
    assert encoded.data == PNG
    assert encoded.base64 is None


def test_pictures_that_rest_in_one_file_stay_what_they_are() -> None:
    pictures = [read_encoded(url(data), limits=LIMITS) for data in (PNG, JPEG, WEBP)]
    with tempfile.TemporaryFile() as file:
        for picture in pictures:
            picture.rest(file)
        assert [picture.data for picture in pictures] == [PNG, JPEG, WEBP]
        assert [picture.base64 for picture in pictures] == [None] * 3
        assert pictures[1].open(LIMITS) == open_image(JPEG)


# Refusals ---------------------------------------------------------------------------------------


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(NotAnImage):
        read(b"this is text")
    with pytest.raises(ImageError, match="empty"):
        read(b"")
    for source in ("https://example.com/a.png", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(ImageError, match="not a data URL"):
            read_encoded(source, limits=LIMITS)
    with pytest.raises(ImageError, match="malformed"):
        read_encoded("data:image/png;base64,iVBOR*", limits=LIMITS)


def test_limits_are_held_against_the_header() -> None:
    with pytest.raises(ImageTooLarge, match="pixels"):
        read_encoded(png(4000, 4000), limits=Limits(max_pixels=1_000_000))
    with pytest.raises(ImageTooLarge, match="a side"):
        read_encoded(png(40_000, 1), limits=LIMITS)
    for source in (PNG, url(PNG)):
        with pytest.raises(ImageTooLarge, match="bytes"):
            read_encoded(source, limits=Limits(max_bytes=len(PNG) - 1))
        assert read_encoded(source, limits=Limits(max_bytes=len(PNG))).data == PNG


def test_pixels_are_not_decoded() -> None:
    # A whole container around pixels that no decoder could read.
    empty = png(8, 8, rows=b"")
    assert read(empty).travels
    with pytest.raises(BrokenImage):
        read(empty).open(LIMITS)


@pytest.mark.parametrize("scans", [10, 100])
def test_jpeg_of_endless_scans_is_refused(scans: int) -> None:
    progressive = encode(scene(16, 16), "JPEG", progressive=True)
    at = progressive.index(b"\xff\xda")
    scan = progressive[at : progressive.index(b"\xff", at + 14)]
    data = progressive[:at] + scan * scans + progressive[at:]
    if scans < 64:
        read(data)
    else:
        with pytest.raises(BrokenImage):
            read(data)


def test_no_part_of_a_picture_is_in_its_text() -> None:
    assert len(repr(read_encoded(url(PNG), limits=LIMITS))) < 250


def test_bytes_can_rest_in_a_file() -> None:
    images = [read_encoded(PNG, limits=Limits()) for _ in range(2)]
    digest = read_encoded(PNG, limits=Limits()).digest
    with tempfile.TemporaryFile() as file:
        for image in images:
            image.rest(file)
            image.rest(file)
        assert file.seek(0, 2) == 2 * len(PNG)
        assert [image.data for image in images] == [PNG, PNG]
        assert images[1].digest == digest
        assert images[0].base64 is None
