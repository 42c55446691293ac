from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from picture_files import (
    BLUE,
    GREEN,
    ORIENTATION,
    RED,
    YELLOW,
    encode,
    exif,
    photograph,
    png,
    png_chunk,
    quarters,
    scene,
)

from chiasm.media import Limits, open_data_url, open_image, read_header

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
OPAQUE = [
    *((kind, mode) for kind in FORMATS for mode in ("1", "L", "P", "RGB")),
    *(("TIFF", mode) for mode in ("CMYK", "YCbCr", "LAB")),
    ("JPEG", "CMYK"),
    ("JPEG", "YCbCr"),
]
ORIENTED = ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]


def with_pillow(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("kind", "mode"), OPAQUE)
def test_eight_bit_pictures_are_what_pillow_makes_of_them(kind: str, mode: str) -> None:
    picture = scene().convert(mode)
    data = encode(picture.convert("RGB") if (kind, mode) == ("JPEG", "P") else picture, kind)
    image = open_image(data)
    np.testing.assert_array_equal(image.pixels, np.asarray(with_pillow(data).convert("RGB")))
    assert image.size == image.original_size == (64, 48)


@pytest.mark.parametrize("kind", FORMATS)
def test_header_says_what_the_file_is(kind: str) -> None:
    data = encode(scene(50, 30), kind)
    header = read_header(data)
    assert (header.format, header.size, header.frames) == (kind, (50, 30), 1)
    assert header.nbytes == len(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_smallest_picture(kind: str) -> None:
    image = open_image(encode(PIL.Image.new("RGB", (1, 1), "white"), kind), shortest_side=224)
    assert image.size == (1, 1)
    assert image.pixels.min() >= 250


def test_header_does_not_need_the_pixels() -> None:
    data = encode(photograph(400, 300), "JPEG", exif=exif(6))
    assert read_header(data[:2000]).size == (300, 400)


def test_every_kind_of_source_is_the_same_picture(tmp_path: Path) -> None:
    data = encode(scene(), "PNG")
    path = tmp_path / "ein Bild.png"
    path.write_bytes(data)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    images = [
        open_image(source)
        for source in (data, bytearray(data), memoryview(data), path, str(path), url)
    ]
    images.append(open_data_url(url))
    assert len({image.digest for image in images}) == 1
    names = ["image", "image", "image", str(path), str(path), "data URL", "data URL"]
    assert [image.name for image in images] == names
    headers = {read_header(source) for source in (data, memoryview(data), path, str(path), url)}
    assert len(headers) == 1


def test_the_name_of_a_file_does_not_decide_its_format(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encode(scene(), "PNG"))
    assert read_header(path).format == "PNG"
    assert open_image(path).size == (64, 48)


# Orientation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ORIENTED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    data = encode(quarters(), kind, exif=exif(orientation))
    image = open_image(data)
    expected = PIL.ImageOps.exif_transpose(with_pillow(data)).convert("RGB")
    np.testing.assert_array_equal(image.pixels, np.asarray(expected))
    assert read_header(data).size == image.size == image.original_size == expected.size


@pytest.mark.parametrize("kind", ORIENTED)
@pytest.mark.parametrize(
    # Where the stored corners (top left, top right, bottom left, bottom right) are to be seen:
    # Exif 2.32, table of tag 274, "0th row / 0th column is the visual ... side".
    ("orientation", "corners"),
    [
        (1, (RED, GREEN, BLUE, YELLOW)),
        (2, (GREEN, RED, YELLOW, BLUE)),
        (3, (YELLOW, BLUE, GREEN, RED)),
        (4, (BLUE, YELLOW, RED, GREEN)),
        (5, (RED, BLUE, GREEN, YELLOW)),
        (6, (BLUE, RED, YELLOW, GREEN)),
        (7, (YELLOW, GREEN, BLUE, RED)),
        (8, (GREEN, YELLOW, RED, BLUE)),
    ],
)
def test_orientation_puts_the_corners_right(
    kind: str, orientation: int, corners: tuple[tuple[int, int, int], ...]
) -> None:
    pixels = open_image(encode(quarters(), kind, exif=exif(orientation))).pixels.astype(int)
    seen = [pixels[4, 4], pixels[4, -5], pixels[-5, 4], pixels[-5, -5]]
    np.testing.assert_allclose(seen, corners, atol=40)  # lossy formats blur chroma


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_scaled_jpeg(orientation: int) -> None:
    data = encode(quarters(640, 320), "JPEG", exif=exif(orientation))
    image = open_image(data, shortest_side=80)
    full = PIL.ImageOps.exif_transpose(with_pillow(data)).convert("RGB")
    assert image.original_size == full.size
    assert image.size == (full.width // 4, full.height // 4)
    error = np.abs(image.pixels.astype(int) - np.asarray(full.resize(image.size)))
    assert error.mean() < 2


@pytest.mark.parametrize("kind", ["gone", "late"])
def test_orientation_of_a_png_behind_its_pixels(kind: str) -> None:
    tags = exif(6)
    chunk = png_chunk(b"eXIf", tags.tobytes().removeprefix(b"Exif\0\0")) if kind == "late" else b""
    data = png(3, 1, rows=b"\0\x00\x80\xff", after=chunk)
    expected = (1, 3) if kind == "late" else (3, 1)
    assert read_header(data).size == open_image(data).size == expected


@pytest.mark.parametrize("value", [0, 9, 4096])
def test_senseless_orientation_is_no_orientation(value: int) -> None:
    data = encode(quarters(), "JPEG", exif=exif(value))
    assert open_image(data).size == read_header(data).size == (64, 32)


def test_damaged_exif_does_not_hide_the_picture() -> None:
    tags = bytearray(exif(6).tobytes())
    tags[8:] = b"\xff" * (len(tags) - 8)
    assert open_image(encode(quarters(), "JPEG", exif=bytes(tags))).size == (64, 32)


def test_orientation_in_xmp() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("JPEG", "WEBP", "TIFF"):
        options = {"tiffinfo": {700: packet}} if kind == "TIFF" else {"xmp": packet}
        data = encode(quarters(), kind, **options)
        assert open_image(data).size == read_header(data).size == (32, 64), kind


# Frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_of_many(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_header(data).frames == 3
    image = open_image(data)
    assert image.size == (20, 10)
    np.testing.assert_allclose(image.pixels.reshape(-1, 3).astype(int), [RED] * 200, atol=6)


# Scaled decoding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shortest_side", "expected"),
    [
        ((800, 600), None, (800, 600)),
        ((800, 600), 1, (100, 75)),
        ((800, 600), 75, (100, 75)),
        ((800, 600), 76, (200, 150)),
        ((800, 600), 150, (200, 150)),
        ((800, 600), 151, (400, 300)),
        ((600, 800), 300, (300, 400)),
        ((800, 600), 301, (800, 600)),
        ((800, 600), 600, (800, 600)),
        ((800, 600), 5000, (800, 600)),
        ((801, 607), 75, (101, 76)),
        ((2000, 3), 2, (2000, 3)),
    ],
)
def test_jpeg_is_decoded_at_the_smallest_scale_that_suffices(
    size: tuple[int, int], shortest_side: int | None, expected: tuple[int, int]
) -> None:
    image = open_image(encode(scene(*size), "JPEG"), shortest_side=shortest_side)
    assert image.size == expected
    assert image.original_size == size


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_jpeg_looks_like_the_full_one(mode: str) -> None:
    data = encode(photograph(1200, 900).convert(mode), "JPEG", quality=90)
    target = (150, 112)
    full = PIL.Image.fromarray(open_image(data).pixels).resize(target)
    scaled = open_image(data, shortest_side=224)
    assert scaled.size == (300, 225)
    small = PIL.Image.fromarray(scaled.pixels).resize(target)
    error = np.abs(np.asarray(full, dtype=int) - np.asarray(small, dtype=int))
    assert error.mean() < 1.0


@pytest.mark.parametrize("size", [(1201, 905), (1207, 901), (1208, 904)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_scaled_jpeg_is_not_shifted(size: tuple[int, int], orientation: int) -> None:
    """Sides that are no multiple of the scale end in a pixel that is partly padding."""
    data = encode(photograph(*size), "JPEG", quality=95, exif=exif(orientation))
    full = PIL.Image.fromarray(open_image(data).pixels).resize((112, 112))
    scaled = PIL.Image.fromarray(open_image(data, shortest_side=224).pixels).resize((112, 112))
    error = np.abs(np.asarray(full, dtype=int) - np.asarray(scaled, dtype=int))
    assert error.mean() < 0.5


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    image = open_image(encode(scene(400, 300), kind), shortest_side=10)
    assert image.size == image.original_size == (400, 300)


@pytest.mark.parametrize("side", [0, -1])
def test_senseless_shortest_side_is_the_callers_mistake(side: int) -> None:
    with pytest.raises(ValueError, match="shortest_side"):
        open_image(encode(scene(), "JPEG"), shortest_side=side)


def test_multi_picture_jpeg_of_a_phone_is_a_jpeg() -> None:
    data = encode(scene(80, 60), "MPO", save_all=True, append_images=[scene(40, 30)])
    header = read_header(data)
    assert (header.format, header.size, header.frames) == ("JPEG", (80, 60), 1)
    assert open_image(data).size == (80, 60)
    assert open_image(data, shortest_side=30).size == (40, 30)


def test_decoding_leaves_no_trace_of_metadata_on_the_image() -> None:
    tags = exif(1)
    tags[0x010F] = "Secret Camera"
    image = open_image(encode(scene(), "JPEG", exif=tags))
    assert set(vars(image)) <= {"pixels", "original_size", "name", "digest"}
    assert ORIENTATION not in PIL.Image.fromarray(image.pixels).getexif()


def test_limits_are_the_callers() -> None:
    data = encode(scene(64, 48), "PNG")
    assert open_image(data, limits=Limits(len(data), 64 * 48, 64)).size == (64, 48)
