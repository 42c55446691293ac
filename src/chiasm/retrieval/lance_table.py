"""The Lance table of a collection: its columns, its files, and how they reach the disk."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.errors import StoreError
from chiasm.retrieval.lance import lancedb
from chiasm.retrieval.store import Record, microseconds

TABLE = "items"
# A folder's time of last change is only as fine as the kernel's clock tick.
CLOCK_TICK_NS = 50_000_000

_MANY_FRAGMENTS = 64
_TOO_MANY_FRAGMENTS = 256
_SYNCED_FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")

_random = random.SystemRandom()


def schema(dimension: int) -> pa.Schema:
    """The table's columns. `added_at` is in microseconds since 1970, UTC, and unique."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("added_at", pa.int64(), nullable=False),
            pa.field("duplicate_of", pa.string()),
            pa.field("picture", pa.string(), nullable=False),
            pa.field("perceptual_hash", pa.uint64(), nullable=False),
            pa.field("file_digest", pa.string(), nullable=False),
            pa.field("file_size", pa.int64(), nullable=False),
            pa.field("file_mtime_ns", pa.int64(), nullable=False),
            pa.field("stamp", pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
        ]
    )


def to_arrow(records: Sequence[Record], dimension: int) -> pa.Table:
    """The rows of some records, each with a new stamp."""
    columns: dict[str, Any] = {
        name: [getattr(record.item, name) for record in records]
        for name in ("id", "digest", "source", "text", "width", "height", "duplicate_of")
    }
    columns["metadata"] = [
        json.dumps(record.item.metadata, ensure_ascii=False, allow_nan=False) for record in records
    ]
    columns["added_at"] = [microseconds(record.item.added_at) for record in records]
    for name in (
        "picture",
        "perceptual_hash",
        "file_digest",
        "file_size",
        "file_mtime_ns",
        "thumbnail",
    ):
        columns[name] = [getattr(record, name) for record in records]
    columns["stamp"] = [new_stamp() for _ in records]
    matrix = np.stack([record.vector for record in records]).astype(np.float32, copy=False)
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), dimension)
    return pa.table(columns, schema=schema(dimension))


def new_stamp() -> int:
    """A random number that no other row has: it tells whether a row was written since."""
    return _random.getrandbits(63)


def count_rows(folder: Path) -> int:
    """How many rows the table of a collection's folder has; nothing is loaded. StoreError."""
    try:
        return int(lancedb.connect(folder).open_table(TABLE).count_rows())
    except Exception as error:  # Lance raises many kinds, none of them documented
        raise StoreError(
            f"The collection {folder.name!r} could not be read.",
            hint=f"Look at the folder {folder}: is it complete?",
        ) from error


def is_scattered(stats: Mapping[str, Any]) -> bool:
    """Whether the rows lie in so many files that gathering them is worth its price.

    It writes all of them again, so it waits until a third of them has come since the last time, or
    until the files are too many to open for each reader.
    """
    fragments = stats["fragment_stats"]
    rows: int = stats["num_rows"]
    loose: int = rows - fragments["lengths"]["max"]
    count: int = fragments["num_small_fragments"]
    return count >= _TOO_MANY_FRAGMENTS or (count >= _MANY_FRAGMENTS and 3 * loose >= rows)


def sync_since(table: Path, started_ns: int) -> None:
    """Hand every file below the table that is newer to the disk, then their folders."""
    for name in _SYNCED_FOLDERS:
        folder = table / name
        if not folder.is_dir():
            continue
        fresh = False
        for entry in os.scandir(folder):
            try:
                if entry.stat().st_mtime_ns < started_ns - CLOCK_TICK_NS:
                    continue
            except FileNotFoundError:  # tidied away by another process
                continue
            if entry.is_file():
                _sync(Path(entry.path))
            fresh = True
        if fresh:
            _sync(folder)
    _sync(table)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except PermissionError:
        if os.name == "nt" and path.is_dir():  # Windows does not open folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
