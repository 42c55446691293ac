"""Keys: made, checked, revoked; and nothing said about those that are not good."""

from __future__ import annotations

import hashlib
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from chiasm.errors import InvalidKey, InvalidRequest, KeyForbidden, KeyNotFound, StoreError
from chiasm.operations import keys as keys_module
from chiasm.operations.budgets import Budget
from chiasm.operations.database import Database, open_database
from chiasm.operations.keys import Key, Keys
from chiasm.operations.tables import keys as keys_table

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: Database, clock: Clock) -> Keys:
    return Keys(database, clock)


def refusal(keys: Keys, text: str) -> str:
    with pytest.raises(InvalidKey) as caught:
        keys.check(text)
    assert caught.value.http_status == 401
    return str(caught.value)


def test_a_key_is_what_was_asked_for(keys: Keys) -> None:
    budgets = (Budget("day", "money", Decimal("4.5")), Budget("month", "image_tokens", 10**6))
    text, made = keys.create(
        " search team ",
        models=["gpt-*", "default-vlm"],
        collections=["shop"],
        budgets=budgets,
        requests_per_minute=60,
        image_tokens_per_minute=90_000,
        expires=NOON + timedelta(days=30),
    )
    assert keys.check(text) == made
    assert made == Key(
        id=made.id,
        name="search team",
        created=NOON,
        prefix=text[:10],
        models=("gpt-*", "default-vlm"),
        collections=("shop",),
        budgets=budgets,
        requests_per_minute=60,
        image_tokens_per_minute=90_000,
        expires=NOON + timedelta(days=30),
    )
    assert keys.list() == (made,)
    assert keys.find(made.id) == keys.find("search team") == made


def test_a_text_has_256_random_bits_and_is_kept_nowhere(keys: Keys, database: Database) -> None:
    texts = {keys.create("a")[0] for _ in range(20)}
    assert len(texts) == 20
    assert all(text.startswith("chk-") and len(text) >= 4 + 256 / 6 for text in texts)
    with database.reading() as connection:
        rows = connection.execute(sa.select(keys_table)).all()
    assert {row.digest for row in rows} == {
        hashlib.sha256(text.encode()).hexdigest() for text in texts
    }
    written = repr(rows)
    assert not any(text[12:] in written for text in texts)


def test_nobody_learns_why_a_key_is_not_good(keys: Keys, clock: Clock) -> None:
    revoked, key = keys.create("revoked")
    keys.revoke(key.id)
    expired, _ = keys.create("expired", expires=NOON + timedelta(hours=1))
    clock.now += timedelta(hours=1)
    good, _ = keys.create("good")
    said = {
        refusal(keys, text)
        for text in (revoked, expired, good[:-1], good + "A", good.upper(), "", "sk-1", "\ud800é")
    }
    (sentence,) = said
    assert not any(word in sentence for word in ("revoked", "expired", "unknown"))
    assert keys.check(good).name == "good"


def test_every_check_asks_the_database_the_same(keys: Keys, database: Database) -> None:
    """Or the time would tell a key that once was from one that never was."""
    revoked, key = keys.create("revoked")
    keys.revoke(key.id)
    good, _ = keys.create("good", budgets=[Budget("day", "requests", 1)])
    asked: list[str] = []

    @sa.event.listens_for(database._engine, "before_cursor_execute")
    def note(*call: object) -> None:
        asked.append(str(call[2]))

    found = []
    for text in (revoked, "chk-nothing", good):
        asked.clear()
        with suppress(InvalidKey):
            keys.check(text)
        found.append([*asked])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) >= 2


def test_a_key_expires_though_it_is_in_the_cache(keys: Keys, clock: Clock) -> None:
    text, _ = keys.create("a", expires=NOON + timedelta(seconds=1))
    keys.check(text)
    clock.now += timedelta(seconds=1)
    refusal(keys, text)


def test_a_revoked_key_ends_here_at_once_and_elsewhere_within_two_seconds(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: seconds[0])
    with (
        closing(open_database(url, tmp_path)) as one,
        closing(open_database(url, tmp_path)) as other,
    ):
        here, elsewhere = Keys(one), Keys(other)
        text, key = here.create("a")
        assert here.check(text) == elsewhere.check(text) == key
        assert here.revoke("a").revoked is not None
        refusal(here, text)
        assert elsewhere.check(text) == key  # for as long as it is remembered
        seconds[0] += 2.0
        refusal(elsewhere, text)
        assert here.revoke(key.id) == here.find(key.id)  # again changes nothing


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(
    keys: Keys, database: Database
) -> None:
    text, key = keys.create("a")
    to_revoke = [key.id]

    @sa.event.listens_for(database._engine, "after_cursor_execute")
    def revoke(*call: object) -> None:
        if to_revoke and str(call[2]).startswith("SELECT"):
            keys.revoke(to_revoke.pop())

    assert keys.check(text) == key  # it was good when it was read
    refusal(keys, text)


def test_what_is_remembered_needs_no_database(keys: Keys, database: Database) -> None:
    text, key = keys.create("a")
    assert keys.cached(text) is None
    keys.check(text)
    database.close()
    assert keys.cached(text) == key
    refusal(keys, "chk-wrong")
    with pytest.raises(InvalidKey):
        keys.cached("chk-wrong")


def test_guesses_do_not_fill_the_memory(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_CACHED", 10)
    for number in range(35):
        refusal(keys, f"chk-{number}")
    assert len(keys._cache) <= 10


def test_rotation_keeps_the_key_and_ends_the_old_text(keys: Keys) -> None:
    old, key = keys.create("a", budgets=[Budget("day", "requests", 7)])
    keys.check(old)
    new, rotated = keys.rotate("a")
    assert new != old
    assert rotated.id == key.id
    assert rotated.budgets == key.budgets
    assert keys.check(new) == rotated
    refusal(keys, old)
    keys.revoke("a")
    with pytest.raises(InvalidRequest, match="is revoked"):
        keys.rotate(key.id)


def test_a_server_that_had_a_key_is_never_open_again(keys: Keys, database: Database) -> None:
    assert not keys.any()
    keys.create("a")
    assert keys.any()
    keys.revoke("a")
    assert keys.any()
    assert Keys(database).any()


def test_revoked_keys_are_listed_where_asked(keys: Keys) -> None:
    _, first = keys.create("a")
    _, second = keys.create("b")
    keys.revoke("a")
    assert [key.id for key in keys.list()] == [second.id]
    assert {key.id for key in keys.list(revoked=True)} == {first.id, second.id}


def test_a_name_finds_the_one_key_in_use(keys: Keys) -> None:
    _, old = keys.create("a")
    keys.revoke("a")
    assert keys.find("a").id == old.id
    _, new = keys.create("a")
    assert keys.find("a").id == new.id
    keys.create("a")
    with pytest.raises(KeyNotFound, match="2 keys are named 'a'"):
        keys.find("a")
    with pytest.raises(KeyNotFound, match="There is no key 'b'"):
        keys.find("b")


def test_scopes(keys: Keys) -> None:
    _, key = keys.create("a", models=["gpt-5*", "claude-opus-4-7"], collections=["shop-*"])
    for model in ("gpt-5", "gpt-5-mini", "claude-opus-4-7"):
        key.require_model(model)
    key.require_collection("shop-1")
    for model in ("gpt-4o", "claude-opus-4", "GPT-5", "x/gpt-5", ""):
        assert not key.may_use_model(model)
        with pytest.raises(KeyForbidden, match="is not for the model") as caught:
            key.require_model(model)
        assert caught.value.http_status == 403
    with pytest.raises(KeyForbidden, match="is not for the collection"):
        key.require_collection("warehouse")
    _, free = keys.create("b")
    free.require_model("anything")
    assert free.may_use_collection("anything")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": " "},
        {"name": "a\nb"},
        {"name": "a" * 201},
        {"models": [""]},
        {"budgets": [Budget("day", "money", 1), Budget("day", "money", 2)]},
        {"requests_per_minute": 0},
        {"image_tokens_per_minute": -1},
        {"expires": NOON},
        {"expires": datetime(2027, 1, 1)},
    ],
)
def test_what_cannot_be_a_key(keys: Keys, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        keys.create(**{"name": "a", **wrong})  # type: ignore[arg-type]
    assert keys.list() == ()


def test_without_a_database_no_key_is_good(postgres_url: str, tmp_path: Path) -> None:
    with closing(open_database(postgres_url, tmp_path)) as database:
        keys = Keys(database)
        text, _ = keys.create("a")
        _end(postgres_url)
        with pytest.raises(StoreError):
            keys.check(text)


def _end(url: str) -> None:
    """Nobody may come in any more, and who is in has to go."""
    import psycopg

    name = url.split("/")[3].partition("?")[0]
    with psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
