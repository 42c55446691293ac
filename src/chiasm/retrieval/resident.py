"""What is held in memory of a collection's rows, so that a search touches no disk.

Scalars stay in Arrow batches as they were read (about 300 bytes an item); Python objects are made
for hits alone. Rows are numbered in the order they were read; a row is never moved, only marked
dead, so a search can go on while others are added or removed.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chiasm.retrieval.exact import ExactVectors, Rows
from chiasm.retrieval.filters import Filter, Mask, MetadataColumns
from chiasm.retrieval.store import Item, KnownFile, Vectors, timestamp

# `stamp` is a random number that is new each time a row is written, so two states of a table can
# be compared without reading more than that.
SCALARS = (
    "id",
    "digest",
    "source",
    "text",
    "metadata",
    "width",
    "height",
    "added_at",
    "duplicate_of",
    "picture",
    "perceptual_hash",
    "file_digest",
    "file_size",
    "file_mtime_ns",
    "stamp",
)

T = TypeVar("T", bound=np.generic)


class Growing(Generic[T]):
    """A numpy vector that can be appended to."""

    def __init__(self, dtype: type[T]) -> None:
        self._array: npt.NDArray[T] = np.empty(1024, dtype)
        self._count = 0

    def extend(self, values: npt.NDArray[T]) -> None:
        """Append; the values that were returned earlier stay as they are."""
        needed = self._count + len(values)
        if needed > len(self._array):
            larger = np.empty(max(needed, 2 * len(self._array)), self._array.dtype)
            larger[: self._count] = self._array[: self._count]
            self._array = larger
        self._array[self._count : needed] = values
        self._count = needed

    @property
    def values(self) -> npt.NDArray[T]:
        """What is there: [count]."""
        return self._array[: self._count]


class ResidentRows:
    """The rows of one collection in memory. Not locked: the store does that."""

    def __init__(self, dimension: int, *, with_vectors: bool) -> None:
        self.dimension = dimension
        self.exact = ExactVectors(dimension) if with_vectors else None
        self.row_of: dict[str, int] = {}
        self.dead = 0
        self._batches: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self._stamps = Growing(np.int64)
        self._row_ids = Growing(np.uint64)
        self._added = Growing(np.int64)
        self._hashes = Growing(np.uint64)
        self._alive = np.empty(0, np.bool_)
        self._columns = MetadataColumns()
        self._digests: dict[str, int] | None = None
        self._indexed_digests = 0

    def __len__(self) -> int:
        """Rows, dead ones included."""
        return len(self._alive)

    @property
    def living(self) -> int:
        """Items."""
        return len(self._alive) - self.dead

    @property
    def stamps(self) -> npt.NDArray[np.int64]:
        """int64 [rows]."""
        return self._stamps.values

    @property
    def row_ids(self) -> npt.NDArray[np.uint64]:
        """uint64 [rows]: Lance's own row addresses, as of the last time they were read."""
        return self._row_ids.values

    @property
    def alive(self) -> Mask:
        """Which rows are items, bool [rows]; a new array whenever it changes."""
        return self._alive

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows. The batch holds SCALARS, `_rowid`, and `vector` when vectors are held."""
        if batch.num_rows == 0:
            return
        first = len(self)
        self._starts.append(first)
        self._batches.append(batch.select(list(SCALARS)))
        self.row_of.update(
            zip(batch.column("id").to_pylist(), range(first, first + batch.num_rows), strict=True)
        )
        self._stamps.extend(batch.column("stamp").to_numpy())
        self._row_ids.extend(batch.column("_rowid").to_numpy())
        self._added.extend(batch.column("added_at").to_numpy())
        self._hashes.extend(batch.column("perceptual_hash").to_numpy())
        self._alive = np.concatenate([self._alive, np.ones(batch.num_rows, np.bool_)])
        if self.exact is not None:
            self.exact.append(vectors_of(batch.column("vector")))

    def bury(self, rows: Rows) -> None:
        """Mark rows dead. Call it before appending what takes their place."""
        alive = self._alive.copy()
        alive[rows] = False
        self._alive = alive
        self.dead += len(rows)
        for row in rows.tolist():
            self.row_of.pop(str(self._value(row, "id")), None)

    def move(self, rows: Rows, row_ids: npt.NDArray[np.uint64]) -> None:
        """Note where Lance now keeps these rows."""
        self.row_ids[rows] = row_ids

    def item(self, row: int) -> Item:
        """The item of a row."""
        batch, offset = self._place(row)
        values = {name: batch.column(name)[offset].as_py() for name in SCALARS[:9]}
        values["metadata"] = json.loads(values["metadata"])
        values["added_at"] = timestamp(values["added_at"])
        return Item(**values)

    def picture(self, row: int) -> str:
        """Where the full picture is."""
        return str(self._value(row, "picture"))

    def latest(self) -> int:
        """The largest `added_at`, in microseconds; 0 when there is none."""
        return int(self._added.values.max()) if len(self) else 0

    def mask(self, condition: Filter | None) -> Mask | None:
        """Which rows are alive and satisfy the filter, bool [rows]; None when all are."""
        if condition is None:
            return self._alive if self.dead else None
        for batch, start in zip(self._batches, self._starts, strict=True):
            if start >= len(self._columns):
                self._columns.extend(batch.column("metadata").to_pylist())
        return self._columns.mask(condition) & self._alive

    def ordered(
        self, mask: Mask | None, limit: int, *, after: int | None, newest_first: bool
    ) -> Rows:
        """Up to `limit` rows in the order they were added, or in the reverse of it.

        after: a moment in microseconds; the rows that come after it in that order, or all.
        """
        place = -self._added.values if newest_first else self._added.values
        wanted = np.ones(len(place), np.bool_) if mask is None else mask
        if after is not None:
            wanted = wanted & (place > (-after if newest_first else after))
        rows = np.flatnonzero(wanted)
        if len(rows) > limit:
            rows = rows[np.argpartition(place[rows], limit - 1)[:limit]]
        ordered: Rows = rows[np.argsort(place[rows], kind="stable")]
        return ordered

    def with_digest(self, digests: Iterable[str]) -> int | None:
        """A living row with one of these pixel or file digests."""
        index = self._digest_index()
        for digest in digests:
            row = index.get(digest)
            if row is not None and self._alive[row]:
                return row
        return None

    def alike(self, perceptual_hash: int, max_distance: int) -> Rows:
        """Living rows within a Hamming distance, nearest first."""
        distances = np.bitwise_count(self._hashes.values ^ np.uint64(perceptual_hash))
        rows = np.flatnonzero((distances <= max_distance) & self._alive)
        nearest: Rows = rows[np.argsort(distances[rows], kind="stable")]
        return nearest

    def known_files(self) -> dict[str, KnownFile]:
        """By source: the items whose picture is a file."""
        known: dict[str, KnownFile] = {}
        for batch, start in zip(self._batches, self._starts, strict=True):
            pictures = batch.column("picture").to_pylist()
            sizes = batch.column("file_size").to_pylist()
            times = batch.column("file_mtime_ns").to_pylist()
            digests = batch.column("file_digest").to_pylist()
            for offset, picture in enumerate(pictures):
                if picture == "source" and self._alive[start + offset]:
                    item = self.item(start + offset)
                    known[item.source] = KnownFile(
                        item, sizes[offset], times[offset], digests[offset]
                    )
        return known

    def stored_digests(self) -> list[str]:
        """Digests of the living items whose full picture the collection keeps."""
        return [
            digest
            for batch, start in zip(self._batches, self._starts, strict=True)
            for offset, (digest, picture) in enumerate(
                zip(
                    batch.column("digest").to_pylist(),
                    batch.column("picture").to_pylist(),
                    strict=True,
                )
            )
            if picture == "stored" and self._alive[start + offset]
        ]

    def items(self, rows: Rows | Sequence[int]) -> list[Item]:
        """The items of some rows, in that order."""
        return [self.item(int(row)) for row in rows]

    def _digest_index(self) -> dict[str, int]:
        if self._digests is None:
            self._digests = {}
        for batch, start in zip(self._batches, self._starts, strict=True):
            if start >= self._indexed_digests:
                for name in ("file_digest", "digest"):
                    for offset, digest in enumerate(batch.column(name).to_pylist()):
                        if digest and self._alive[start + offset]:
                            self._digests[digest] = start + offset
                self._indexed_digests = start + batch.num_rows
        return self._digests

    def _place(self, row: int) -> tuple[pa.RecordBatch, int]:
        number = bisect_right(self._starts, row) - 1
        return self._batches[number], row - self._starts[number]

    def _value(self, row: int, name: str) -> object:
        batch, offset = self._place(row)
        return batch.column(name)[offset].as_py()


def vectors_of(column: pa.Array) -> Vectors:
    """float32 [rows, dimension] from an Arrow fixed-size list, without a copy."""
    values = column.flatten().to_numpy(zero_copy_only=True)
    vectors: Vectors = values.reshape(len(column), column.type.list_size)
    return vectors
