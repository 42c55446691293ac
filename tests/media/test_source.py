"""Paths, addresses and data URLs."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest
from picture_files import encode, exif, scene

from chiasm.errors import BrokenImage, ImageError, ImageTooLarge, NotAnImage
from chiasm.media import Limits, open_data_url, open_image, read_header

JPEG = encode(scene(), "JPEG", exif=exif(6))
TEXT = base64.b64encode(JPEG).decode()
assert "+" in TEXT
assert "/" in TEXT


# Files ------------------------------------------------------------------------------------------


def refused(source: Path | str, words: str, kind: type[ImageError] = ImageError) -> ImageError:
    with pytest.raises(kind, match=words) as caught:
        read_header(source)
    with pytest.raises(kind, match=words) as caught:
        open_image(source)
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    assert refused(path, "no such file").source == str(path)
    refused(path / "below.jpg", "no such file")


def test_folder(tmp_path: Path) -> None:
    refused(tmp_path, "a folder, not a file")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").touch()
    refused(tmp_path / "cat.jpg", "it is empty")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(JPEG)
    path.chmod(0)
    refused(path, "may not be read")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/etc/secret")

    path = tmp_path / "cat.jpg"
    path.write_bytes(JPEG)
    monkeypatch.setattr(Path, "open", denied)
    assert "secret" not in str(refused(path, "may not be read"))


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.jpg")
    refused(tmp_path / "cat.jpg", "not an ordinary file")


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").symlink_to(tmp_path / "cat.jpg")
    refused(tmp_path / "cat.jpg", "leads back to itself")


def test_senseless_paths() -> None:
    refused("cat\0.jpg", "not the path of a file")
    error = refused("iVBORw0KGgoAAAANSUhEUg" * 100_000, "neither a data URL nor the path")
    assert len(str(error)) < 400, "a picture must not end in a message"


def test_names_are_printable(tmp_path: Path) -> None:
    error = refused(tmp_path / "two\nlines\x1b[31m.jpg", "no such file")
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.write(JPEG)
        file.truncate(50 * 1024**3)  # sparse
    started = time.perf_counter()
    refused(path, "larger than the limit of 67,108,864 bytes", ImageTooLarge)
    assert time.perf_counter() - started < 0.5


def test_name_replaces_the_path_in_messages(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "cat.jpg", name="upload 3")
    assert str(caught.value) == "upload 3: there is no such file."


def test_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    for data in (JPEG, JPEG[:300], b"text", b""):
        path.write_bytes(data)
        for function in (open_image, read_header):
            with contextlib.suppress(ImageError):
                function(path)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    opened = [link.readlink() for link in descriptors.iterdir() if link.is_symlink()]
    assert path not in opened


# Addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/cat.jpg",
        "HTTPS://example.com/cat.jpg",
        " https://example.com/cat.jpg",
        "http:\\\\example.com\\cat.jpg",
        "http:/\\169.254.169.254/latest",
        "file:///etc/passwd",
        "ftp://example.com/cat.jpg",
        "s3://bucket/cat.jpg",
    ],
)
def test_addresses_are_not_fetched(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    error = refused(address, "not fetched")
    assert error.hint
    with pytest.raises(ImageError, match="not a data URL"):
        open_data_url(address)


def test_a_data_url_is_not_a_path(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(JPEG)
    with pytest.raises(ImageError, match="not a data URL"):
        open_data_url(str(path))


# Data URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/jpeg;base64,{TEXT}",
        f"DATA:IMAGE/JPEG;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;base64,{TEXT}",
        f"data:application/octet-stream;charset=utf-8;name=cat.jpg;base64,{TEXT}",
        f"data:image/jpeg;base64,{quote(TEXT, safe='')}",
        f"data:image/jpeg;base64,{TEXT.replace('+', '-').replace('/', '_')}",
        f"data:image/jpeg;base64,{TEXT.rstrip('=')}",
        "data:image/jpeg;base64," + "\r\n".join(TEXT[n : n + 76] for n in range(0, len(TEXT), 76)),
        f"data:image/jpeg;base64, {TEXT}\n",
        f"data:image/jpeg,{quote_from_bytes(JPEG, safe='')}",
    ],
    ids=[
        "plain", "upper case", "no type", "another type", "parameters", "percent-encoded",
        "URL-safe alphabet", "no padding", "lines", "spaces", "percent-encoded bytes",
    ],
)  # fmt: skip
def test_ways_to_write_a_data_url(url: str) -> None:
    expected = open_image(JPEG)
    assert open_data_url(url) == expected
    assert open_image(url).original_size == (48, 64)
    assert read_header(url) == read_header(JPEG)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:", "comma"),
        (f"data:image/jpeg;base64{TEXT}", "comma"),
        ("data:image/jpeg;base64,", "empty"),
        ("data:image/jpeg;base64,====", "empty"),
        ("data:image/jpeg;base64,A", "malformed"),
        (f"data:image/jpeg;base64,{TEXT[:100]}!{TEXT[100:]}", "malformed"),
        (f"data:image/jpeg;base64,{TEXT[:100]}={TEXT[100:]}", "malformed"),
        (f"data:image/jpeg;base64,{TEXT[:100]}é{TEXT[100:]}", "malformed"),
        (f"data:image/jpeg;base64,{TEXT[:100]}%FF{TEXT[100:]}", "malformed"),
        (f"data:image/jpeg,{TEXT}", "not a picture"),
        ("data:text/plain;base64,aGVsbG8=", "not a picture"),
    ],
)  # fmt: skip
def test_malformed_data_urls(url: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        open_data_url(url, name="messages[0].content[1]")
    assert caught.value.source == "messages[0].content[1]"
    assert TEXT[:40] not in str(caught.value)


def test_truncated_data_url_is_a_broken_picture() -> None:
    whole = len(TEXT) // 2 // 4 * 4
    with pytest.raises(BrokenImage):
        open_data_url(f"data:image/jpeg;base64,{TEXT[:whole]}")


def test_a_web_page_in_a_data_url() -> None:
    with pytest.raises(NotAnImage):
        open_data_url("data:text/html,<script>alert(1)</script>")


@pytest.mark.parametrize("fill", ["A", "%41", " ", "A" * 76 + "\n", "é"])
@pytest.mark.parametrize("kind", [";base64", ""])
def test_length_is_checked_before_decoding(
    fill: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded before its length was checked")

    monkeypatch.setattr("binascii.a2b_base64", decode)
    url = f"data:image/jpeg{kind}," + fill * (9_000_000 // len(fill))
    with pytest.raises(ImageTooLarge, match="limit of 1,000,000 bytes"):
        open_data_url(url, limits=Limits(max_bytes=1_000_000))


def test_the_limit_itself_is_allowed() -> None:
    limits = Limits(max_bytes=len(JPEG))
    for text in (TEXT, TEXT.rstrip("="), quote(TEXT, safe="")):
        assert open_data_url(f"data:;base64,{text}", limits=limits).size == (48, 64)
    with pytest.raises(ImageTooLarge):
        open_data_url(f"data:;base64,{TEXT}", limits=Limits(max_bytes=len(JPEG) - 1))
