"""Rows that the database could not take, kept in files until it can.

Each process writes a file of its own, a JSON object a line, and holds its lock. A file whose lock
is free belongs to a process that has ended: any other takes it over, so that nothing is left behind
by a crash. A row may be read twice; who stores it must not mind (the ledger's ids are unique).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

Row = dict[str, Any]

log = logging.getLogger(__name__)

_AT_ONCE = 500  # rows


class Unwritten:
    """The files of one folder whose names begin with `name`. One thread at a time.

    most_bytes: of all files together; rows beyond are not kept.
    """

    def __init__(self, folder: Path, name: str, most_bytes: int) -> None:
        self._folder = folder
        self._name = name
        self._most = most_bytes
        self._own: tuple[Path, BinaryIO, FileLock] | None = None

    def add(self, rows: Sequence[Row]) -> int:
        """Keep rows; they are on the disk when it returns. Returns how many found room."""
        size = sum(_size(path) for path in self._files())
        lines = []
        for row in rows:
            line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
            size += len(line)
            if size > self._most:
                break
            lines.append(line)
        if not lines:
            return 0
        try:
            _, file, _ = self._own or self._begin()
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            return 0
        return len(lines)

    def waiting(self) -> bool:
        """Whether there is any such file, this process's or another's."""
        return bool(self._files())

    def take(self, store: Callable[[list[Row]], None]) -> int:
        """Hand all rows that no living process holds to `store`, then remove their files.

        What `store` raises goes on; its file is then kept whole. Returns the number of rows.
        """
        taken = 0
        own = self._end()
        try:
            for path in self._files():
                with _claimed(path, own) as claimed:
                    if claimed and path.exists():
                        taken += _hand_over(path, store)
                        path.unlink()
        finally:
            if own is not None:
                own[1].release()
        return taken

    def close(self) -> None:
        """Leave the files for who comes next."""
        own = self._end()
        if own is not None:
            own[1].release()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}-*.jsonl"))

    def _begin(self) -> tuple[Path, BinaryIO, FileLock]:
        path = self._folder / f"{self._name}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        lock = _lock(path)
        lock.acquire()
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")
        self._own = (path, file, lock)
        return self._own

    def _end(self) -> tuple[Path, FileLock] | None:
        """Write no more to this process's file; its lock is still held."""
        if self._own is None:
            return None
        path, file, lock = self._own
        self._own = None
        file.close()
        return path, lock


def _lock(path: Path) -> FileLock:
    return FileLock(f"{path}.lock", timeout=0, mode=0o600, thread_local=False)


@contextlib.contextmanager
def _claimed(path: Path, own: tuple[Path, FileLock] | None) -> Iterator[bool]:
    """Whether the file is ours now. Its lock's file goes with it."""
    lock = own[1] if own is not None and own[0] == path else _lock(path)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
        if not path.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _hand_over(path: Path, store: Callable[[list[Row]], None]) -> int:
    rows: list[Row] = []
    count = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:  # its process died while it wrote
                log.warning("%s: a line that is cut short is left out", path.name)
                continue
            rows.append(row)
            count += 1
            if len(rows) == _AT_ONCE:
                store(rows)
                rows = []
    if rows:
        store(rows)
    return count


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process has just stored it
        return 0
