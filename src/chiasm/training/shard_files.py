"""The files of a folder of shards, each written beside its place and renamed when it is whole.

While a build runs, `.build/` beside the shards remembers what each finished shard contains. A
shard counts as finished when both it and its record are there; whatever else a kill left behind is
written again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chiasm.errors import ConfigurationError, NoSpace, UnusableData
from chiasm.training.shards import MANIFEST

_BUILD = ".build"
_SETTINGS = "settings.json"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


class ShardFile:
    """A shard that is being written. Nothing is at its place until `finish`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{number:05d}.tar"
        self.samples = 0
        self._partial = self.path.with_suffix(".tar.partial")
        self._file = _Digesting(self._partial)
        # Short names and small files: the oldest format does, and every program reads it.
        self._archive = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    @property
    def nbytes(self) -> int:
        """Written so far."""
        return self._file.nbytes

    @property
    def closed_size(self) -> int:
        """Bytes that it will have: two empty blocks more, filled up to whole records."""
        return -(-(self.nbytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """The files of one sample, by their suffixes."""
        for suffix, data in files.items():
            entry = tarfile.TarInfo(f"{key}.{suffix}")
            entry.size = len(data)  # no time, no owner: equal samples make equal bytes
            self._archive.addfile(entry, io.BytesIO(data))
        self.samples += 1

    def finish(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Bring it to the disk and put it in place; returns its entry for the manifest."""
        self._archive.close()
        self._file.sync()
        entry = {
            "name": self.path.name,
            "samples": self.samples,
            "bytes": self._file.nbytes,
            "sha256": self._file.digest(),
        }
        write_json(_record(self.path), {**record, "shard": entry})
        self._partial.replace(self.path)
        sync_folder(self.path.parent)
        return entry

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.discard()
        self._partial.unlink(missing_ok=True)


class _Digesting(io.RawIOBase):
    """A file that knows its own digest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hasher = hashlib.sha256()
        self.nbytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.nbytes

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hasher.update(data)
        self.nbytes += len(data)
        return len(data)

    def digest(self) -> str:
        return self._hasher.hexdigest()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        # What is still in its buffer may not fit on the disk; it is not wanted any more.
        with suppress(OSError):
            self._file.close()


# The folder -------------------------------------------------------------------------------------


def begin(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make the folder ready: the records of the shards that are finished already, in order.

    Raises ConfigurationError if it holds shards that were not begun with the same settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build = folder / _BUILD
    before = _read(build / _SETTINGS)
    if before is None:
        others = [path.name for path in folder.iterdir() if path.name != _BUILD]
        if others:
            raise ConfigurationError(
                f"{folder} is not empty: it holds {sorted(others)[0]}.",
                hint="Name another folder, or delete this one.",
                param="out",
            )
        build.mkdir(exist_ok=True)
        write_json(build / _SETTINGS, settings)
    elif before != json.loads(json.dumps(settings)):
        differing = sorted(name for name in settings if before.get(name) != settings[name])
        raise ConfigurationError(
            f"{folder} was begun with other settings or other data ({', '.join(differing)}).",
            hint="Name another folder, or delete this one.",
            param="out",
        )
    for path in folder.glob("*.partial"):
        path.unlink()
    records: list[dict[str, Any]] = []
    while True:
        path = folder / f"{len(records):05d}.tar"
        record = _read(_record(path))
        if record is None or not path.is_file() or path.stat().st_size != record["shard"]["bytes"]:
            break
        records.append(record)
    return records


def finished(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder whose build has come to its end."""
    return _read(folder / MANIFEST)


def end(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, and forget the records."""
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / _BUILD)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """So that a rename survives a loss of power, where the system has such a thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the system says about the disk that is written to, as errors for a user."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(
                f"There is no space left for shards in {folder}. Finished shards are kept.",
                hint="Make room and run the command again: it goes on.",
            ) from error
        if error.errno in _FORBIDDEN:
            raise UnusableData(f"{folder} cannot be written.", param="out") from error
        raise


def _record(shard: Path) -> Path:
    return shard.parent / _BUILD / f"{shard.stem}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
