from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from picture_files import encode, exif, photograph, scene

from chiasm.errors import ImageTooLarge
from chiasm.media import (
    Image,
    Limits,
    encode_jpeg,
    encode_png,
    encode_webp,
    open_image,
    read_header,
    resize,
    thumbnail,
)

PHOTOGRAPH = photograph(300, 200)
FILTERS = {
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


def image_of(picture: PIL.Image.Image) -> Image:
    return open_image(encode(picture, "PNG"), name="picture")


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", [(224, 224), (17, 5), (640, 480), (1, 1), (300, 200)])
def test_resize_is_pillows(resample: str, size: tuple[int, int]) -> None:
    pixels = resize(image_of(PHOTOGRAPH), size, resample=resample)  # type: ignore[arg-type]
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(PHOTOGRAPH.resize(size, FILTERS[resample])))


def test_resize_is_bicubic_by_default() -> None:
    image = image_of(PHOTOGRAPH)
    np.testing.assert_array_equal(
        resize(image, (50, 50)), resize(image, (50, 50), resample="bicubic")
    )


@pytest.mark.parametrize(
    ("size", "longest_side", "expected"),
    [
        ((300, 200), 150, (150, 100)),
        ((200, 300), 150, (100, 150)),
        ((300, 200), 300, (300, 200)),
        ((300, 200), 1000, (300, 200)),
        ((1000, 1), 100, (100, 1)),
        ((3, 3), 1, (1, 1)),
    ],
)
def test_thumbnail_fits_and_keeps_its_shape(
    size: tuple[int, int], longest_side: int, expected: tuple[int, int]
) -> None:
    small = thumbnail(image_of(scene(*size)), longest_side)
    assert small.size == expected
    assert small.original_size == size
    assert small.name == "picture"


def test_thumbnail_looks_like_the_picture() -> None:
    small = thumbnail(image_of(PHOTOGRAPH), 60)
    plain = np.asarray(PHOTOGRAPH.resize((60, 40), PIL.Image.Resampling.LANCZOS), dtype=int)
    assert np.abs(small.pixels - plain).mean() < 2


ENCODERS = {"JPEG": encode_jpeg, "PNG": encode_png, "WEBP": encode_webp}


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoded_pixels_come_back(kind: str) -> None:
    image = image_of(PHOTOGRAPH)
    data = ENCODERS[kind](image)
    assert read_header(data).format == kind
    error = np.abs(open_image(data).pixels.astype(int) - image.pixels)
    assert error.mean() < {"JPEG": 6, "PNG": 1e-9, "WEBP": 6}[kind]


@pytest.mark.parametrize("encode_lossy", [encode_jpeg, encode_webp])
def test_quality_is_heeded(encode_lossy: object) -> None:
    image = image_of(PHOTOGRAPH)
    assert len(encode_lossy(image, quality=20)) < len(encode_lossy(image, quality=95)) / 2  # type: ignore[operator]


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_nothing_but_pixels_is_written(kind: str, source: str) -> None:
    tags = exif(6)
    tags[0x010F] = "SecretCamera"
    tags.get_ifd(0x8825)[2] = (48.0, 51.0, 30.0)  # GPSLatitude
    marked = encode(scene(), source, exif=tags) + b"<script>SecretPolyglot</script>"
    assert b"SecretCamera" in marked
    data = ENCODERS[kind](open_image(marked))
    assert b"Secret" not in data
    written = PIL.Image.open(io.BytesIO(data))
    assert not written.getexif()
    assert not {"exif", "icc_profile", "xmp", "comment"} & set(written.info)


def test_what_a_format_cannot_hold_is_said_plainly() -> None:
    long = Image(np.zeros((1, 70_000, 3), np.uint8), (70_000, 1), name="panorama")
    with pytest.raises(ImageTooLarge, match=r"^panorama: JPEG pictures have at most 65,535"):
        encode_jpeg(long)
    with pytest.raises(ImageTooLarge, match=r"^panorama: WEBP pictures have at most 16,383"):
        encode_webp(long)
    limits = Limits(max_side=100_000)
    assert read_header(encode_png(long), limits=limits).size == (70_000, 1)
