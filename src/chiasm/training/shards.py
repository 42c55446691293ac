"""WebDataset shards: tar archives in which the files of one sample lie beside each other.

The convention is img2dataset's: `000123.jpg` with `000123.txt` and, or, `000123.json`. A file's
name up to the first dot after the last slash is the sample's key, the rest tells its kind.
"""

from __future__ import annotations

import gzip
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np

from chiasm.media import IMAGE_SUFFIXES
from chiasm.media.limits import Limits
from chiasm.training import storage
from chiasm.training.fields import Fields, read_fields
from chiasm.training.order import Numbers
from chiasm.training.samples import Damage, Sample
from chiasm.training.tar import CutShort, Member, NotClosed, members

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MANIFEST = "shards.json"

_log = logging.getLogger("chiasm.training")
_LARGEST_TEXT = 1024 * 1024
_TRIES = 3


@dataclass
class Shards:
    """A list of shards as a source of samples. units: their number.

    known: samples in each shard, where a manifest or img2dataset's statistics say so.
    """

    names: list[str]
    fields: Fields
    limits: Limits
    options: Mapping[str, Any]
    known: dict[str, int] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return len(self.names)

    @property
    def samples(self) -> int | None:
        """Samples in all shards, or None if some shard's number is not known."""
        return None if self.counts is None else int(self.counts.sum())

    @cached_property
    def counts(self) -> Numbers | None:
        if any(name not in self.known for name in self.names):
            return None
        return np.array([self.known[name] for name in self.names], dtype=np.int64)

    @property
    def identity(self) -> str:
        """What must be equal for a position to mean the same."""
        return "\n".join(PurePosixPath(name).name for name in self.names)

    def read(self, unit: int, start: int = 0) -> Iterator[Sample | Damage]:
        """The samples of a shard from number `start` on. Each number is yielded once, in order.

        A shard that cannot be opened, or ends too early, is one `Damage` where that was found.
        A read that fails is tried again from where it failed.
        """
        name, position = self.names[unit], start
        for attempt in range(1, _TRIES + 1):
            try:
                with storage.opened(name, self.options) as stream:
                    for found in self._samples(_unpacked(stream, name), unit, position):
                        yield found
                        position = found.position + 1
                return
            except (FileNotFoundError, PermissionError):
                yield Damage(position, "shard missing", name, self._missing(unit, position))
                return
            except (OSError, EOFError, zlib.error) as error:
                _log.warning("%s: reading failed (%s), try %d", name, error, attempt)
                cut = isinstance(error, gzip.BadGzipFile | EOFError | zlib.error)
                if cut or attempt == _TRIES:
                    reason = "shard cut short" if cut else "shard unreadable"
                    yield Damage(position, reason, name, self._missing(unit, position))
                    return
                time.sleep(attempt)

    def _samples(self, stream: BinaryIO, unit: int, start: int) -> Iterator[Sample | Damage]:
        number = -1
        try:
            for number, (key, files) in enumerate(_groups(stream, start, self.limits)):
                if number >= start:
                    yield self._sample(key, files, unit, number)
        except CutShort as cut:
            name, position = self.names[unit], max(number + 1, start)
            if isinstance(cut, NotClosed) and self.known.get(name, 0) <= position:
                return  # nothing says that there should be more
            yield Damage(position, "shard cut short", name, self._missing(unit, position))

    def _missing(self, unit: int, position: int) -> int:
        """How many samples were still to come."""
        return max(1, self.known.get(self.names[unit], 0) - position)

    def _sample(self, key: str, files: dict[str, bytes], unit: int, number: int) -> Sample | Damage:
        where = f"{self.names[unit]}: {key}"
        picture = next((files[kind] for kind in files if f".{kind}" in IMAGE_SUFFIXES), None)
        values: Any = {}
        if "json" in files:
            try:
                values = json.loads(files["json"])
            except (ValueError, RecursionError):
                return Damage(number, "unreadable JSON", where)
            if not isinstance(values, dict):
                return Damage(number, "unreadable JSON", where)
        if picture is None:
            reason = "too large" if "too large" in files else "no picture"
            return Damage(number, reason, where)
        found = read_fields(values, self.fields)
        captions = found.captions
        if not captions and "txt" in files:
            captions = (files["txt"].decode("utf-8", errors="replace").strip(),)
        if not any(captions):
            return Damage(number, "empty caption" if captions else "no caption", where)
        return found.sample(key, unit, number, picture, tuple(filter(None, captions)))


def _groups(stream: BinaryIO, start: int, limits: Limits) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, kind → bytes) of each sample; before number `start` without reading the bytes."""
    key, files, number = None, dict[str, bytes](), -1
    usual: set[str] | None = None  # the kinds of file that the sample before this one had
    try:
        for member in members(stream):
            path = PurePosixPath(member.name)
            stem, dot, kind = path.name.partition(".")
            kind = kind.lower()
            if not dot or not stem or path.name.startswith("."):
                continue  # a folder's own files: ._x of macOS, README
            its_key = str(path.parent / stem)
            if its_key != key or kind in files:
                if key is not None:
                    yield key, files
                    usual = set(files)
                key, files, number = its_key, {}, number + 1
            if number < start:
                files[kind] = b""
            else:
                _take(member, kind, files, limits)
    except CutShort:
        # Whether more files were to follow can only be told from the samples before.
        if key is None or not _complete(files) or files.keys() < (usual or set()):
            raise CutShort from None
        yield key, files
        raise
    if key is not None:
        yield key, files


def _take(member: Member, kind: str, files: dict[str, bytes], limits: Limits) -> None:
    if kind in ("json", "txt"):
        files[kind] = member.read() if member.size <= _LARGEST_TEXT else b""
    elif f".{kind}" in IMAGE_SUFFIXES:
        if member.size <= limits.max_bytes:
            files[kind] = member.read()
        else:
            files["too large"] = b""
    else:
        files[kind] = b""


def _complete(files: dict[str, bytes]) -> bool:
    has_picture = any(f".{kind}" in IMAGE_SUFFIXES for kind in files)
    return has_picture and ("json" in files or "txt" in files)


def _unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith((".gz", ".tgz")):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    return stream


# How many samples there are ---------------------------------------------------------------------


def read_counts(names: list[str], options: Mapping[str, Any]) -> dict[str, int]:
    """Samples by shard: from a `shards.json` beside them, or img2dataset's `00000_stats.json`.

    Statistics are looked for on the local disk only: a hundred thousand requests would be more
    than the number is worth.
    """
    counts: dict[str, int] = {}
    manifests: dict[str, dict[str, int]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in manifests:
            place = f"{folder}/{MANIFEST}" if folder else MANIFEST
            manifests[folder] = _manifest(place, options)
        if base in manifests[folder]:
            counts[name] = manifests[folder][base]
        elif not storage.is_address(name):
            stem = name.removesuffix(".tar")
            count = _object(f"{stem}_stats.json", options).get("successes")
            if isinstance(count, int):
                counts[name] = count
    return counts


def count_locally(names: list[str]) -> dict[str, int]:
    """Samples by shard, counted by passing over the headers. For shards on the local disk."""
    counts = {}
    for name in names:
        number = 0
        try:
            with storage.opened(name, {}) as stream:
                for _ in _groups(_unpacked(stream, name), 1 << 62, Limits()):
                    number += 1
        except (OSError, EOFError, zlib.error, CutShort):
            pass  # said when it is read
        counts[name] = number
    return counts


def _manifest(place: str, options: Mapping[str, Any]) -> dict[str, int]:
    shards = _object(place, options).get("shards")
    if not isinstance(shards, list):
        return {}
    return {
        shard["name"]: shard["samples"]
        for shard in shards
        if isinstance(shard, dict)
        and isinstance(shard.get("name"), str)
        and isinstance(shard.get("samples"), int)
    }


def _object(place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if not storage.exists(place, options):
        return {}
    try:
        content = json.loads(storage.read_bytes(place, 1 << 28, options))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
