"""Colours against arithmetic done by hand or by numpy, not against Pillow's conversions."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from picture_files import bmp, encode, icc_profile, ink_profile, png, png_chunk, scene, tiff

from chiasm.media import open_image

# Primaries under D50 (columns), as their specifications give them.
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


def first(data: bytes) -> list[int]:
    return [int(value) for value in open_image(data).pixels[0, 0]]


def row(data: bytes) -> list[list[int]]:
    return [[int(value) for value in pixel] for pixel in open_image(data).pixels[0]]


# Transparency -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    ("rgba", "expected"),
    [
        ((200, 100, 0, 255), (200, 100, 0)),
        ((200, 100, 0, 0), (255, 255, 255)),
        # 200·128/255 + 255·127/255 and so on, rounded
        ((200, 100, 0, 128), (227, 177, 127)),
    ],
)
def test_alpha_is_laid_on_white(
    kind: str, rgba: tuple[int, int, int, int], expected: tuple[int, int, int]
) -> None:
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(kind, {})
    data = encode(PIL.Image.new("RGBA", (16, 16), rgba), kind, **options)
    assert np.abs(np.subtract(first(data), expected)).max() <= (3 if kind == "AVIF" else 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha(kind: str) -> None:
    assert first(encode(PIL.Image.new("LA", (4, 4), (100, 51)), kind)) == [224, 224, 224]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry(kind: str) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0] + [0] * 762)
    picture.putdata([0, 1])
    assert row(encode(picture, kind, transparency=1)) == [[10, 20, 30], [255, 255, 255]]


def test_palette_with_an_alpha_for_each_entry() -> None:
    palette = png_chunk(b"PLTE", bytes([10, 20, 30, 200, 0, 0, 0, 0, 0]))
    data = png(
        3,
        1,
        colour=3,
        rows=b"\0\0\1\2",
        before=palette + png_chunk(b"tRNS", bytes([255, 51, 0])),
    )
    assert row(data) == [[10, 20, 30], [244, 204, 204], [255, 255, 255]]


@pytest.mark.parametrize(
    ("bits", "colour", "rows", "key", "expected"),
    [
        (8, 0, b"\0\x07\x08", b"\0\x07", [255, 8]),
        (4, 0, b"\0\x3a", b"\0\x03", [255, 170]),
        (2, 0, b"\0\x90", b"\0\x02", [255, 85]),
        (1, 0, b"\0\x40", b"\0\x01", [0, 255]),
        (16, 0, b"\0\x12\x34\x80\x80", b"\x12\x34", [255, 128]),
        (8, 2, b"\0\x07\x07\x07\x08\x08\x08", b"\0\x07" * 3, [255, 8]),
        (16, 2, b"\0" + b"\x12\x34" * 3 + b"\x80\x00" * 3, b"\x12\x34" * 3, [255, 128]),
    ],
)
def test_colour_key_of_a_png_at_every_depth(
    bits: int, colour: int, rows: bytes, key: bytes, expected: list[int]
) -> None:
    data = png(2, 1, bits=bits, colour=colour, rows=rows, before=png_chunk(b"tRNS", key))
    assert row(data) == [[value] * 3 for value in expected]


def test_bitmap_with_an_unused_alpha_is_opaque() -> None:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    blank = bmp(2, 1, 32, bytes([1, 2, 3, 0, 4, 5, 6, 0]), extra=masks)
    assert row(blank) == [[3, 2, 1], [6, 5, 4]]
    meant = bmp(2, 1, 32, bytes([1, 2, 3, 0, 4, 5, 6, 255]), extra=masks)
    assert row(meant) == [[255, 255, 255], [6, 5, 4]]


def test_premultiplied_alpha_of_a_tiff() -> None:
    samples = struct.pack("<HHHH", 8, 8, 8, 8)
    tags = {
        256: (4, 1, 1),
        257: (4, 1, 1),
        258: (3, 4, 520),
        259: (3, 1, 1),
        262: (3, 1, 2),
        273: (4, 1, 512),
        277: (3, 1, 4),
        278: (4, 1, 1),
        279: (4, 1, 4),
        338: (3, 1, 1),  # ExtraSamples: associated alpha
    }
    # Associated: the stored 40 is already 40 of 102 parts; on white 40 + 153 remain.
    assert first(tiff(tags, bytes([40, 0, 0, 102]) + bytes(4) + samples)) == [193, 153, 153]


# Ink --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((51, 102, 0, 128), (102, 76, 127)),  # (1 - ink)(1 - black)
    ],
)
def test_ink_without_a_profile(kind: str, ink: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = encode(PIL.Image.new("CMYK", (16, 16), ink), kind)
    assert np.abs(np.subtract(first(data), expected)).max() <= (3 if kind == "JPEG" else 1)


def test_lab_is_measured_colour() -> None:
    # Stored as L 0..255 and a, b offset by 128; L 50 is the grey of linear 0.184: sRGB 119.
    assert np.abs(np.subtract(first(lab(128, 128, 128)), [119] * 3)).max() <= 1
    # sRGB's red is L* 54.29, a* 80.80, b* 69.89 under D50.
    assert np.abs(np.subtract(first(lab(138, 209, 198)), [255, 0, 0])).max() <= 8


def lab(*value: int) -> bytes:
    return encode(PIL.Image.new("LAB", (2, 2), value), "TIFF")


# Depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_keeps_its_range(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], dtype=np.uint16)
    data = encode(PIL.Image.fromarray(values), kind)
    expected = np.rint(values[0] / 257).astype(int).tolist()
    assert row(data) == [[value] * 3 for value in expected]


def test_sixteen_bit_colour() -> None:
    big = png(2, 1, bits=16, colour=2, rows=b"\0" + struct.pack(">6H", 0, 32768, 65535, 257, 1, 2))
    assert np.abs(np.subtract(row(big), [[0, 128, 255], [1, 0, 0]])).max() <= 1


def grey_tiff(
    bits: int, data: bytes, *, width: int, sample_format: int = 1, white: int = 1
) -> bytes:
    return tiff(
        {
            256: (4, 1, width),
            257: (4, 1, 1),
            258: (3, 1, bits),
            259: (3, 1, 1),
            262: (3, 1, white),
            273: (4, 1, 512),
            277: (3, 1, 1),
            278: (4, 1, 1),
            279: (4, 1, len(data)),
            339: (3, 1, sample_format),
        },
        data,
    )


def test_white_is_zero_at_eight_and_sixteen_bits() -> None:
    assert row(grey_tiff(8, b"\0\xff", width=2, white=0)) == [[255] * 3, [0] * 3]
    wide = struct.pack("<2H", 0, 65535)
    assert row(grey_tiff(16, wide, width=2, white=0)) == [[255] * 3, [0] * 3]


def test_other_byte_order() -> None:
    tags = {256: (4, 1, 2), 257: (4, 1, 1), 258: (3, 1, 16), 259: (3, 1, 1), 262: (3, 1, 1)}
    strip = {273: (4, 1, 512), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 4)}
    data = tiff(tags | strip, struct.pack(">2H", 257, 65535), order=">")
    assert row(data) == [[1] * 3, [255] * 3]


def test_twelve_bits() -> None:
    assert row(grey_tiff(12, b"\xff\xf0\x00", width=2)) == [[255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_wide_integers(values: list[int], expected: list[int]) -> None:
    data = grey_tiff(32, struct.pack("<3i", *values), width=3, sample_format=2)
    assert row(data) == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([float("inf"), 0.25, 1.0], [255, 64, 255]),
        ([float("-inf"), 0.25, 1.0], [0, 64, 255]),
        ([float("inf")] * 3, [255, 255, 255]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_floating_point(values: list[float], expected: list[int]) -> None:
    data = grey_tiff(32, struct.pack("<3f", *values), width=3, sample_format=3)
    assert row(data) == [[value] * 3 for value in expected]


def test_wide_samples_are_scaled_in_little_memory() -> None:
    pixels = 2000 * 2000
    data = encode(PIL.Image.new("F", (2000, 2000), 0.5), "TIFF", compression="tiff_deflate")
    assert len(data) < pixels / 50, "a small file, as an attacker would send it"
    tracemalloc.start()
    try:
        image = open_image(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.pixels[0, 0].tolist() == [128] * 3
    assert peak < 16 * pixels


# Profiles ---------------------------------------------------------------------------------------


def to_srgb(pixels: np.ndarray, to_xyz: np.ndarray, gamma: float) -> np.ndarray:
    linear = (pixels / 255.0) ** gamma
    linear = np.clip(linear @ to_xyz.T @ np.linalg.inv(SRGB).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded * 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_wide_gamut_profile_is_taken_to_srgb(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100}}
    data = encode(scene(), kind, icc_profile=icc_profile(DISPLAY_P3, 2.2), **options.get(kind, {}))
    stored = open_image(encode(scene(), kind, **options.get(kind, {}))).pixels
    expected = to_srgb(stored, DISPLAY_P3, 2.2)
    assert np.abs(stored - expected).max() > 20, "the test's profile must matter"
    error = np.abs(open_image(data).pixels - expected)
    # lcms works in fixed point; in the darkest tones one step of it is a few steps of sRGB.
    assert error.mean() < 1
    assert np.quantile(error, 0.99) <= 3


def test_alpha_survives_a_profile() -> None:
    picture = PIL.Image.new("RGBA", (2, 1), (0, 200, 0, 0))
    picture.putpixel((1, 0), (0, 200, 0, 255))
    opaque = to_srgb(np.array([[0, 200, 0]]), DISPLAY_P3, 2.2)[0]
    seen = row(encode(picture, "PNG", icc_profile=icc_profile(DISPLAY_P3, 2.2)))
    assert seen[0] == [255, 255, 255]
    assert np.abs(seen[1] - opaque).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_ink_with_a_profile(kind: str) -> None:
    """A press whose cyan is what a press prints, not the screen's (0, 255, 255)."""
    colours = dict.fromkeys(itertools.product((0, 1), repeat=4), (10, 0, 0))
    colours[0, 0, 0, 0] = (100, 0, 0)
    colours[1, 0, 0, 0] = (55, -37, -50)  # ISO 12647-2, coated paper
    colours[0, 0, 1, 0] = (89, -5, 93)
    profile = ink_profile(colours)

    def printed(*ink: int) -> list[int]:
        return first(encode(PIL.Image.new("CMYK", (16, 16), ink), kind, icc_profile=profile))

    assert min(printed(0, 0, 0, 0)) >= 253
    assert max(printed(0, 0, 0, 255)) <= 32
    # The same L*a*b* in sRGB; published conversions of these inks are near (0, 150, 221) and
    # (250, 227, 0). Black-point compensation spreads the tones a little.
    assert np.abs(np.subtract(printed(255, 0, 0, 0), [0, 150, 221])).max() <= 16
    assert np.abs(np.subtract(printed(0, 0, 255, 0), [250, 227, 0])).max() <= 16


def test_profiles_in_many_threads() -> None:
    files = [
        encode(scene(seed, 48), "PNG", icc_profile=icc_profile(DISPLAY_P3, 2.2))
        for seed in range(60, 68)
    ] * 8
    one_by_one = [open_image(data).digest for data in files]
    with ThreadPoolExecutor(4) as threads:
        assert [image.digest for image in threads.map(open_image, files)] == one_by_one


def test_profile_of_greyscale() -> None:
    ramp = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    data = encode(ramp, "PNG", icc_profile=icc_profile(SRGB, 1.0, space=b"GRAY"))
    linear = np.arange(256) / 255.0
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    error = np.abs(open_image(data).pixels[0, :, 0] - expected * 255)
    assert np.quantile(error, 0.95) <= 2


def test_profile_that_is_srgb_changes_nothing() -> None:
    import PIL.ImageCms

    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    plain, tagged = encode(scene(), "PNG"), encode(scene(), "PNG", icc_profile=profile)
    assert open_image(tagged).digest == open_image(plain).digest


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        icc_profile(DISPLAY_P3, 2.2)[:150],
        icc_profile(DISPLAY_P3, 2.2, space=b"GRAY"),
        bytes(5 * 1024 * 1024),
    ],
    ids=["nonsense", "cut", "for another mode", "huge"],
)
def test_useless_profile_is_ignored(profile: bytes) -> None:
    plain, tagged = encode(scene(), "TIFF"), encode(scene(), "TIFF", icc_profile=profile)
    assert open_image(tagged).digest == open_image(plain).digest
