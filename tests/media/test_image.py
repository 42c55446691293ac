from __future__ import annotations

import hashlib

import numpy as np
import pytest
from picture_files import encode, scene

from chiasm.media import Image, open_image


def pixels(height: int, width: int) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_digest_is_the_documented_hash() -> None:
    image = Image(pixels(1, 2), (2, 1))
    assert image.digest == hashlib.sha256(b"chiasm-image-1 RGB 2x1\n\0\1\2\3\4\5").hexdigest()


def test_same_bytes_in_another_shape_are_another_picture() -> None:
    wide, tall = Image(pixels(2, 6), (6, 2)), Image(pixels(6, 2), (2, 6))
    assert wide.pixels.tobytes() == tall.pixels.tobytes()
    assert wide.digest != tall.digest
    assert wide != tall


def test_digest_is_of_what_is_seen_not_of_how_it_lies_in_memory() -> None:
    whole = pixels(8, 8)
    part = Image(whole[::2, ::2], (4, 4))
    assert part.digest == Image(whole[::2, ::2].copy(), (4, 4)).digest


def test_name_and_container_do_not_change_the_digest() -> None:
    picture = scene()
    files = [encode(picture, kind) for kind in ("PNG", "BMP", "TIFF")]
    files.append(encode(picture, "WEBP", lossless=True))
    opened = [open_image(data, name=str(n)) for n, data in enumerate(files)]
    assert len({image.digest for image in opened}) == 1
    assert len(set(opened)) == 1


def test_pixels_cannot_be_changed() -> None:
    image = open_image(encode(scene(), "PNG"))
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0] = 0


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 2, 3)),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_anything_but_opaque_pixels_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels must be"):
        Image(wrong, (2, 2))
