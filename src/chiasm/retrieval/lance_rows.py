"""Reading a Lance table into memory: all of it, what has changed, or the vectors of some rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chiasm.retrieval.exact import Rows
from chiasm.retrieval.resident import SCALARS, ResidentRows, vectors_of
from chiasm.retrieval.store import Vectors

_BATCH_ROWS = 8192
_TAKE_ROWS = 8192


def load(table: Any, rows: ResidentRows) -> None:
    """Read the whole table into empty `rows`."""
    query = table.search().select(_columns(rows)).with_row_id(True).limit(None)
    for batch in query.to_batches(_BATCH_ROWS):
        rows.append(batch)


def apply_changes(table: Any, rows: ResidentRows) -> None:
    """Make `rows` what the table is now. Reads every stamp, and whole rows where that is new."""
    query = table.search().select(["stamp"]).with_row_id(True).limit(None)
    batches = list(query.to_batches(65_536))
    stamps = _joined(batches, "stamp", np.int64)  # [rows now]
    places = _joined(batches, "_rowid", np.uint64)
    order = np.argsort(rows.stamps, kind="stable")
    known = rows.stamps[order]
    slot = np.minimum(np.searchsorted(known, stamps), len(known) - 1)
    old = known[slot] == stamps
    still = order[slot[old]]
    gone = rows.alive.copy()
    gone[still] = False
    rows.bury(np.flatnonzero(gone))
    rows.move(still, places[old])
    for batch in _take(table, places[~old], _columns(rows)):
        rows.append(batch)


def vectors_on_disk(table: Any, rows: ResidentRows, numbers: Rows) -> Vectors:
    """The vectors of some rows, float32 [len(numbers), dimension], whether held in memory or not.

    They are taken from where Lance kept them last. Where another process has compacted the table
    since, the stamp tells, and they are looked for by id.
    """
    vectors = np.zeros((len(numbers), rows.dimension), np.float32)
    slot_of = {int(stamp): slot for slot, stamp in enumerate(rows.stamps[numbers])}
    missing = set(range(len(numbers)))
    for batch in _take(table, rows.row_ids[numbers], ["stamp", "vector"]):
        slots = np.array([slot_of.get(stamp, -1) for stamp in batch.column("stamp").to_pylist()])
        kept = slots >= 0
        vectors[slots[kept]] = vectors_of(batch.column("vector"))[kept]
        missing.difference_update(slots.tolist())
    if missing:
        slot_of_id = {rows.item(int(numbers[slot])).id: slot for slot in missing}
        listed = ", ".join(map(quoted, slot_of_id))
        query = table.search().where(f"id IN ({listed})").select(["id", "vector"])
        for batch in query.limit(None).to_batches(_BATCH_ROWS):
            found = [slot_of_id[id] for id in batch.column("id").to_pylist()]
            vectors[found] = vectors_of(batch.column("vector"))
    return vectors


def quoted(text: str) -> str:
    """A text as Lance's filters want it."""
    return "'" + text.replace("'", "''") + "'"


def _columns(rows: ResidentRows) -> list[str]:
    return [*SCALARS, *(["vector"] if rows.exact is not None else [])]


def _take(table: Any, places: npt.NDArray[np.uint64], names: list[str]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(places), _TAKE_ROWS):
        query = table.take_row_ids(places[start : start + _TAKE_ROWS].tolist())
        yield from query.select(names).with_row_id().to_arrow().combine_chunks().to_batches()


def _joined(batches: Sequence[pa.RecordBatch], name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    empty = np.empty(0, dtype)
    return np.concatenate([empty, *(batch.column(name).to_numpy() for batch in batches)])
