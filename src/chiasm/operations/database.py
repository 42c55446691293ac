"""The database of keys, budgets and the ledger: a SQLite file, or PostgreSQL by its URL.

Whoever opens it brings its tables up to date first; any number of processes may do so at once.
What a driver says never leaves this file: it may quote addresses and passwords.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from chiasm.errors import ChiasmError, ConfigurationError, NoSpace, StoreError
from chiasm.operations.migrations import HEAD, VERSION_TABLE

_WAIT_SECONDS = 10
_MIGRATING = 0x63686961736D  # "chiasm": PostgreSQL's advisory lock while tables are made
_SETTING = "See the setting database."


class Database:
    """An open database, its tables up to date. Threads may share it; a child process opens its own.

    folder: where files that belong beside the database are kept.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self.folder = folder
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.shown = shown(engine.url)
        # SQLite has one writer at a time. Its own way to wait is to sleep and to try again; threads
        # of one process stand in line instead.
        self._line = threading.Lock() if self.is_sqlite else None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the data. Raises StoreError."""
        with self._said(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept if the block ends, undone if it raises. Raises StoreError."""
        with self._said(), self._turn(), self._engine.connect() as plain:
            connection = plain.execution_options(chiasm_writes=True)
            with connection.begin():
                yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """The dialect's own INSERT, which knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._line is None:
            yield
            return
        if not self._line.acquire(timeout=_WAIT_SECONDS):
            raise _busy(self.shown)
        try:
            yield
        finally:
            self._line.release()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise _in_our_words(error, self.shown) from None


def shown(url: str | sa.URL) -> str:
    """A database's URL for people: without a password; of SQLite the file alone."""
    try:
        address = sa.make_url(url)
    except (ArgumentError, ValueError):
        return "(no database URL)"
    if address.drivername.startswith("sqlite"):
        return str(address.database)
    # What stands behind the ? may be a password, too.
    return address.set(query={}).render_as_string(hide_password=True)


class RowRefused(StoreError):
    """The database is well; what was to be written does not fit it."""


def open_database(url: str, data_dir: Path) -> Database:
    """Open it, and bring its tables up to date.

    url: the setting `database`; empty is SQLite in `data_dir/operations.db`.

    Raises ConfigurationError for a URL that cannot be used, StoreError for a database that cannot
    be reached, written, or that a newer chiasm has changed.
    """
    address = _address(url, data_dir)
    file = Path(address.database) if address.drivername == "sqlite" and address.database else None
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            # For nobody else's eyes. SQLite gives its other two files the same permissions.
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError:
        where = data_dir if file is None else file
        raise StoreError(
            f"{where} cannot be written, or its folder cannot be made.",
            hint="Check its permissions, or name another place in the setting data_dir.",
        ) from None
    engine = _engine(address)
    database = Database(engine, data_dir)
    try:
        with contextlib.ExitStack() as stack:
            if file is not None:
                stack.enter_context(_opening(file))
            _bring_up_to_date(database)
    except BaseException:
        database.close()
        raise
    return database


def _address(url: str, data_dir: Path) -> sa.URL:
    if not url:
        return sa.URL.create("sqlite", database=str(data_dir / "operations.db"))
    try:
        address = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "The setting database is no database URL.",
            hint="Write postgresql://USER:PASSWORD@HOST/NAME or sqlite:////path/to/file.db.",
            param="database",
        ) from None
    if address.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return address.set(drivername="postgresql+psycopg")
    if address.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ConfigurationError(
            f"The setting database names {address.drivername}, which is not supported.",
            hint="Use postgresql:// or sqlite:///, or leave the setting empty.",
            param="database",
        )
    if not address.database or address.database == ":memory:" or "uri" in address.query:
        raise ConfigurationError(
            "The setting database must name a file for SQLite.",
            hint="Write sqlite:////path/to/file.db, or leave the setting empty.",
            param="database",
        )
    return address.set(drivername="sqlite")


def _engine(address: sa.URL) -> Engine:
    if address.drivername == "sqlite":
        engine = sa.create_engine(
            address, connect_args={"timeout": _WAIT_SECONDS}, pool_timeout=_WAIT_SECONDS
        )
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return sa.create_engine(
            address,
            connect_args={"connect_timeout": _WAIT_SECONDS // 2, "application_name": "chiasm"},
            pool_pre_ping=True,  # a connection that the server has dropped is noticed and replaced
            pool_size=10,
            max_overflow=20,
            pool_timeout=_WAIT_SECONDS,
        )
    except (ImportError, NoSuchModuleError):
        raise ConfigurationError(
            "The setting database names PostgreSQL, but its driver is not installed.",
            hint="Run: pip install 'chiasm[postgres]'",
            param="database",
        ) from None


def _configure_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    cursor = connection.cursor()
    # In WAL mode NORMAL may lose the last transactions with the power, never with the process.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # Who will write says so at once: a reader that turns writer cannot wait, SQLite refuses it.
    writes = connection.get_execution_options().get("chiasm_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


# The tables -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opening(file: Path) -> Iterator[None]:
    """One process at a time: SQLite does not wait while another turns a new file to WAL."""
    try:
        with FileLock(f"{file}.lock", timeout=_WAIT_SECONDS * 3, mode=0o600):
            with contextlib.closing(sqlite3.connect(file, timeout=_WAIT_SECONDS)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            yield
    except Timeout:
        raise _busy(str(file)) from None
    except OSError:
        raise StoreError(
            f"{file}.lock cannot be written.", hint=f"Check the folder's permissions. {_SETTING}"
        ) from None
    except sqlite3.Error as error:
        raise _sqlite_in_our_words(error, str(file)) from None


def _bring_up_to_date(database: Database) -> None:
    with database.reading() as connection:
        if _version(connection) == HEAD:
            return
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
        if _version(connection) != HEAD:  # nobody else was quicker
            _migrate(connection)


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "chiasm.operations:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise StoreError(
            "The database was made by a newer chiasm, and this one does not know its tables.",
            hint="Update chiasm, or name another database.",
        ) from None


# Our words --------------------------------------------------------------------------------------


def _in_our_words(error: SQLAlchemyError, shown: str) -> ChiasmError:
    original = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(original, sqlite3.Error):
        return _sqlite_in_our_words(original, shown)
    if isinstance(error, PoolTimeout):
        return _busy(shown)
    if isinstance(error, DataError | IntegrityError) or not isinstance(error, DBAPIError):
        return _refused(shown)
    state = getattr(original, "sqlstate", None) or ""
    if state.startswith("53"):  # insufficient resources
        return NoSpace(f"The database {shown} has no room.")
    if state == "42501":
        return StoreError(
            f"The user of the database {shown} may not do this.",
            hint="Let the user make and change tables in its schema.",
        )
    if state == "25006":
        return StoreError(
            f"The database {shown} takes no writes: it may be a standby.",
            hint=f"Name the primary server. {_SETTING}",
        )
    return StoreError(
        f"The database {shown} cannot be reached, or broke off.",
        hint=f"Check that it runs, and its address, user and password. {_SETTING}",
    )


_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REFUSED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH}


def _sqlite_in_our_words(error: sqlite3.Error, shown: str) -> ChiasmError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more than is needed
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"There is no room on the disk for {shown}.")
    if code in _BUSY:
        return _busy(shown)
    if code in _REFUSED:
        return _refused(shown)
    if code in _DAMAGED:
        return StoreError(
            f"{shown} is damaged, or is no SQLite database.",
            hint=f"Restore it from a backup, or move it away to begin anew. {_SETTING}",
        )
    return StoreError(
        f"{shown} cannot be opened, read or written.",
        hint=f"Check its permissions and its disk. {_SETTING}",
    )


def _refused(shown: str) -> RowRefused:
    return RowRefused(f"The database {shown} did not take what was to be written.")


def _busy(shown: str) -> StoreError:
    return StoreError(
        f"The database {shown} is busy: no turn came in {_WAIT_SECONDS} seconds.",
        hint="Try again. If it stays so, look for a program that keeps it locked.",
    )
