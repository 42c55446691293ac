"""The ledger: what is put is stored once, whatever happens between, and nobody waits for it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chiasm.errors import StoreError
from chiasm.operations import ledger as ledger_module
from chiasm.operations import statements
from chiasm.operations.database import Database, open_database
from chiasm.operations.ledger import Ledger
from chiasm.operations.unwritten import Unwritten
from tests.operations.entries import NOON, entry


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with closing(Ledger(database)) as ledger:
        yield ledger


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger_module, "_LAST_PAUSE", 0.05)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def unwritten(folder: Path) -> list[Path]:
    return sorted(folder.glob("ledger-unwritten*"))


def test_a_row_comes_back_as_it_was(ledger: Ledger, database: Database) -> None:
    full = entry(
        key="key_1",
        status=502,
        error="generator_failed",
        images=3,
        text_tokens=120,
        image_tokens=2295,
        cached_tokens=100,
        answer_tokens=55,
        planned_text_tokens=118,
        planned_image_tokens=2295,
        planned_cost=Decimal("0.001234567"),
        cost=Decimal("0.000000001"),
        seconds_to_first_token=0.25,
        seconds=1.5,
        retries=2,
        fallback="anthropic/claude-opus-4-7",
        cache_hit=True,
        streamed=True,
        time=NOON + timedelta(microseconds=1),
    )
    least = entry()
    ledger.put(full)
    ledger.put(least)
    assert ledger.flush()
    assert statements.rows(database) == [full, least]


def test_rows_are_stored_without_being_asked(ledger: Ledger, database: Database) -> None:
    ledger.put(entry())
    wait_for(lambda: len(statements.rows(database)) == 1)


def test_closing_stores_what_is_queued(database: Database) -> None:
    ledger = Ledger(database)
    for number in range(1234):
        ledger.put(entry(request_id=f"req_{number}"))
    ledger.close()
    found = statements.rows(database, limit=10_000)
    assert {row.request_id for row in found} == {f"req_{number}" for number in range(1234)}


def test_a_program_that_forgets_to_close_loses_nothing(url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from chiasm.operations.database import open_database\n"
        "from chiasm.operations.ledger import Ledger\n"
        "from tests.operations.entries import entry\n"
        "ledger = Ledger(open_database(sys.argv[1], Path(sys.argv[2])))\n"
        "for number in range(300): ledger.put(entry())\n"
    )
    subprocess.run([sys.executable, "-c", code, url, str(tmp_path)], check=True, timeout=60)
    with closing(open_database(url, tmp_path)) as database:
        assert len(statements.rows(database, limit=1000)) == 300


def test_the_same_row_twice_is_one(ledger: Ledger, database: Database) -> None:
    one = entry()
    ledger.put(one)
    ledger.put(one)
    ledger.put(replace(one, id="other"))  # the same request id: the caller may choose it
    ledger.flush()
    assert len(statements.rows(database)) == 2


def test_no_text_is_kept_unless_asked(database: Database) -> None:
    private = entry(content='{"prompt": "secret"}')
    with closing(Ledger(database)) as ledger:
        ledger.put(private)
    (row,) = statements.rows(database)
    assert row == replace(private, content=None)
    with closing(Ledger(database, content=True)) as ledger:
        ledger.put(replace(private, id="other", time=NOON + timedelta(seconds=1)))
    assert statements.rows(database)[0].content == private.content


def test_what_callers_send_cannot_harm_the_ledger(ledger: Ledger, database: Database) -> None:
    ledger.put(entry(alias="a\0b" + "é" * 5000, model="half \ud800 a pair", request_id="r" * 900))
    ledger.put(entry(images=2**70))  # no column holds it
    ledger.put(entry(request_id="good"))
    ledger.flush()
    found = {row.request_id: row for row in statements.rows(database)}
    assert set(found) == {"r" * 128, "good"}
    assert found["r" * 128].alias == "ab" + "é" * 198
    assert found["r" * 128].model == "half ? a pair"
    assert ledger.dropped == 1


def test_threads_together(ledger: Ledger, database: Database) -> None:
    def put() -> None:
        for _ in range(200):
            ledger.put(entry())

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.flush()
    assert len(statements.rows(database, limit=10_000)) == 1600


# While the database is away ---------------------------------------------------------------------


@contextmanager
def away(url: str) -> Iterator[None]:
    """Nobody may come into the database, and who is in has to go."""
    name = url.split("/")[3].partition("?")[0]
    with psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_rows_wait_in_a_file_and_are_stored_when_it_is_back(
    postgres_url: str, tmp_path: Path
) -> None:
    with (
        closing(open_database(postgres_url, tmp_path)) as database,
        closing(Ledger(database)) as ledger,
    ):
        ledger.put(entry(request_id="before"))
        ledger.flush()
        with away(postgres_url):
            for number in range(700):
                ledger.put(entry(request_id=f"req_{number}"))
            assert ledger.flush()
            with pytest.raises(StoreError):
                statements.rows(database)
            (file, *_) = unwritten(tmp_path)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        wait_for(lambda: not unwritten(tmp_path))
        ledger.put(entry(request_id="after"))
        ledger.flush()
        found = [row.request_id for row in statements.rows(database, limit=1000)]
        assert sorted(found) == sorted(["before", "after", *(f"req_{n}" for n in range(700))])
        assert ledger.dropped == 0


def test_rows_that_a_process_left_are_stored_by_the_next(postgres_url: str, tmp_path: Path) -> None:
    with closing(open_database(postgres_url, tmp_path)) as database:
        with away(postgres_url):
            ledger = Ledger(database)
            ledger.put(entry(request_id="kept"))
            ledger.close()
        assert statements.rows(database) == []
        (file,) = (path for path in unwritten(tmp_path) if path.suffix == ".jsonl")
        with file.open("a") as cut:
            cut.write('{"id": "cut sho')
        with closing(Ledger(database)):
            wait_for(lambda: not unwritten(tmp_path))
        assert [row.request_id for row in statements.rows(database)] == ["kept"]


def test_a_file_that_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    living, other = (Unwritten(tmp_path, "rows", 10**6) for _ in range(2))
    assert living.add([{"id": "1"}, {"id": "2"}]) == 2
    taken: list[dict[str, Any]] = []
    assert other.take(taken.extend) == 0
    assert living.add([{"id": "3"}]) == 1
    living.close()
    assert other.take(taken.extend) == 3
    assert [row["id"] for row in taken] == ["1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_rows_cannot_be_stored_is_kept_whole(tmp_path: Path) -> None:
    def refuse(rows: list[dict[str, Any]]) -> None:
        raise StoreError("away")

    kept = Unwritten(tmp_path, "rows", 10**6)
    kept.add([{"id": str(number)} for number in range(1200)])
    with pytest.raises(StoreError):
        kept.take(refuse)
    kept.add([{"id": "last"}])
    taken: list[dict[str, Any]] = []
    assert kept.take(taken.extend) == 1201
    assert sorted(row["id"] for row in taken) == sorted([*map(str, range(1200)), "last"])
    assert not kept.waiting()


def test_what_has_no_room_anywhere_is_counted(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_UNWRITTEN_BYTES", 10_000)
    with closing(open_database(postgres_url, tmp_path)) as database:
        with away(postgres_url), closing(Ledger(database)) as ledger:
            for _ in range(100):
                ledger.put(entry())
            ledger.flush()
            files = [path for path in unwritten(tmp_path) if path.suffix == ".jsonl"]
            assert sum(path.stat().st_size for path in files) <= 10_000
            kept = sum(len(path.read_text().splitlines()) for path in files)
            assert 0 < kept < 100
            assert ledger.dropped == 100 - kept
        with closing(Ledger(database)):
            wait_for(lambda: not unwritten(tmp_path))
        assert len(statements.rows(database)) == kept


def test_a_full_queue_refuses_nobody(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_WAITING", 10)
    monkeypatch.setattr(ledger_module, "_GATHER_SECONDS", 60)
    ledger = Ledger(database)
    for _ in range(25):
        ledger.put(entry())
    ledger.close()
    assert len(statements.rows(database)) + ledger.dropped == 25
    assert ledger.dropped >= 10


def test_kept_rows_of_an_older_version(database: Database, tmp_path: Path) -> None:
    """A column more is left out; a row that lacks one is dropped, and harms no other."""
    good = ledger_module.row_of(entry(request_id="good"))
    rows = [good | {"colour": "red", "id": "1"}, {"id": "2", "time": 3}, good | {"id": "4"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "ledger-unwritten-1-a.jsonl").write_text(lines)
    with closing(Ledger(database)) as ledger:
        wait_for(lambda: not unwritten(tmp_path))
        assert [row.id for row in statements.rows(database)] == ["4", "1"]
        assert ledger.dropped == 1


def test_opening_is_nothing_where_nothing_is_put(database: Database) -> None:
    ledger = Ledger(database)
    assert "ledger" not in {thread.name for thread in threading.enumerate()}
    assert ledger.flush()
    ledger.close()
