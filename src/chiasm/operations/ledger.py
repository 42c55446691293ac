"""The ledger: one row a request, with what it took and what it cost.

A request puts its row on a queue and goes on. A thread writes what has gathered, at most a tenth of
a second later. While the database does not answer, rows go to a file beside (`unwritten.py`) and
from there to the database once it is back. A request never waits for either. Where the queue or the
file is full, rows are counted and left out.

No picture and no text is kept, unless the operator asked for it: then prompts and the digests of
pictures, in `content`; never pixels.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from chiasm.errors import NoSpace, StoreError
from chiasm.operations import moments, money
from chiasm.operations.database import RowRefused
from chiasm.operations.tables import ledger as table
from chiasm.operations.unwritten import Row, Unwritten

if TYPE_CHECKING:
    from chiasm.operations.database import Database

log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.05
_AT_ONCE = 200  # rows a transaction: SQLite has one writer, and budgets write, too
_WAITING = 50_000  # rows in the queue
_UNWRITTEN_BYTES = 256 * 1024 * 1024
_CLOSE_SECONDS = 20.0  # longer than a connection takes to fail
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 30.0  # seconds between tries at a database that does not answer


def new_id() -> str:
    """Unique, and in the order of time, which keeps an index small."""
    return f"{time.time_ns():016x}{os.urandom(6).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request, when it has ended. Costs are US dollars; None is not known.

    id: of the row. request_id: as the caller sees it in the answer's headers.
    route: the path that was asked. alias: the model as it was asked for; provider, model: which one
        answered; fallback: the first target, where another had to answer.
    status: HTTP's. error: its code.
    text_tokens, image_tokens: of the prompt, as they were billed; cached_tokens: how many of them
        were cheaper because the provider had seen them.
    cache_hit: answered from this server's own cache.
    content: JSON, kept only by a ledger that is told to.
    """

    time: datetime
    request_id: str
    route: str
    alias: str
    provider: str
    model: str
    status: int = 200
    error: str | None = None
    key: str | None = None
    images: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    planned_text_tokens: int | None = None
    planned_image_tokens: int | None = None
    planned_cost: Decimal | None = None
    cost: Decimal | None = None
    currency: str = "USD"
    seconds_to_first_token: float | None = None
    seconds: float = 0.0
    retries: int = 0
    fallback: str | None = None
    cache_hit: bool = False
    streamed: bool = False
    content: str | None = None
    id: str = field(default_factory=new_id)


class Ledger:
    """Writes entries in the background. Threads may share it.

    content: keep `Entry.content`; else it is dropped before it is queued.
    """

    def __init__(self, database: Database, *, content: bool = False) -> None:
        self._database = database
        self._content = content
        self._insert = database.insert(table).on_conflict_do_nothing()
        self._unwritten = Unwritten(database.folder, "ledger-unwritten", _UNWRITTEN_BYTES)
        self._queue: deque[Entry | threading.Event] = deque()
        self._awake = threading.Event()  # there is something to do
        self._hurry = threading.Event()  # do it now
        self._closing = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._try_again = 0.0  # when the database may be asked again
        self._look_again = 0.0  # when files may have been left by processes that ended
        self._pause = _FIRST_PAUSE
        self.dropped = 0  # rows for which there was no room anywhere, or that no table takes
        if self._unwritten.waiting():
            self._start()

    def put(self, entry: Entry) -> None:
        """Queue an entry; never waits, never raises."""
        if len(self._queue) >= _WAITING:
            self._drop(1)
            return
        if entry.content is not None and not self._content:
            entry = without_content(entry)
        self._queue.append(entry)
        if self._thread is None:
            self._start()
        if not self._awake.is_set():
            self._awake.set()

    def flush(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until all that was put so far is stored, or kept in a file. False: not in time."""
        if self._thread is None:
            return True
        reached = threading.Event()
        self._queue.append(reached)
        self._hurry.set()
        self._awake.set()
        return reached.wait(seconds)

    def close(self) -> None:
        """Store what is queued, and end the thread."""
        with self._starting:
            thread, self._closing = self._thread, True
        self._hurry.set()
        self._awake.set()
        if thread is not None:
            thread.join(_CLOSE_SECONDS)
            atexit.unregister(self.close)
        self._unwritten.close()

    # The thread -----------------------------------------------------------------------------

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closing:
                # A daemon: a program that forgets `close` must end all the same; atexit calls it.
                self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def _run(self) -> None:
        while not (self._closing and not self._queue):
            if self._unwritten.waiting():
                pause = max(self._try_again, self._look_again) - time.monotonic()
                if pause <= 0:
                    self._write_kept()
                    continue
            else:
                pause = None
            self._awake.wait(pause)
            self._awake.clear()
            self._hurry.wait(_GATHER_SECONDS)
            if not self._closing:
                self._hurry.clear()
            self._write_queue()

    def _write_queue(self) -> None:
        while self._queue:
            entries: list[Entry] = []
            reached: list[threading.Event] = []
            while self._queue and len(entries) < _AT_ONCE and not reached:
                item = self._queue.popleft()
                if isinstance(item, Entry):
                    entries.append(item)
                else:
                    reached.append(item)
            self._write([row_of(entry) for entry in entries])
            for event in reached:
                event.set()

    def _write(self, rows: list[Row]) -> None:
        if not rows:
            return
        if time.monotonic() >= self._try_again:
            try:
                self._store(rows)
            except (StoreError, NoSpace) as error:
                self._failed(error)
            else:
                self._pause = _FIRST_PAUSE
                return
        kept = self._unwritten.add(rows)
        self._look_again = 0.0
        self._drop(len(rows) - kept)

    def _write_kept(self) -> None:
        try:
            count = self._unwritten.take(self._store)
        except (StoreError, NoSpace, OSError) as error:
            self._failed(error)
        else:
            self._pause = _FIRST_PAUSE
            if count:
                log.info("The ledger has stored %d rows that had been kept in a file.", count)
            # What is there still is other processes': theirs to store, unless they end.
            self._look_again = time.monotonic() + _LAST_PAUSE

    def _failed(self, error: Exception) -> None:
        log.warning("The ledger keeps its rows in a file for now: %s", error)
        self._try_again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE)

    def _store(self, rows: Sequence[Row]) -> None:
        """Raises StoreError or NoSpace where none was stored. A row that cannot be is dropped."""
        rows = [_known_columns(row) for row in rows]
        try:
            with self._database.writing() as connection:
                connection.execute(self._insert, rows)
        except (RowRefused, OverflowError):  # the latter is SQLite's, past 64 bits
            if len(rows) == 1:
                log.error("The ledger cannot store the row %s.", rows[0].get("id"))
                self._drop(1)
                return
            for row in rows:
                self._store([row])

    def _drop(self, rows: int) -> None:
        if rows and self.dropped == 0:
            log.error("The ledger has no room: rows are left out from now on.")
        self.dropped += rows


# Rows -------------------------------------------------------------------------------------------

_COLUMNS = frozenset(column.name for column in table.columns)
_LENGTHS = {
    column.name: column.type.length
    for column in table.columns
    if isinstance(column.type, sa.String) and column.type.length
}
_FIELDS = tuple(item.name for item in fields(Entry))


def without_content(entry: Entry) -> Entry:
    """The same row, without its prompt."""
    return Entry(**{name: getattr(entry, name) for name in _FIELDS if name != "content"})


def row_of(entry: Entry) -> Row:
    """As the table holds it. Texts are cut to their columns: what callers send may be long."""
    row: Row = {name: getattr(entry, name) for name in _FIELDS}
    row["key_id"] = row.pop("key")
    row["time"] = moments.microseconds(entry.time)
    for name in ("planned_cost", "cost"):
        row[name] = None if row[name] is None else money.nanodollars(row[name])
    for name, value in row.items():
        if isinstance(value, str):
            # Neither database takes half a surrogate; PostgreSQL no NUL.
            clean = value.replace("\0", "").encode("utf-8", "replace").decode()
            row[name] = clean[: _LENGTHS.get(name)]
    return row


def entry_of(row: sa.RowMapping) -> Entry:
    """Back from the table."""
    values: dict[str, Any] = {**row, "key": row["key_id"], "time": moments.moment(row["time"])}
    del values["key_id"]
    for name in ("planned_cost", "cost"):
        values[name] = None if row[name] is None else money.dollars(row[name])
    return Entry(**values)


def _known_columns(row: Row) -> Row:
    """A file may be from another version."""
    return {name: value for name, value in row.items() if name in _COLUMNS}
