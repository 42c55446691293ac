"""How long models have taken of late, by the ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

_NEWEST = 200  # requests a model
_LEAST = 3

# Read without SQLAlchemy, whose import takes longer than a whole plan: where the ledger is a file.
_QUERY = f"""
    SELECT name, seconds FROM (
        SELECT
            CASE WHEN provider = '' THEN model ELSE provider || '/' || model END AS name,
            seconds_to_first_token AS seconds,
            row_number() OVER (PARTITION BY provider, model ORDER BY time DESC) AS place
        FROM chiasm_ledger
        WHERE seconds_to_first_token IS NOT NULL AND status < 300 AND images > 0 AND NOT cache_hit
    ) AS newest
    WHERE place <= {_NEWEST}
    ORDER BY name
"""


def first_token_seconds(url: str, data_dir: Path) -> dict[str, float]:
    """Target → median seconds to the first token of its newest answers about pictures.

    url: the setting `database`. A model that has answered fewer than three is left out, and so is
    everything where there is no ledger yet. Raises StoreError.
    """
    rows = _in_database(url, data_dir) if url else _in_file(data_dir / "operations.db")
    groups = {
        name: [seconds for _, seconds in group] for name, group in groupby(rows, lambda row: row[0])
    }
    return {name: median(times) for name, times in groups.items() if len(times) >= _LEAST}


def _in_file(path: Path) -> list[tuple[str, float]]:
    if not path.is_file():
        return []
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            return _pairs(connection.execute(_QUERY))
    except sqlite3.Error:  # being made, or of another version: `chiasm doctor` tells
        return []


def _in_database(url: str, data_dir: Path) -> list[tuple[str, float]]:
    import sqlalchemy as sa

    from chiasm.operations.database import open_database

    with closing(open_database(url, data_dir)) as database, database.reading() as connection:
        return _pairs(connection.execute(sa.text(_QUERY)))


def _pairs(rows: Iterable[Any]) -> list[tuple[str, float]]:
    return [(str(name), float(seconds)) for name, seconds in rows]
