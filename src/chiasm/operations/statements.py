"""What the ledger says: its rows, their sums by model, key or day, and plans against bills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from chiasm.errors import InvalidRequest
from chiasm.operations import moments, money
from chiasm.operations.drift import Drift, Sample
from chiasm.operations.drift import drift as drift_of
from chiasm.operations.ledger import Entry, entry_of
from chiasm.operations.tables import keys
from chiasm.operations.tables import ledger as table

if TYPE_CHECKING:
    from chiasm.operations.database import Database

By = Literal["model", "key", "day"]

_PAGE = 1000
_SAMPLES = 5_000  # requests a model that drift looks at: the newest
# Literals, not parameters: PostgreSQL must see that what is selected is what is grouped by.
_FULL_MODEL = table.c.provider + sa.literal_column("'/'", sa.String) + table.c.model
_GROUPS: dict[str, sa.ColumnElement[Any]] = {
    "model": _FULL_MODEL,
    "key": sa.func.coalesce(table.c.key_id, sa.literal_column("''", sa.String)),
    "day": table.c.time // sa.literal_column(str(moments.DAY), sa.BigInteger),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows. since: with, until: without that moment. key: its id.

    model: the one that answered, with its provider or without, or the name it was asked by.
    """

    since: datetime | None = None
    until: datetime | None = None
    key: str | None = None
    model: str | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """For a WHERE."""
        found: list[sa.ColumnElement[bool]] = []
        if self.since is not None:
            found.append(table.c.time >= moments.microseconds(self.since))
        if self.until is not None:
            found.append(table.c.time < moments.microseconds(self.until))
        if self.key is not None:
            found.append(table.c.key_id == self.key)
        if self.model is not None:
            names = (table.c.model, table.c.alias, _FULL_MODEL)
            found.append(sa.or_(*(name == self.model for name in names)))
        return found


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums of one model, key or day. Costs in US dollars.

    name: `provider/model`; a key's name, or its id where it is not known; a date, UTC. key: its id.
    unpriced: requests that took tokens whose cost is not known, and not in the sum. failed: with a
    status from 400.
    median_seconds, p95_seconds: of those that did not fail, by nearest rank; None for none.
    """

    name: str
    requests: int
    failed: int
    images: int
    text_tokens: int
    image_tokens: int
    cached_tokens: int
    answer_tokens: int
    cost: Decimal
    planned_cost: Decimal
    unpriced: int
    median_seconds: float | None
    p95_seconds: float | None
    key: str | None = None


def rows(database: Database, chosen: Chosen | None = None, *, limit: int = 100) -> list[Entry]:
    """The newest first. Raises StoreError."""
    chosen = chosen or Chosen()
    query = sa.select(table).where(*chosen.conditions())
    query = query.order_by(table.c.time.desc(), table.c.id.desc()).limit(limit)
    with database.reading() as connection:
        return [entry_of(row) for row in connection.execute(query).mappings()]


def export(database: Database, chosen: Chosen | None = None) -> Iterator[Entry]:
    """All of them, the oldest first, a page at a time. Raises StoreError."""
    chosen = chosen or Chosen()
    query = sa.select(table).where(*chosen.conditions())
    query = query.order_by(table.c.time, table.c.id).limit(_PAGE)
    place = sa.tuple_(table.c.time, table.c.id)
    page = query
    while True:
        with database.reading() as connection:
            found = connection.execute(page).mappings().all()
        yield from map(entry_of, found)
        if len(found) < _PAGE:
            return
        last = found[-1]
        page = query.where(place > sa.tuple_(sa.literal(last["time"]), sa.literal(last["id"])))


def summary(database: Database, by: By, chosen: Chosen | None = None) -> list[Summary]:
    """One row a model or key, the dearest first; or a day, in their order. Raises StoreError."""
    if by not in get_args(By):
        raise InvalidRequest(f"There is no summary by {by}.", hint="By model, key or day.")
    conditions = (chosen or Chosen()).conditions()
    with database.reading() as connection:
        sums = connection.execute(_sums(by, conditions)).all()
        times = {row.name: row for row in connection.execute(_times(by, conditions))}
        names = {row.id: row.name for row in connection.execute(sa.select(keys.c.id, keys.c.name))}
    found = [_summary(by, row, times.get(row.name), names) for row in sums]
    if by == "day":
        return sorted(found, key=lambda one: one.name)
    return sorted(found, key=lambda one: (-one.cost, -one.requests, one.name))


def drift(database: Database, chosen: Chosen | None = None) -> list[Drift]:
    """Each model's billed prompt tokens against its planned ones. Raises StoreError.

    Of answered requests that had a plan and were not answered from the cache, the newest of each.
    """
    place = sa.func.row_number().over(partition_by=_FULL_MODEL, order_by=table.c.time.desc())
    planned = table.c.planned_text_tokens + table.c.planned_image_tokens
    billed = table.c.text_tokens + table.c.image_tokens
    newest = (
        sa.select(
            _FULL_MODEL.label("name"),
            table.c.time,
            planned.label("planned"),
            billed.label("billed"),
            place.label("place"),
        )
        .where(*(chosen or Chosen()).conditions())
        .where(table.c.status < 300, table.c.cache_hit.is_(False), planned > 0, billed > 0)
        .subquery()
    )
    query = sa.select(newest).where(newest.c.place <= _SAMPLES)
    query = query.order_by(newest.c.name, newest.c.place.desc())
    with database.reading() as connection:
        found = connection.execute(query).all()
    return [
        drift_of(name, [Sample(moments.moment(r.time), r.planned, r.billed) for r in group])
        for name, group in groupby(found, lambda row: str(row.name))
    ]


# SQL --------------------------------------------------------------------------------------------

_SUMMED = (
    "images",
    "text_tokens",
    "image_tokens",
    "cached_tokens",
    "answer_tokens",
    "cost",
    "planned_cost",
)


def _sums(by: By, conditions: list[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    name = _GROUPS[by].label("name")
    count = sa.func.count()
    tokens = table.c.text_tokens + table.c.image_tokens + table.c.answer_tokens
    unanswered = sa.and_(table.c.status >= 400, tokens == 0)  # nothing that could have a price
    return (
        sa.select(
            name,
            count.label("requests"),
            count.filter(table.c.status >= 400).label("failed"),
            count.filter(table.c.cost.is_(None), sa.not_(unanswered)).label("unpriced"),
            *(sa.func.sum(table.c[column]).label(column) for column in _SUMMED),
        )
        .where(*conditions)
        .group_by(name)
    )


def _times(by: By, conditions: list[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """Nearest ranks by window functions, which both databases have; percentiles SQLite has not."""
    name = _GROUPS[by].label("name")
    ranked = (
        sa.select(
            name,
            table.c.seconds,
            sa.func.row_number().over(partition_by=name, order_by=table.c.seconds).label("place"),
            sa.func.count().over(partition_by=name).label("n"),
        )
        .where(*conditions, table.c.status < 400)
        .subquery()
    )

    def rank(percent: int) -> sa.ColumnElement[float]:
        place = (ranked.c.n * percent + 99) // 100
        return sa.func.max(sa.case((ranked.c.place == place, ranked.c.seconds)))

    return sa.select(ranked.c.name, rank(50).label("median"), rank(95).label("p95")).group_by(
        ranked.c.name
    )


def _summary(by: By, row: sa.Row[Any], times: sa.Row[Any] | None, names: dict[str, str]) -> Summary:
    sums = {column: int(row._mapping[column] or 0) for column in _SUMMED}
    name = str(row.name)
    if by == "day":
        name = moments.moment(int(row.name) * moments.DAY).date().isoformat()
    return Summary(
        name=names.get(name, name) if by == "key" else name,
        requests=row.requests,
        failed=row.failed,
        images=sums["images"],
        text_tokens=sums["text_tokens"],
        image_tokens=sums["image_tokens"],
        cached_tokens=sums["cached_tokens"],
        answer_tokens=sums["answer_tokens"],
        cost=money.dollars(sums["cost"]),
        planned_cost=money.dollars(sums["planned_cost"]),
        unpriced=row.unpriced,
        median_seconds=None if times is None else times.median,
        p95_seconds=None if times is None else times.p95,
        key=(name or None) if by == "key" else None,
    )
