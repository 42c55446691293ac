"""`chiasm keys` and `chiasm ledger` as a person and as a program meet them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chiasm.cli import app
from chiasm.errors import InvalidKey, InvalidRequest, KeyNotFound
from chiasm.operations.budgets import Budgets, Spend
from chiasm.operations.database import Database, open_database
from chiasm.operations.keys import Keys
from chiasm.operations.ledger import Ledger
from tests.operations.entries import NOON, entry


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """What a server would have open at the same time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    with closing(open_database("", tmp_path / "data")) as database:
        yield database


def invoke(*arguments: str, columns: int = 240) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    result = runner.invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def read(*arguments: str) -> Any:
    return json.loads(invoke(*arguments, "--json").stdout)


# Keys -------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_works(database: Database) -> None:
    result = invoke("keys", "create", "search team", "--model", "gpt-5*", "-b", "money/day=5")
    text = result.stdout.strip()  # alone: `KEY=$(chiasm keys create …)`
    key = Keys(database).check(text)
    assert (key.name, key.models) == ("search team", ("gpt-5*",))
    assert [str(budget) for budget in key.budgets] == ["$5.00 a day"]
    assert "This is shown once" in result.stderr
    for shown in (invoke("keys", "list"), invoke("keys", "show", key.id)):
        assert text not in shown.stdout
        assert key.prefix in shown.stdout
        assert "search team" in shown.stdout


def test_a_key_for_programs(database: Database) -> None:
    made = read(
        *("keys", "create", "a", "-m", "x", "-m", "y", "-c", "shop", "--expires", "30d"),
        *("--requests-per-minute", "60", "--image-tokens-per-minute", "9000"),
        *("-b", "image_tokens/month=1000000", "-b", "money/day=0.5"),
    )
    assert Keys(database).check(made.pop("key")).id == made["id"]
    assert made["models"] == ["x", "y"]
    assert made["collections"] == ["shop"]
    assert (made["requests_per_minute"], made["image_tokens_per_minute"]) == (60, 9000)
    assert made["budgets"] == [
        {"of": "money", "period": "day", "limit": 0.5},
        {"of": "image_tokens", "period": "month", "limit": 1000000},
    ]
    ahead = datetime.fromisoformat(made["expires"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < ahead <= timedelta(days=30)
    assert read("keys", "list") == [made]
    assert {**read("keys", "show", "a"), "budgets": []} == {**made, "budgets": []}


def test_revoking_and_rotating(database: Database) -> None:
    keys = Keys(database)
    old = invoke("keys", "create", "a").stdout.strip()
    new = invoke("keys", "rotate", "a").stdout.strip()
    with pytest.raises(InvalidKey):
        keys.check(old)
    assert keys.check(new).name == "a"
    assert "is revoked" in invoke("keys", "revoke", "a").stderr
    with pytest.raises(InvalidKey):
        Keys(database).check(new)
    assert read("keys", "list") == []
    assert [key["state"] for key in read("keys", "list", "--all")] == ["revoked"]
    assert "No key is in use" in invoke("keys", "list").stderr


def test_what_is_left_and_what_is_reserved(database: Database) -> None:
    made = read("keys", "create", "a", "-b", "money/day=2", "-b", "requests/month=10")
    key, budgets = Keys(database).find("a"), Budgets(database)
    budgets.settle(budgets.reserve(key, Spend(Decimal("0.5"))), Spend(Decimal("0.25")))
    budgets.reserve(key, Spend(Decimal("0.75"), 120))
    money, requests = read("keys", "show", "a")["budgets"]
    assert (money["spent"], money["reserved"], money["left"]) == (1.0, 0.75, 1.0)
    assert (requests["spent"], requests["left"]) == (2, 8)
    table = invoke("keys", "show", "a", columns=80).stdout
    assert "$2.00 a day" in table
    assert "$1.00" in table
    (held,) = read("keys", "reservations", "a")
    assert (held["key"], held["money"], held["image_tokens"]) == (made["id"], 0.75, 120)
    assert read("keys", "reservations", "--clear", "--older-than", "1h") == []
    assert read("keys", "reservations", "--clear") == [held]
    assert read("keys", "show", "a")["budgets"][0]["left"] == 1.75
    assert "Nothing is reserved" in invoke("keys", "reservations").stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("show", "nobody"), KeyNotFound, "There is no key 'nobody'"),
        (("revoke", "nobody"), KeyNotFound, "There is no key 'nobody'"),
        (("create", "a", "-b", "money/week=5"), InvalidRequest, "no budget of money by week"),
        (("create", "a", "-b", "five"), InvalidRequest, "'five' is no budget"),
        (("create", "a", "--expires", "soon"), InvalidRequest, "--expires cannot be 'soon'"),
        (("create", "a", "--expires", "2020-01-01"), InvalidRequest, "later than now"),
        (("create", " "), InvalidRequest, "needs a name"),
        (("reservations", "--older-than", "1y"), InvalidRequest, "--older-than cannot be '1y'"),
    ],
)
def test_bad_input(
    database: Database, arguments: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        invoke("keys", *arguments)
    assert Keys(database).list(revoked=True) == ()


def test_a_database_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chiasm.cli", "keys", "list"],
        capture_output=True,
        text=True,
        env={
            "CHIASM_DATA_DIR": str(tmp_path),
            "CHIASM_DATABASE": "postgresql://me:secret@127.0.0.1:9/x",
            "COLUMNS": "300",
        },
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert "me:***@127.0.0.1:9/x cannot be reached" in done.stderr
    assert "secret" not in done.stderr


# The ledger -------------------------------------------------------------------------------------


@pytest.fixture
def rows(database: Database) -> list[dict[str, Any]]:
    """Three requests, the oldest first, as programs see them."""
    _, key = Keys(database).create("search team")
    with closing(Ledger(database)) as ledger:
        ledger.put(
            entry(key=key.id, images=2, image_tokens=1530, cost=Decimal("0.0021"), seconds=1)
        )
        ledger.put(entry(time=NOON + timedelta(days=1), alias="=HYPERLINK(1)", seconds=3.0))
        later = NOON + timedelta(days=2)
        ledger.put(entry(time=later, model="other", status=503, error="generator_unreachable"))
    exported = invoke("ledger", "export").stdout.splitlines()
    return [json.loads(line) for line in exported]


def test_rows(rows: list[dict[str, Any]]) -> None:
    assert [row["time"] for row in rows] == [
        "2026-11-25T12:00:00Z",
        "2026-11-26T12:00:00Z",
        "2026-11-27T12:00:00Z",
    ]
    assert (rows[0]["cost"], rows[0]["image_tokens"], rows[1]["cost"]) == (0.0021, 1530, None)
    assert read("ledger", "show") == rows[::-1]
    assert read("ledger", "show", "-n", "1") == [rows[2]]
    assert read("ledger", "show", "--key", "search team") == [rows[0]]
    assert read("ledger", "show", "--model", "other") == [rows[2]]
    assert read("ledger", "show", "--since", "2026-11-26", "--until", "2026-11-27") == [rows[1]]
    assert read("ledger", "show", "--since", "2026-11-26T13:00+01:00") == rows[:0:-1]
    assert read("ledger", "show", "--until", "9999d") == []
    table = invoke("ledger", "show", columns=80).stdout
    assert "$0.002100" in table
    assert "1,530" in table


def test_sums(rows: list[dict[str, Any]]) -> None:
    days = read("ledger", "summary", "--by", "day")
    assert [day["name"] for day in days] == ["2026-11-25", "2026-11-26", "2026-11-27"]
    models = {model["name"]: model for model in read("ledger", "summary")}
    assert models["openai/gpt-5-mini"]["requests"] == 2
    assert models["openai/gpt-5-mini"]["cost"] == 0.0021
    assert (models["openai/gpt-5-mini"]["median_seconds"], models["openai/other"]["failed"]) == (
        1,
        1,
    )
    result = invoke("ledger", "summary", "--by", "key", columns=80)
    assert "search team" in result.stdout
    assert "(no key)" in result.stdout
    assert "1 requests have no known price" in result.stderr


def test_csv(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    result = invoke("ledger", "export", "--format", "csv", "-o", "ledger.csv")
    assert "3 rows in ledger.csv" in result.stderr
    read_back = list(csv.DictReader(io.StringIO(Path("ledger.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in read_back] == [row["id"] for row in rows]
    assert read_back[0]["cost"] == "0.0021"
    assert read_back[1]["alias"] == "'=HYPERLINK(1)"  # no formula for a spreadsheet
    with pytest.raises(InvalidRequest, match="cannot be written"):
        invoke("ledger", "export", "-o", str(tmp_path))


def test_an_empty_ledger(database: Database) -> None:
    assert read("ledger", "show") == read("ledger", "summary") == []
    assert invoke("ledger", "export").stdout == ""
    assert "no such requests" in invoke("ledger", "summary").stderr
    with pytest.raises(KeyNotFound):
        invoke("ledger", "show", "--key", "nobody")
    with pytest.raises(InvalidRequest, match="--since cannot be 'yesterday'"):
        invoke("ledger", "show", "--since", "yesterday")
