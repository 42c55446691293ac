"""Broken, truncated, oversized and hostile files: each ends as one of our errors, at once."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import bombs, encode, one_of_each, photograph, png, png_chunk, scene, tiff

from chiasm.errors import BrokenImage, ImageError, ImageTooLarge, NotAnImage
from chiasm.media import Header, Limits, container, open_image, read_header

# Pytest lifts the filter that keeps Pillow's warnings in; that it works is tested below.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

FILES = one_of_each()
SMALL = Limits(max_bytes=1 << 20, max_pixels=4_000_000, max_side=4096)
REASONS = (
    "this is not a picture.",
    "it is damaged or cut short.",
    "its header is damaged or of an unusual kind.",
    "there is not enough memory to decode it.",
    "it is empty.",
    " files are not read here.",
    f"limit of {SMALL.max_pixels:,} pixels.",
    f"limit of {SMALL.max_side:,} pixels a side.",
    f"limit of {SMALL.max_bytes:,} bytes.",
)


def outcome(function: Callable[..., object], data: bytes) -> str:
    """Run `function` on `data`; "read", or the reason why not. Only an `ImageError` is caught."""
    try:
        result = function(data, limits=SMALL, name="x")
    except ImageError as error:
        refusal = error
    else:
        assert isinstance(result, Header) or result.pixels.size > 0
        return "read"
    assert refusal.reason.endswith(REASONS), refusal.reason
    assert refusal.message == f"x: {refusal.reason}"
    assert refusal.__cause__ is None
    assert refusal.__context__ is None or refusal.__suppress_context__
    return refusal.reason


def attempt(data: bytes) -> str:
    outcome(read_header, data)
    return outcome(open_image, data)


@pytest.mark.parametrize("name", FILES)
def test_cut_short_anywhere(name: str) -> None:
    data = FILES[name]
    assert attempt(data) == "read"
    offsets = sorted(
        {*range(0, min(len(data), 80)), *range(0, len(data), max(1, len(data) // 150))}
    )
    outcomes = [attempt(data[:offset]) for offset in offsets]
    assert outcomes[0] == "it is empty."
    assert outcomes[len(outcomes) // 3] != "read"


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "avif", "bmp", "gif", "tiff-tiff_lzw"])
def test_half_a_file_is_broken(name: str) -> None:
    data = FILES[name]
    with pytest.raises(BrokenImage, match=r"^half\.bin: "):
        open_image(data[: len(data) // (2 if name != "gif" else 6)], name="half.bin")


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(name: str) -> None:
    rng = random.Random(name)
    for _ in range(60):
        data = bytearray(FILES[name])
        for _ in range(rng.choice([1, 2, 8])):
            position = rng.randrange(min(len(data), rng.choice([64, 400, len(data)])))
            data[position] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        attempt(bytes(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(FILES)), st.data())
def test_spliced_files(name: str, choices: st.DataObject) -> None:
    data = FILES[name]
    cut = choices.draw(st.integers(0, len(data)))
    other = FILES[choices.draw(st.sampled_from(sorted(FILES)))]
    middle = choices.draw(st.binary(max_size=40))
    attempt(data[:cut] + middle + other[choices.draw(st.integers(0, len(other))) :])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_not_a_picture(data: bytes) -> None:
    assert attempt(data) != "read"


@pytest.mark.parametrize(
    "error",
    [
        OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError,
        AssertionError, AttributeError, RecursionError, ZeroDivisionError, NotImplementedError,
        struct.error, zlib.error, PIL.UnidentifiedImageError,
    ],
)  # fmt: skip
def test_what_a_decoder_throws_stays_inside(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object) -> None:
        raise error("secret at 0x7f3a")

    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(BrokenImage) as caught:
        open_image(FILES["png"], name="cat.png")
    assert str(caught.value) == "cat.png: it is damaged or cut short."


@pytest.mark.parametrize("error", [MemoryError, PIL.Image.DecompressionBombError])
def test_what_was_too_much_is_called_too_large(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object) -> None:
        raise error("secret at 0x7f3a")

    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageTooLarge) as caught:
        open_image(FILES["png"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_a_broken_picture(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object) -> None:
        raise stop

    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(stop):
        open_image(FILES["png"])


# Not pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, world", "not a picture"),
        (b"BM is how this sentence begins, and it is no bitmap", "not a picture"),
        (b"PK\x03\x04" + bytes(60), "not a picture"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not a picture"),
        (b"\0" * 1000, "not a picture"),
        (b"%PDF-1.7\n", "PDF files are not read here"),
        (b"<svg xmlns=''/>", "SVG files are not read here"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC files are not read here"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC files are not read here"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "not a picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL files are not read here"),
    ],
)
def test_not_an_image(data: bytes, words: str) -> None:
    for function in (open_image, read_header):
        with pytest.raises(NotAnImage, match=words):
            function(data)


def test_formats_that_pillow_knows_and_we_do_not_read_are_refused() -> None:
    for kind in ("PPM", "TGA", "PCX", "ICO", "EPS", "SGI", "DDS"):
        with pytest.raises(NotAnImage):
            open_image(encode(scene(), kind))


# Too large --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bombs())
def test_enormous_claims_are_refused(name: str) -> None:
    data = bombs()[name]
    for function in (open_image, read_header):
        started = time.perf_counter()
        with pytest.raises(ImageTooLarge, match="than the limit of 120,000,000 pixels"):
            function(data)
        assert time.perf_counter() - started < 0.5


MEASURE = """
import json, resource, sys, warnings
from pathlib import Path
from chiasm.errors import ImageError
from chiasm.media import open_image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

paths = sorted(Path(sys.argv[1]).iterdir())
open_image(Path(sys.argv[2]))
before = peak()
for path in paths:
    try:
        open_image(path)
    except ImageError:
        pass
print(json.dumps({"kilobytes": peak() - before}))
"""


def in_a_process_of_its_own(folder: Path, files: dict[str, bytes]) -> tuple[dict[str, int], str]:
    """Open every file in a new Python; how its memory grew, and what it wrote to stderr."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, data in enumerate(files.values()):
        (pictures / f"{number:03}").write_bytes(data)
    sound = folder / "sound.png"
    sound.write_bytes(FILES["png"])
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", MEASURE, str(pictures), str(sound)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def test_enormous_claims_are_refused_without_memory(tmp_path: Path) -> None:
    used, written = in_a_process_of_its_own(tmp_path, bombs())
    assert used["kilobytes"] < 30_000
    assert written == ""


def test_doubtful_metadata_prints_no_warnings(tmp_path: Path) -> None:
    crooked = bytearray(encode(scene(), "MPO", save_all=True, append_images=[scene()]))
    start = crooked.index(b"MPF\0") + 8
    crooked[start : start + 8] = b"\xff" * 8
    tags = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\1\3\0\xff\xff\xff\x7f\0\0\0\0"
    control = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    files = {
        "malformed MPO": bytes(crooked),
        "corrupt EXIF": encode(scene(), "JPEG", exif=tags),
        "invalid APNG": png(1, 1, rows=b"\0\0", before=control + control),
        "100 megapixels": png(10_000, 10_000, bits=1, rows=bytes(100)),
    }
    _, written = in_a_process_of_its_own(tmp_path, files)
    assert written == ""


def test_more_than_pillows_own_guard_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("PNG", "TIFF", "WEBP"):
        assert open_image(encode(scene(), kind)).size == (64, 48)


def test_pillows_guard_is_not_taken_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10**9)
    open_image(encode(scene(), "PNG"))
    assert PIL.Image.MAX_IMAGE_PIXELS == 10**9


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_pixels=64 * 48 - 1), "64 × 48 is more than the limit of 3,071 pixels"),
        (Limits(max_side=63), "64 × 48 is longer than the limit of 63 pixels a side"),
        (Limits(max_bytes=50), "larger than the limit of 50 bytes"),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_limits(name: str, limits: Limits, words: str) -> None:
    for function in (open_image, read_header):
        with pytest.raises(ImageTooLarge) as caught:
            function(FILES[name], limits=limits, name="big")
        assert words in caught.value.message
        assert caught.value.hint


def test_limit_counts_all_pixels_even_where_few_would_be_decoded() -> None:
    data = encode(scene(800, 600), "JPEG")
    with pytest.raises(ImageTooLarge):
        open_image(data, shortest_side=10, limits=Limits(max_pixels=100_000))


# Built to waste time or memory ------------------------------------------------------------------


def progressive_with_many_scans() -> bytes:
    data = encode(photograph(2000, 1500), "JPEG", progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 500 + data[-2:]


HOSTILE = {
    "JPEG padding": lambda: b"\xff\xd8\xff\xe0\0\2" + b"\xff" * 8_000_000,
    "JPEG junk": lambda: b"\xff\xd8\xff\xe0\0\2" + bytes(8_000_000),
    "JPEG scans": progressive_with_many_scans,
    "GIF comments": lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1\1\0" * 1_600_000,
    "PNG chunks": lambda: png(1, 1, before=png_chunk(b"abCd") * 600_000),
    "PNG chunks behind": lambda: png(1, 1, rows=b"\0\0", after=png_chunk(b"abCd") * 600_000),
    "TIFF strips": lambda: tiff(
        {
            256: (4, 1, 10), 257: (4, 1, 10), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
            273: (4, 2_000_000, 512), 278: (4, 1, 1), 279: (4, 2_000_000, 512),
        },
        bytes(8_000_000),
    ),
    "TIFF palette": lambda: tiff(
        {
            256: (4, 1, 10), 257: (4, 1, 10), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 3),
            273: (4, 1, 512), 278: (4, 1, 10), 279: (4, 1, 100), 320: (3, 4_000_000, 512),
        },
        bytes(8_000_000),
    ),
    "TIFF tile": lambda: tiff(
        {
            256: (4, 1, 10), 257: (4, 1, 10), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1),
            322: (4, 1, 40_000), 323: (4, 1, 40_000), 324: (4, 1, 512), 325: (4, 1, 1000),
        },
        bytes(3000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structure_is_refused_soon(name: str) -> None:
    data = HOSTILE[name]()
    started = time.process_time()
    with pytest.raises(BrokenImage):
        open_image(data)
    assert time.process_time() - started < 1.5


def test_ordinary_progressive_and_many_page_files_are_not_taken_for_hostile() -> None:
    assert open_image(encode(photograph(400, 300), "JPEG", progressive=True)).size == (400, 300)
    pages = [scene(8, 8)] * 40
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert read_header(data).frames == 40


def test_tiff_pages_that_overlap_are_counted_in_no_time() -> None:
    """Ten thousand directories of sixty thousand entries each, in one megabyte."""
    data = bytearray(b"II*\0" + struct.pack("<L", 8) + bytes(1_000_000))
    for page in range(10_000):
        start = 8 + 6 * page
        struct.pack_into("<H", data, start, 60_000)
        struct.pack_into("<L", data, start + 2 + 12 * 60_000, start + 6)
    started = time.process_time()
    assert container.tiff_pages(io.BytesIO(data)) > 9_000
    assert time.process_time() - started < 0.5


def test_frames_of_a_long_gif_are_all_counted() -> None:
    frame = encode(photograph(64, 64), "GIF")
    start = frame.index(b",\0\0\0\0")
    many = 150_000 // (len(frame[start:-1]) // 256 + 1)
    data = frame[:start] + frame[start:-1] * many + b";"
    assert read_header(data).frames == many


def test_tiff_pages_that_lead_in_a_circle_are_counted_once() -> None:
    data = bytearray(FILES["tiff-None"])
    (offset,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, offset)
    struct.pack_into("<L", data, offset + 2 + 12 * entries, offset)
    assert read_header(bytes(data)).frames == 1
