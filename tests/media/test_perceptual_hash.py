from __future__ import annotations

import math
from functools import cache

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from picture_files import encode, photograph

from chiasm.media import Image, open_image
from chiasm.media.perceptual_hash import hamming_distance, perceptual_hash

PHOTOGRAPHS = [photograph(480, 320, seed) for seed in range(8)]


def hash_of(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> int:
    return perceptual_hash(open_image(encode(picture, kind, **options)))


def test_hash_is_the_published_one() -> None:
    """The definition written out as sums, on a picture that needs no resizing."""
    rng = np.random.default_rng(5)
    grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    image = Image(np.repeat(grey[..., None], 3, axis=2), (32, 32))
    coefficients = [
        sum(
            int(grey[y, x])
            * math.cos(math.pi * v * (2 * y + 1) / 64)
            * math.cos(math.pi * u * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for v in range(1, 9)
        for u in range(1, 9)
    ]
    median = sorted(coefficients)[31] / 2 + sorted(coefficients)[32] / 2
    expected = "".join("1" if value > median else "0" for value in coefficients)
    assert f"{perceptual_hash(image):064b}" == expected


@cache
def hashes() -> list[int]:
    return [hash_of(picture) for picture in PHOTOGRAPHS]


@pytest.mark.parametrize("number", range(len(PHOTOGRAPHS)))
def test_hash_survives_scaling_and_compression(number: int) -> None:
    picture = PHOTOGRAPHS[number]
    original = hashes()[number]
    copies = {
        "half": hash_of(picture.resize((240, 160), PIL.Image.Resampling.LANCZOS)),
        "double": hash_of(picture.resize((960, 640), PIL.Image.Resampling.BICUBIC)),
        "squeezed": hash_of(picture.resize((300, 300), PIL.Image.Resampling.BICUBIC)),
        "jpeg 30": hash_of(picture, "JPEG", quality=30),
        "webp 30": hash_of(picture, "WEBP", quality=30),
        "brighter": hash_of(PIL.ImageEnhance.Brightness(picture).enhance(1.1)),
    }
    distances = {name: hamming_distance(original, value) for name, value in copies.items()}
    assert max(distances.values()) <= 6, distances


def test_scaled_decoding_keeps_the_hash() -> None:
    data = encode(photograph(1600, 1200, 3), "JPEG", quality=90)
    full, scaled = open_image(data), open_image(data, shortest_side=224)
    assert scaled.size == (400, 300)
    assert hamming_distance(perceptual_hash(full), perceptual_hash(scaled)) <= 2


def test_different_pictures_are_far_apart() -> None:
    distances = [hamming_distance(a, b) for n, a in enumerate(hashes()) for b in hashes()[:n]]
    assert min(distances) >= 12
    assert 28 <= np.mean(distances) <= 36


@pytest.mark.parametrize("grey", [0, 1, 100, 101, 255])
def test_flat_pictures_have_no_structure(grey: int) -> None:
    assert hash_of(PIL.Image.new("L", (50, 40), grey)) == 0


def test_hash_has_sixty_four_bits() -> None:
    assert all(0 <= value < 2**64 for value in hashes())
    assert all(value.bit_count() == 32 for value in hashes()), "half lie above the median"


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(0, 0, 0), (0, 2**64 - 1, 64), (0b1010, 0b0110, 2), (2**63, 0, 1)]
)
def test_hamming_distance(a: int, b: int, expected: int) -> None:
    assert hamming_distance(a, b) == hamming_distance(b, a) == expected
