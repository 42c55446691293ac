"""What the ledger says, against sums made by hand."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from chiasm.errors import InvalidRequest
from chiasm.operations import statements
from chiasm.operations.database import Database
from chiasm.operations.keys import Keys
from chiasm.operations.ledger import Entry, Ledger
from chiasm.operations.statements import Chosen, Summary
from tests.operations.entries import NOON, entry


def store(database: Database, entries: list[Entry]) -> None:
    with closing(Ledger(database)) as ledger:
        for one in entries:
            ledger.put(one)
        assert ledger.flush()


def a_week(keys: list[str | None]) -> list[Entry]:
    draw = random.Random(7)
    models = [("openai", "gpt-5-mini"), ("native", "default-vlm"), ("anthropic", "claude")]
    found = []
    for number in range(400):
        provider, model = draw.choice(models)
        failed = draw.random() < 0.1
        found.append(
            entry(
                time=NOON + timedelta(seconds=draw.randrange(7 * 86400)),
                request_id=f"req_{number}",
                provider=provider,
                model=model,
                alias=draw.choice(["fast", "good"]),
                key=draw.choice(keys),
                status=503 if failed else 200,
                images=draw.randrange(4),
                text_tokens=draw.randrange(500),
                image_tokens=draw.randrange(5000),
                cached_tokens=draw.randrange(100),
                answer_tokens=draw.randrange(900),
                cost=None if draw.random() < 0.2 else Decimal(draw.randrange(10**8)).scaleb(-9),
                planned_cost=Decimal(draw.randrange(10**8)).scaleb(-9),
                seconds=draw.expovariate(1.0),
            )
        )
    return found


def answered(one: Entry) -> bool:
    return one.status < 400 or any((one.text_tokens, one.image_tokens, one.answer_tokens))


def by_hand(entries: list[Entry], name: Callable[[Entry], str]) -> dict[str, Summary]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for one in entries:
        groups[name(one)].append(one)
    found = {}
    for label, group in groups.items():
        seconds = sorted(one.seconds for one in group if one.status < 400)

        def rank(percent: int, seconds: list[float] = seconds) -> float | None:
            return seconds[math.ceil(percent / 100 * len(seconds)) - 1] if seconds else None

        found[label] = Summary(
            name=label,
            requests=len(group),
            failed=sum(one.status >= 400 for one in group),
            images=sum(one.images for one in group),
            text_tokens=sum(one.text_tokens for one in group),
            image_tokens=sum(one.image_tokens for one in group),
            cached_tokens=sum(one.cached_tokens for one in group),
            answer_tokens=sum(one.answer_tokens for one in group),
            cost=sum((one.cost or Decimal(0) for one in group), Decimal(0)),
            planned_cost=sum((one.planned_cost or Decimal(0) for one in group), Decimal(0)),
            unpriced=sum(one.cost is None and answered(one) for one in group),
            median_seconds=rank(50),
            p95_seconds=rank(95),
        )
    return found


def test_summaries(database: Database) -> None:
    _, key = Keys(database).create("search team")
    entries = a_week([key.id, "key_elsewhere", None])
    store(database, entries)

    by_model = {one.name: one for one in statements.summary(database, "model")}
    assert by_model == by_hand(entries, lambda one: f"{one.provider}/{one.model}")
    by_day = {one.name: one for one in statements.summary(database, "day")}
    assert by_day == by_hand(entries, lambda one: one.time.date().isoformat())
    assert len(by_day) == 8

    names = {key.id: "search team", "key_elsewhere": "key_elsewhere", None: ""}
    by_key = {one.name: one for one in statements.summary(database, "key")}
    assert {one.name: one.key for one in by_key.values()} == {
        "search team": key.id,
        "key_elsewhere": "key_elsewhere",
        "": None,
    }
    expected = by_hand(entries, lambda one: names[one.key])
    assert {name: (s.requests, s.cost, s.p95_seconds) for name, s in by_key.items()} == {
        name: (s.requests, s.cost, s.p95_seconds) for name, s in expected.items()
    }


def test_the_dearest_comes_first_and_days_come_in_order(database: Database) -> None:
    store(database, a_week([None]))
    costs = [one.cost for one in statements.summary(database, "model")]
    assert costs == sorted(costs, reverse=True)
    days = [one.name for one in statements.summary(database, "day")]
    assert days == sorted(days)


def test_chosen_rows(database: Database) -> None:
    entries = a_week(["key_1", "key_2"])
    store(database, entries)

    def same(chosen: Chosen, wanted: Callable[[Entry], bool]) -> None:
        expected = [one for one in entries if wanted(one)]
        assert 0 < len(expected) < len(entries)
        newest = sorted(expected, key=lambda one: (one.time, one.id), reverse=True)
        assert statements.rows(database, chosen, limit=1000) == newest
        assert statements.rows(database, chosen, limit=7) == newest[:7]
        assert list(statements.export(database, chosen)) == newest[::-1]
        assert sum(one.requests for one in statements.summary(database, "day", chosen)) == len(
            newest
        )

    middle = entries[17].time
    same(Chosen(since=middle), lambda one: one.time >= middle)
    same(Chosen(until=middle), lambda one: one.time < middle)
    same(Chosen(key="key_1"), lambda one: one.key == "key_1")
    same(Chosen(model="default-vlm"), lambda one: one.model == "default-vlm")
    same(Chosen(model="native/default-vlm"), lambda one: one.model == "default-vlm")
    same(Chosen(model="fast"), lambda one: one.alias == "fast")
    same(
        Chosen(since=middle, key="key_2", model="claude"),
        lambda one: one.time >= middle and one.key == "key_2" and one.model == "claude",
    )


def test_export_goes_on_where_a_page_ends_between_equal_times(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "_PAGE", 10)
    entries = [entry(time=NOON + timedelta(seconds=number // 7)) for number in range(40)]
    store(database, entries)
    found = list(statements.export(database))
    assert sorted(one.id for one in found) == sorted(one.id for one in entries)
    assert [one.time for one in found] == sorted(one.time for one in entries)


def test_an_empty_ledger(database: Database) -> None:
    assert statements.rows(database) == list(statements.export(database)) == []
    assert statements.summary(database, "model") == statements.drift(database) == []
    with pytest.raises(InvalidRequest, match="no summary by colour"):
        statements.summary(database, "colour")  # type: ignore[arg-type]


def test_what_was_never_answered_is_not_without_a_price(database: Database) -> None:
    refused, left = entry(status=429, error="rate_limit_exceeded"), entry(status=499)
    broken = entry(status=499, text_tokens=12, answer_tokens=3)
    store(database, [refused, left, broken, entry(text_tokens=12, answer_tokens=3)])
    (found,) = statements.summary(database, "model")
    assert (found.requests, found.failed) == (4, 3)
    assert found.unpriced == 2, "the one that broke off took tokens"


def test_drift_by_model(database: Database) -> None:
    """One model is billed as planned, one from a day on a third more; a third cannot be judged."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    entries = []
    for hour in range(100):
        usual = {"time": start + timedelta(hours=hour), "planned_text_tokens": 20}
        usual |= {"planned_image_tokens": 300 + hour, "text_tokens": 20}
        entries.append(entry(**usual, image_tokens=300 + hour))
        more = 1 if hour < 60 else 4 / 3
        changed = round((320 + hour) * more) - 20
        entries.append(entry(**usual, model="changed", image_tokens=changed))
        usual |= {"model": "unknown", "image_tokens": 9}
        unknown = ({"cache_hit": True}, {"status": 500}, {"planned_text_tokens": None})
        entries += [entry(**(usual | other)) for other in unknown]
    store(database, entries)
    changed, steady = statements.drift(database)
    assert (steady.model, steady.requests, steady.ratio) == ("openai/gpt-5-mini", 100, 1.0)
    assert not steady.drifts
    assert steady.changed is steady.before is None
    assert changed.model == "openai/changed"
    assert (changed.changed, changed.requests) == (start + timedelta(hours=60), 40)
    assert changed.before == 1.0
    assert changed.ratio == pytest.approx(4 / 3, rel=1e-3)
    assert changed.drifts
    only = statements.drift(database, Chosen(model="gpt-5-mini"))
    assert only == [steady]
