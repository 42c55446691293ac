"""What leaves of a picture: its pixels and nothing else."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image
import pytest
from picture_files import encode, exif, icc_profile, one_of_each, photograph, quarters, scene
from test_encoded import JPEG, LADEN, PLAIN, PNG

from chiasm.errors import BrokenImage, ImageTooLarge
from chiasm.media import Image, Limits, Sent, for_sending, open_image, read_encoded
from chiasm.media.walk import is_plain

LIMITS = Limits()
GPS = 0x8825


def send(data: bytes, **options: object) -> Sent:
    return for_sending(read_encoded(data, limits=LIMITS), limits=LIMITS, **options)  # type: ignore[arg-type]


def bytes_of(sent: Sent) -> bytes:
    return base64.b64decode(sent.base64, validate=True)


def format_of(sent: Sent) -> str:
    kind = PIL.Image.open(io.BytesIO(bytes_of(sent))).format
    assert kind is not None
    assert sent.media_type == f"image/{kind.lower()}"
    return kind


def pixels_of(sent: Sent) -> Image:
    image = open_image(bytes_of(sent))
    assert image.size == sent.size
    return image


@pytest.mark.parametrize("which", PLAIN)
def test_a_file_that_travels_is_sent_as_it_came(which: str) -> None:
    sent = send(PLAIN[which])
    assert bytes_of(sent) == PLAIN[which]
    assert sent.change == "none"
    format_of(sent)


def test_the_callers_own_base64_is_sent() -> None:
    text = base64.b64encode(PNG).decode()
    image = read_encoded(f"data:image/png;base64,{text}", limits=LIMITS)
    sent = for_sending(image, limits=LIMITS)
    assert sent.base64 is image.base64
    assert sent.data_url == f"data:image/png;base64,{text}"


@pytest.mark.parametrize("which", sorted(set(LADEN) - {"webp-padding", "jpeg-wide-table"}))
def test_whatever_is_made_anew_carries_nothing_else(which: str) -> None:
    sent = send(LADEN[which])
    assert sent.change == "remade"
    assert bytes_of(sent) != LADEN[which]
    assert is_plain(bytes_of(sent), format_of(sent))
    assert b"hidden" not in bytes_of(sent)
    pixels_of(sent)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_position_thumbnail_comment_and_profile_stay_here(kind: str) -> None:
    tags = exif(6)
    tags.get_ifd(GPS)[1] = "N"
    tags.get_ifd(GPS)[2] = (48.0, 51.0, 29.6)
    tags[0x010E] = "a secret description"
    profile = icc_profile(np.eye(3), 2.2)
    data = encode(quarters(), kind, exif=tags, icc_profile=profile)
    assert b"a secret description" in data
    sent = send(data)
    there = PIL.Image.open(io.BytesIO(bytes_of(sent)))
    assert not there.getexif()
    assert not set(there.info) & {"exif", "icc_profile", "xmp", "comment", "photoshop"}
    for secret in (b"secret", b"Exif", b"acsp", b"ICC_PROFILE"):
        assert secret not in bytes_of(sent)
    # Lying on its side in the file, upright where it arrives.
    assert sent.size == (32, 64)
    corners = pixels_of(sent).pixels[[4, 4, -4, -4], [4, -4, 4, -4]]
    expected = open_image(data).pixels[[4, 4, -4, -4], [4, -4, 4, -4]]
    np.testing.assert_allclose(corners.astype(int), expected.astype(int), atol=12)


@pytest.mark.parametrize("which", ["png-text", "png-exif", "png-animated", "gif", "bmp", "tiff"])
def test_what_was_exact_stays_exact(which: str) -> None:
    sent = send(LADEN[which])
    assert format_of(sent) == "PNG"
    assert pixels_of(sent) == open_image(LADEN[which])


def test_exact_webp_is_for_who_reads_no_png() -> None:
    sent = send(LADEN["gif"], formats=frozenset({"WEBP", "JPEG"}))
    assert format_of(sent) == "WEBP"
    assert pixels_of(sent) == open_image(LADEN["gif"])


def test_pixels_without_a_file_are_sent_exactly() -> None:
    image = open_image(encode(photograph(90, 70), "JPEG"))
    assert pixels_of(for_sending(image, limits=LIMITS)) == image


@pytest.mark.parametrize("which", ["jpeg-exif", "webp-exif", "avif"])
def test_what_was_lossy_is_sent_as_a_good_jpeg(which: str) -> None:
    sent = send(LADEN[which])
    assert format_of(sent) == "JPEG"
    there = PIL.Image.open(io.BytesIO(bytes_of(sent)))
    assert {sampling[1:3] for sampling in there.layer} == {(1, 1)}  # type: ignore[attr-defined]
    error = pixels_of(sent).pixels.astype(int) - open_image(LADEN[which]).pixels
    assert np.abs(error).mean() < 2


def test_lossless_webp_with_metadata_stays_exact() -> None:
    data = encode(scene(), "WEBP", lossless=True, exif=exif(1))
    assert pixels_of(send(data)) == open_image(data)


@pytest.mark.parametrize("formats", [{"PNG"}, {"JPEG"}, {"WEBP"}, {"PNG", "WEBP"}])
@pytest.mark.parametrize("which", ["jpeg", "png", "webp"])
def test_only_what_the_receiver_reads_is_sent(which: str, formats: set[str]) -> None:
    sent = send(PLAIN[which], formats=frozenset(formats) | {"GIF"})
    assert format_of(sent) in formats
    error = pixels_of(sent).pixels.astype(int) - open_image(PLAIN[which]).pixels
    assert np.abs(error).mean() < 4


def test_a_receiver_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="must read"):
        send(PNG, formats=frozenset({"GIF"}))


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(100, 75), (301, 17), (800, 600)])
def test_size_is_exactly_what_was_asked_for(kind: str, size: tuple[int, int]) -> None:
    data = encode(photograph(400, 300), kind)
    sent = send(data, max_size=size)
    assert sent.size == size
    expected = PIL.Image.open(io.BytesIO(data)).resize(size, PIL.Image.Resampling.LANCZOS)
    error = pixels_of(sent).pixels.astype(int) - np.asarray(expected)
    assert np.abs(error).mean() < (0.01 if kind == "PNG" else 5)  # what quality 92 costs noise


def test_size_that_it_has_already_changes_nothing() -> None:
    assert send(JPEG, max_size=(64, 48)).change == "none"


def test_too_many_bytes_are_first_compressed_then_made_smaller() -> None:
    data = encode(photograph(400, 300), "PNG")
    whole = len(send(data).base64)
    compressed = send(data, max_bytes=whole // 4)
    assert (compressed.change, compressed.size) == ("compressed", (400, 300))
    smaller = send(data, max_bytes=4_000)
    assert smaller.change == "smaller"
    assert len(smaller.base64) <= 4_000
    width, height = smaller.size
    assert 40 < width < 400
    assert abs(width / height - 4 / 3) < 0.05
    pixels_of(smaller)
    only_png = send(data, max_bytes=whole // 2, formats=frozenset({"PNG"}))
    assert only_png.change == "smaller"
    assert len(only_png.base64) <= whole // 2


def test_noise_has_more_bytes_than_pixels() -> None:
    """Which is more than there is room for where a JPEG's tables are made to measure."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    sent = for_sending(
        Image(noise, (600, 600), name="noise"), formats=frozenset({"JPEG"}), limits=Limits()
    )
    assert sent.media_type == "image/jpeg"
    assert len(sent.base64) > 600 * 600 * 4 / 3
    assert PIL.Image.open(io.BytesIO(base64.b64decode(sent.base64))).size == (600, 600)


def test_bytes_are_those_of_the_base64() -> None:
    length = len(base64.b64encode(JPEG))
    assert send(JPEG, max_bytes=length).change == "none"
    assert send(JPEG, max_bytes=length - 1).change != "none"


def test_nothing_legible_is_refused() -> None:
    with pytest.raises(ImageTooLarge, match="nothing legible"):
        send(encode(photograph(400, 300), "PNG"), max_bytes=100)


def test_broken_pixels_are_found_when_they_are_needed() -> None:
    data = bytearray(one_of_each()["gif"])
    data[len(data) // 4 :] = b""
    with pytest.raises(BrokenImage):
        send(bytes(data))
