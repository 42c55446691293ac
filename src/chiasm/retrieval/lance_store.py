"""The embedded store: one LanceDB table a collection, on local disk.

Lance commits are atomic, and readers in other processes see them at once; writers take turns by a
file lock, so that "look whether it is there, then write" is one step. After each commit the new
files and their folders are synced to the disk. What is claimed: a killed process loses nothing
that was acknowledged and leaves no half batch. After a power cut the acknowledged batches are on
the disk as far as the disk itself keeps its word about `fsync`; a batch that was being written at
that moment may leave a version that Lance refuses to open.

Searches do not go through Lance while the vectors fit a memory budget (see `exact`): Lance's flat
search reads the files again for each query (`benchmarks/search.py` compares the two).
Above it, an approximate index is built in the background and used only if it finds what exact
search finds (see `lance_index`).
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from chiasm.errors import (
    ChiasmError,
    CollectionNotFound,
    InvalidRequest,
    ItemNotFound,
    NoSpace,
    StoreError,
)
from chiasm.retrieval import lance_index
from chiasm.retrieval.exact import BYTES_PER_NUMBER
from chiasm.retrieval.file_lock import FileLock
from chiasm.retrieval.filters import Filter
from chiasm.retrieval.lance import lancedb
from chiasm.retrieval.lance_rows import apply_changes, load, quoted, vectors_on_disk
from chiasm.retrieval.lance_table import (
    CLOCK_TICK_NS,
    TABLE,
    is_scattered,
    new_stamp,
    schema,
    sync_since,
    to_arrow,
)
from chiasm.retrieval.resident import ResidentRows
from chiasm.retrieval.store import Hit, Item, KnownFile, Page, Record, Vectors, microseconds

LOCK = "lock"
EXACT_BYTES = 512 * 1024 * 1024

_COMMIT_ATTEMPTS = 8
# Blank pages are alike by the thousand; the nearest few decide.
_MANY_ALIKE = 16
# Long enough for a reader in another process to move on from the version it reads.
_KEEP_VERSIONS = timedelta(minutes=10)

_log = logging.getLogger(__name__)


class LanceStore:
    """A `Store` in a folder. `exact_bytes`: how much memory the vectors may take."""

    def __init__(self, folder: Path, dimension: int, *, exact_bytes: int = EXACT_BYTES) -> None:
        self.dimension = dimension
        self._folder = folder
        self._name = folder.name
        self._table_folder = folder / f"{TABLE}.lance"
        self._exact_bytes = exact_bytes
        self._writer = FileLock(folder / LOCK)
        self._identity = self._identify()
        self._state = threading.RLock()
        self._seen_change = -1
        self._version = -1
        with self._errors("be opened"):
            self._table = lancedb.connect(folder).open_table(TABLE)
        self._rows = ResidentRows(dimension, with_vectors=True)

    @classmethod
    def create(cls, folder: Path, dimension: int) -> None:
        """Make the empty table in a folder that is there."""
        (folder / LOCK).touch()
        lancedb.connect(folder).create_table(TABLE, schema=schema(dimension))
        sync_since(folder / f"{TABLE}.lance", 0)

    # Writing ------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While it is held, no other thread or process writes. Reentrant."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._writer.held())
            except FileNotFoundError:
                raise self._gone() from None
            self._check_identity()
            yield

    def insert(self, records: Sequence[Record], *, replacing: Sequence[str] = ()) -> None:
        """Write records in one commit; those whose id is in `replacing` take that item's place."""
        if not records:
            return
        table = to_arrow(records, self.dimension)

        def write() -> None:
            if replacing:
                merge = self._table.merge_insert("id").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(table)
            else:
                self._table.add(table)

        with self.writing():
            self._refreshed()
            before = self._version
            self._commit(write)
            if not replacing:
                self._append_own(table, before)

    def update(
        self, id: str, *, text: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Item:
        """Replace the text, the metadata, or both."""
        values: dict[str, Any] = {"stamp": new_stamp()}
        if text is not None:
            values["text"] = text
        if metadata is not None:
            values["metadata"] = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
        with self.writing():
            self._require([id])
            if len(values) > 1:
                where = f"id = {quoted(id)}"
                self._commit(lambda: self._table.update(where=where, values=values))
            return self.get([id])[id]

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete items; returns the ids that were there."""
        with self.writing():
            there = list(self.get(ids))
            for start in range(0, len(there), 1000):
                listed = ", ".join(quoted(id) for id in there[start : start + 1000])
                self._commit(lambda listed=listed: self._table.delete(f"id IN ({listed})"))
            return there

    def next_moment(self) -> int:
        """A time for a new item, in microseconds: now, but after every other item's."""
        rows = self._refreshed()
        return max(time.time_ns() // 1000, rows.latest() + 1)

    def _commit(self, write: Any) -> None:
        """Do it, sync it. Another process's compaction may get in between: then once more."""
        started = time.time_ns()
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                with self._errors("be written"):
                    write()
                break
            except StoreError as error:
                conflict = "conflict" in str(error.__cause__).lower()
                if not conflict or attempt == _COMMIT_ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0.01, 0.05) * 2**attempt)
                self._table.checkout_latest()
        with self._errors("be written"):
            sync_since(self._table_folder, started)

    # Reading ------------------------------------------------------------------------------------

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """Those of the items that are there, by id."""
        with self._state:
            rows = self._refreshed()
            return {id: rows.item(rows.row_of[id]) for id in ids if id in rows.row_of}

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        condition: Filter | None = None,
        newest_first: bool = False,
    ) -> Page:
        """Items in the order they were added, or in the reverse of it, from a cursor on."""
        try:
            moment = int(after) if after else None
        except ValueError:
            raise InvalidRequest(
                f"{after!r} is no place to go on from.",
                hint="Pass the `next` of the page before.",
                param="after",
            ) from None
        with self._state:
            rows = self._refreshed()
            found = rows.ordered(
                rows.mask(condition), limit + 1, after=moment, newest_first=newest_first
            )
            items = rows.items(found[:limit])
        more = len(found) > limit and bool(items)
        return Page(items, str(microseconds(items[-1].added_at)) if more else None)

    def count(self, condition: Filter | None = None) -> int:
        """How many items satisfy the filter."""
        with self._state:
            rows = self._refreshed()
            mask = rows.mask(condition)
            return rows.living if mask is None else int(np.count_nonzero(mask))

    def search(
        self,
        vector: Vectors,
        *,
        limit: int,
        offset: int = 0,
        condition: Filter | None = None,
        exclude: Sequence[str] = (),
    ) -> list[Hit]:
        """Nearest items by cosine, best first."""
        with self._state:
            rows = self._refreshed()
            mask = rows.mask(condition)
            excluded = [rows.row_of[id] for id in exclude if id in rows.row_of]
            if excluded:
                mask = np.ones(len(rows), np.bool_) if mask is None else mask.copy()
                mask[excluded] = False
            view = None if rows.exact is None else rows.exact.view()
            size = len(rows)
        wanted = offset + limit
        if view is not None:
            found, scores = view.search(vector, wanted, mask)
        else:
            with self._errors("be read"):
                found, scores = lance_index.search(
                    self._table, self._folder, rows, vector, wanted, mask, size=size
                )
        return [
            Hit(rows.item(int(row)), float(score))
            for row, score in zip(found[offset:], scores[offset:], strict=True)
        ]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """float32 [len(ids), dimension]."""
        with self._state:
            rows = self._require(ids)
            numbers = np.array([rows.row_of[id] for id in ids], np.int64)
            if rows.exact is not None:
                return rows.exact.view().gather(numbers)
            with self._errors("be read"):
                return vectors_on_disk(self._table, rows, numbers)

    def thumbnail(self, id: str) -> bytes:
        """JPEG bytes."""
        with self._state:
            rows = self._require([id])
            row = rows.row_of[id]
            place, stamp = int(rows.row_ids[row]), int(rows.stamps[row])
        with self._errors("be read"):
            found = self._table.take_row_ids([place]).select(["stamp", "thumbnail"]).to_arrow()
            if found["stamp"].to_pylist() != [stamp]:  # compacted since, by another process
                search = self._table.search().where(f"id = {quoted(id)}")
                found = search.select(["stamp", "thumbnail"]).limit(1).to_arrow()
        if found.num_rows == 0:
            raise self._missing(id)
        return bytes(found["thumbnail"][0].as_py())

    def picture(self, id: str) -> Literal["source", "stored"]:
        """Where the full picture is."""
        with self._state:
            rows = self._require([id])
            return "source" if rows.picture(rows.row_of[id]) == "source" else "stored"

    def with_digest(self, digest: str, file_digest: str = "") -> str | None:
        """The id of an item with these pixels, or read from a file with these bytes."""
        with self._state:
            rows = self._refreshed()
            row = rows.with_digest((digest, file_digest))
            return None if row is None else rows.item(row).id

    def alike(self, perceptual_hash: int, max_distance: int) -> list[str]:
        """Ids of items whose perceptual hash differs in few bits, the nearest few first."""
        with self._state:
            rows = self._refreshed()
            found = rows.alike(perceptual_hash, max_distance)
            return [item.id for item in rows.items(found[:_MANY_ALIKE])]

    def known_files(self) -> dict[str, KnownFile]:
        """By source: the items whose picture is a file."""
        with self._state:
            return self._refreshed().known_files()

    def stored_digests(self) -> Iterator[str]:
        """Digests of the items whose full picture the collection keeps."""
        with self._state:
            return iter(self._refreshed().stored_digests())

    def close(self) -> None:
        """Release what is held."""
        with self._state:
            self._rows = ResidentRows(self.dimension, with_vectors=False)
            self._seen_change = self._version = -1

    # Keeping up with the table ------------------------------------------------------------------

    def _refreshed(self) -> ResidentRows:
        """The rows as of the last commit, by whichever process."""
        with self._state:
            self._check_identity()
            try:
                changed = (self._table_folder / "_versions").stat().st_mtime_ns
            except FileNotFoundError:
                raise self._gone() from None
            settled = time.time_ns() - changed > CLOCK_TICK_NS
            if changed == self._seen_change and settled:
                return self._rows
            with self._errors("be read"):
                self._table.checkout_latest()
                version = self._table.version
                if version != self._version:
                    self._catch_up()
                    self._version = version
            self._seen_change = changed if settled else -1
            return self._rows

    def _catch_up(self) -> None:
        total = self._table.count_rows()
        fits = total * self.dimension * BYTES_PER_NUMBER <= self._exact_bytes
        rows = self._rows
        if fits != (rows.exact is not None) or rows.dead > max(1024, len(rows) // 2):
            rows = ResidentRows(self.dimension, with_vectors=fits)
        if len(rows) == 0:
            load(self._table, rows)
        else:
            apply_changes(self._table, rows)
        self._rows = rows

    def _append_own(self, table: pa.Table, before: int) -> None:
        """After an insert of ours, where nobody else wrote: no need to read it back.

        Lance gives a new fragment the next number. Were that guess at the row ids wrong, the stamp
        would tell (see `thumbnail`), and the row would be found by its id.
        """
        with self._state:
            rows = self._rows
            size = (rows.living + table.num_rows) * self.dimension * BYTES_PER_NUMBER
            in_memory = size <= self._exact_bytes
            if (self._version, self._table.version) != (before, before + 1):
                return
            if in_memory != (rows.exact is not None):
                return
            fragment = (int(rows.row_ids.max()) >> 32) + 1 if len(rows) else 0
            places = (fragment << 32) + np.arange(table.num_rows, dtype=np.uint64)
            with_places = table.append_column("_rowid", pa.array(places, pa.uint64()))
            for batch in with_places.combine_chunks().to_batches():
                rows.append(batch)
            self._version = before + 1

    # Maintenance --------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Compact when single writes have piled up; build the index where memory does not do."""
        worked = False
        with self._errors("be compacted"):
            if is_scattered(self._table.stats()):
                started = time.time_ns()
                with self.writing():  # an update in between would make it fail
                    self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)
                sync_since(self._table_folder, started)
                worked = True
        with self._state:
            rows = self._refreshed()
            in_memory = rows.exact is not None
        if not in_memory and lance_index.is_due(self._folder, rows.living):
            with self._errors("be indexed"):
                lance_index.build(self._table, self._folder, self.dimension)
            worked = True
        return worked

    # Errors -------------------------------------------------------------------------------------

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = (self._folder / LOCK).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _check_identity(self) -> None:
        """Another process may have deleted the collection, and even made another in its place.

        Lance itself would quietly make the folder of a deleted table anew.
        """
        if self._identity is None or self._identify() != self._identity:
            raise self._gone()

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except ChiasmError:
            raise
        except Exception as error:  # Lance raises many kinds, none of them documented
            _log.debug("collection %s could not %s", self._name, action, exc_info=True)
            if not self._table_folder.is_dir():
                raise self._gone() from error
            if "no space left" in str(error).lower():
                raise NoSpace(
                    f"The disk is full: the collection {self._name!r} could not {action}.",
                    hint="Make room and try again; what was there is untouched.",
                ) from error
            raise StoreError(
                f"The collection {self._name!r} could not {action}.",
                hint=f"Look at the folder {self._folder}: is it complete, and may it be written?",
            ) from error

    def _require(self, ids: Sequence[str]) -> ResidentRows:
        rows = self._refreshed()
        for id in ids:
            if id not in rows.row_of:
                raise self._missing(id)
        return rows

    def _missing(self, id: str) -> ItemNotFound:
        return ItemNotFound(
            f"There is no item {id!r} in the collection {self._name!r}.", param="id"
        )

    def _gone(self) -> CollectionNotFound:
        return CollectionNotFound(f"There is no collection {self._name!r} any more.")
