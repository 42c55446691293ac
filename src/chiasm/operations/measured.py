"""How long models have taken of late, by the ledger."""

from __future__ import annotations

from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

import sqlalchemy as sa

from chiasm.operations.tables import ledger as table

if TYPE_CHECKING:
    from chiasm.operations.database import Database

_NEWEST = 200  # requests a model
_LEAST = 3


def first_token_seconds(database: Database) -> dict[str, float]:
    """Target → median seconds to the first token of its newest answers. Raises StoreError.

    Of requests that had pictures and were not answered from the cache; a model that has answered
    fewer than three is left out.
    """
    name = sa.case((table.c.provider == "", table.c.model), else_=_FULL)
    place = sa.func.row_number().over(partition_by=name, order_by=table.c.time.desc())
    seconds = table.c.seconds_to_first_token
    newest = (
        sa.select(name.label("name"), seconds.label("seconds"), place.label("place"))
        .where(seconds.is_not(None), table.c.status < 300, table.c.cache_hit.is_(False))
        .where(table.c.images > 0)
        .subquery()
    )
    query = sa.select(newest.c.name, newest.c.seconds).where(newest.c.place <= _NEWEST)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(newest.c.name)).all()
    groups = {
        str(name): [float(row.seconds) for row in group]
        for name, group in groupby(rows, lambda row: row.name)
    }
    return {name: median(times) for name, times in groups.items() if len(times) >= _LEAST}


_FULL = table.c.provider + "/" + table.c.model
