"""Finding the pictures in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from chiasm.errors import InvalidRequest

IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png",
        ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""Lower-case suffixes by which `find_images` takes a file for a picture."""

_log = logging.getLogger(__name__)


def find_images(
    folder: Path, *, on_unreadable: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Every file below `folder` with a picture's suffix, in the order of their paths.

    Names that begin with a dot are skipped, files and folders alike. Symbolic links are followed,
    but no folder is entered twice, so a loop of links ends. A link that leads nowhere is found
    like a file: opening it then says what is wrong with it.

    on_unreadable: called with each folder that may not be listed; by default that is logged.

    Raises `InvalidRequest` at once if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder.")
    return _walk(folder, on_unreadable or _log_unreadable)


def _walk(folder: Path, on_unreadable: Callable[[Path], None]) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    waiting: list[tuple[Path, bool]] = [(folder, True)]  # a stack: the next path is the last
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
            continue
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
        except OSError:
            on_unreadable(path)
            continue
        waiting.extend(
            (path / entry.name, _is_folder(entry))
            for entry in entries
            if not entry.name.startswith(".")
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _log_unreadable(folder: Path) -> None:
    _log.warning("%s could not be listed and is skipped", folder)
