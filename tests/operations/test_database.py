"""The database: how it is opened, by many at once, and what is said when it cannot be."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from chiasm.errors import ConfigurationError, NoSpace, StoreError
from chiasm.operations import migrations
from chiasm.operations.database import Database, open_database, shown
from chiasm.operations.migrations import HEAD, VERSION_TABLE
from chiasm.operations.tables import keys, metadata


def _row(number: int) -> dict[str, Any]:
    named = {"id": f"key_{number}", "digest": str(number), "name": "a", "prefix": "chk-"}
    return named | {"created": 1, "models": ["a" * 4096], "collections": []}


def test_steps_make_exactly_the_tables_that_the_code_uses(database: Database) -> None:
    options = {"version_table": VERSION_TABLE, "compare_type": True}
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD


def test_a_change_without_a_step_would_be_noticed(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE chiasm_ledger DROP COLUMN content"))
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert [change[0] for change in compare_metadata(context, metadata)] == ["add_column"]


def test_head_is_the_last_step() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_it_is_opened_again_with_what_it_held(url: str, tmp_path: Path) -> None:
    with closing(open_database(url, tmp_path)) as database, database.writing() as connection:
        connection.execute(sa.insert(keys), _row(1))
    with closing(open_database(url, tmp_path)) as database, database.reading() as connection:
        assert connection.execute(sa.select(keys.c.models)).scalar_one() == ["a" * 4096]


_OPEN = """
import sys, time
from pathlib import Path
from chiasm.operations.database import open_database
from alembic import command  # loaded before the race
print("ready", flush=True)
sys.stdin.readline()
open_database(sys.argv[1], Path(sys.argv[2])).close()
"""


def test_processes_that_open_a_new_one_at_once_do_not_get_in_each_others_way(
    url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _OPEN, url, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    with closing(open_database(url, tmp_path)) as database, database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(keys)).scalar() == 0


def test_what_raises_is_undone(database: Database) -> None:
    def insert_and_fail() -> None:
        with database.writing() as connection:
            connection.execute(sa.insert(keys), _row(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        insert_and_fail()
    with database.reading() as connection:
        assert connection.execute(sa.select(keys)).all() == []


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with closing(open_database("", tmp_path / "data")) as database:
        with database.writing() as connection:
            connection.execute(sa.text("DELETE FROM chiasm_keys"))
        files = sorted((tmp_path / "data").glob("operations.db*"))
        assert [file.name for file in files][:3] == [
            "operations.db",
            "operations.db-shm",
            "operations.db-wal",
        ]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# What is said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("not a url, password=secret", "is no database URL"),
        ("mysql://user:secret@host/name", "names mysql, which is not supported"),
        ("postgresql+asyncpg://user:secret@host/name", "not supported"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_database(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_without_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'chiasm\[postgres\]'"):
        open_database("postgresql://host/name", tmp_path)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    url = "postgresql://user:secret@127.0.0.1:9/name?sslpassword=secret"
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_database(url, tmp_path)
    assert "user:***@127.0.0.1:9/name" in str(caught.value)
    assert "secret" not in str(caught.value)
    # Nothing of the driver's words is in the trace either.
    assert caught.value.__suppress_context__


def test_a_name_that_the_server_does_not_have(postgres_server: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_database(postgres_server.replace("/postgres?", "/nowhere?"), tmp_path)
    assert "does not exist" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "operations.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="is damaged, or is no SQLite database"):
        open_database("", tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written, or its folder cannot be made"):
        open_database("", tmp_path / "file" / "data")


def test_one_that_a_newer_chiasm_has_changed(url: str, tmp_path: Path) -> None:
    with closing(open_database(url, tmp_path)) as database, database.writing() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match="made by a newer chiasm"):
        open_database(url, tmp_path)


def test_one_that_another_program_keeps_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chiasm.operations.database._WAIT_SECONDS", 0.05)
    with (
        closing(open_database("", tmp_path)) as database,
        closing(sqlite3.connect(tmp_path / "operations.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="is busy"), database.writing() as connection:
            connection.execute(sa.text("DELETE FROM chiasm_keys"))


def test_a_connection_that_the_server_dropped_is_replaced(
    postgres_url: str, tmp_path: Path
) -> None:
    import psycopg

    with closing(open_database(postgres_url, tmp_path)) as database:
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'chiasm'"
            )
        with database.reading() as connection:
            assert connection.execute(sa.select(keys)).all() == []


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host:1/name?password=secret") == (
        "postgresql://me:***@host:1/name"
    )
    assert shown("sqlite:////var/lib/chiasm.db") == "/var/lib/chiasm.db"
    assert "secret" not in shown("nonsense secret")


def test_a_full_disk_is_said_as_such(tmp_path: Path) -> None:
    with closing(open_database("", tmp_path)) as database:

        def fill() -> None:
            with database.writing() as connection:
                pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
                for number in range(100):
                    connection.execute(sa.insert(keys), _row(number))

        with pytest.raises(NoSpace, match="no room"):
            fill()
        with database.reading() as connection:
            assert connection.execute(sa.select(keys)).all() == []


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        open_database("", tmp_path / "data")
