from __future__ import annotations

import os
from pathlib import Path

import pytest
from picture_files import encode, scene

from chiasm.errors import ImageError, InvalidRequest
from chiasm.media import IMAGE_SUFFIXES, find_images, open_image


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_pictures_are_found_below_in_order(tmp_path: Path) -> None:
    names = ["b.PNG", "a/2.jpg", "a/10.Jpeg", "a/deep/er/x.webp", "c.avif", "a.tiff"]
    touch(*(tmp_path / name for name in names))
    touch(tmp_path / "notes.txt", tmp_path / "jpg", tmp_path / "a" / "x.jpg.part")
    assert found(tmp_path) == sorted(names, key=lambda name: Path(name).parts)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    touch(
        tmp_path / ".x.jpg", tmp_path / "._y.jpg", tmp_path / ".git" / "z.jpg", tmp_path / "a.jpg"
    )
    assert found(tmp_path) == ["a.jpg"]
    assert found(tmp_path / ".git") == ["z.jpg"]


def test_loops_of_links_end_and_nothing_is_found_twice(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "x.jpg", tmp_path / "b" / "y.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert found(tmp_path) == ["a/across/y.jpg", "a/x.jpg"]


def test_link_to_a_picture_is_a_picture_and_a_dangling_one_tells_so(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "x.png").write_bytes(encode(scene(), "PNG"))
    (folder / "good.png").symlink_to(tmp_path / "x.png")
    (folder / "bad.png").symlink_to(tmp_path / "gone.png")
    bad, good = find_images(folder)
    assert open_image(good).size == (64, 48)
    with pytest.raises(ImageError, match="no such file"):
        open_image(bad)


def test_folder_named_like_a_picture(tmp_path: Path) -> None:
    touch(tmp_path / "album.jpg" / "x.jpg")
    assert found(tmp_path) == ["album.jpg/x.jpg"]


def test_very_deep_folders(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(400):
        folder = folder / "d"
    folder.mkdir(parents=True)
    touch(folder / "x.jpg")
    assert len(found(tmp_path)) == 1


def test_what_is_not_a_folder_is_refused_before_the_first_picture(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path / "gone"):
        with pytest.raises(InvalidRequest, match="is not a folder"):
            find_images(path)


def test_folder_that_may_not_be_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a" / "x.jpg", tmp_path / "b.jpg")
    scandir = os.scandir

    def deny(path: Path) -> object:
        if path == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    reported: list[Path] = []
    assert list(find_images(tmp_path, on_unreadable=reported.append)) == [tmp_path / "b.jpg"]
    assert reported == [tmp_path / "a"]
    assert found(tmp_path) == ["b.jpg"]
    assert str(tmp_path / "a") in caplog.text


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"} <= (
        IMAGE_SUFFIXES
    )
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in IMAGE_SUFFIXES)
