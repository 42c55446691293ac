"""Frames are counted from the container, and no further than a bound."""

from __future__ import annotations

import io
import struct

import PIL.Image
import pytest
from picture_files import encode, png, png_chunk, scene
from test_encoded import riff, webp_chunk

from chiasm.errors import BrokenImage
from chiasm.media import open_image, read_header
from chiasm.media.frames import MOST_FRAMES, count_frames


def frames_of(data: bytes) -> int:
    return read_header(data).frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("many", [1, 2, 12])
def test_as_many_as_pillow_counts(kind: str, many: int) -> None:
    pictures = [scene().rotate(90 * turn + turn) for turn in range(many)]
    more = {"save_all": True, "append_images": pictures[1:]} if many > 1 else {}
    data = encode(pictures[0], kind, **more)
    assert getattr(PIL.Image.open(io.BytesIO(data)), "n_frames", 1) == many
    assert frames_of(data) == many


def test_frames_of_their_own_colours_are_counted() -> None:
    pictures = [scene().quantize(2**bits) for bits in (1, 4, 8)]
    data = encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    assert frames_of(data) == 3


def gif_of_a_million() -> bytes:
    frame = b"," + bytes(4) + struct.pack("<HH", 1, 1) + b"\0\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + bytes(6) + frame * 1_000_000 + b";"


def png_of_many() -> bytes:
    control = png_chunk(b"fcTL", bytes(26))
    head = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    return png(1, 1, rows=b"\0\0", before=head + control * 40_000)


def test_counting_ends() -> None:
    assert frames_of(gif_of_a_million()) == MOST_FRAMES
    assert count_frames(io.BytesIO(png_of_many()), "PNG") == MOST_FRAMES


def test_a_number_that_is_only_stated_is_not_believed() -> None:
    data = png(1, 1, rows=b"\0\0", before=png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))
    assert count_frames(io.BytesIO(data), "PNG") == 1


def test_webp_of_endless_frames_never_reaches_its_decoder() -> None:
    still = encode(scene(4, 4), "WEBP", lossless=True)[12:]
    frame = webp_chunk(b"ANMF", bytes(6) + b"\3\0\0\3\0\0" + bytes(4) + still)
    canvas = webp_chunk(b"VP8X", b"\2\0\0\0\3\0\0\3\0\0") + webp_chunk(b"ANIM", bytes(6))
    assert frames_of(riff(canvas, frame * 3)) == 3
    for call in (read_header, open_image):
        with pytest.raises(BrokenImage):
            call(riff(canvas, frame * 10_001))


def test_avif_that_states_millions_of_frames_never_reaches_its_decoder() -> None:
    pictures = [scene().rotate(turn) for turn in (0, 90, 180)]
    data = encode(pictures[0], "AVIF", save_all=True, append_images=pictures[1:])
    at = data.index(b"stts") + 8
    assert struct.unpack_from(">II", data, at) == (1, 3)
    many = data[: at + 4] + struct.pack(">I", 2_000_000) + data[at + 8 :]
    for call in (read_header, open_image):
        with pytest.raises(BrokenImage):
            call(many)


def test_gif_of_endless_blocks_is_refused() -> None:
    data = encode(scene(), "GIF")[:-1] + b"!\xfe" + b"\1 " * 1_100_000 + b"\0;"
    with pytest.raises(BrokenImage):
        read_header(data)


def test_webp_of_endless_chunks_is_refused() -> None:
    data = riff(encode(scene(), "WEBP")[12:], webp_chunk(b"NONE", b"") * 110_000)
    with pytest.raises(BrokenImage):
        read_header(data)
