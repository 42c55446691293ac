"""`chiasm ledger …`: what was asked, what it took, what it cost."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from chiasm.cli.options import Json, read_settings
from chiasm.cli.times import iso, moment
from chiasm.errors import InvalidRequest, NoSpace

if TYPE_CHECKING:
    from chiasm.operations.database import Database
    from chiasm.operations.ledger import Entry
    from chiasm.operations.statements import Chosen, Summary

app = typer.Typer(help="Read the ledger: one row a request.", no_args_is_help=True)

Since = Annotated[
    str | None, typer.Option(help="From then on: 2026-11-01, or a span before now, 7d.")
]
Until = Annotated[str | None, typer.Option(help="Before then; as --since.")]
KeyName = Annotated[str | None, typer.Option("--key", "-k", help="Of this key: its id or name.")]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Of this model: as it was asked, or as it answered."),
]


class By(StrEnum):
    """What to sum by."""

    model = "model"
    key = "key"
    day = "day"


class Format(StrEnum):
    """Of an exported ledger."""

    jsonl = "jsonl"
    csv = "csv"


@app.command()
def show(
    since: Since = None,
    until: Until = None,
    key: KeyName = None,
    model: ModelName = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 20,
    as_json: Json = False,
) -> None:
    """The newest requests: tokens of text, pictures and answer, US dollars, seconds."""
    from chiasm import terminal
    from chiasm.operations import statements

    with _opened(since, until, key, model) as (database, chosen):
        entries = statements.rows(database, chosen, limit=limit)
    if as_json:
        terminal.print_json([as_dict(entry) for entry in entries])
        return
    if not entries:
        terminal.err.print("The ledger has no such requests.")
        return
    numeric = ("images", "text", "image", "answer", "cost", "s")
    terminal.print_rows(
        None,
        ("time", "model", "status", *numeric),
        [
            (
                f"{entry.time:%m-%d %H:%M:%S}",
                f"{entry.provider}/{entry.model}",
                entry.error or str(entry.status),
                f"{entry.images}",
                f"{entry.text_tokens:,}",
                f"{entry.image_tokens:,}",
                f"{entry.answer_tokens:,}",
                _money(entry.cost),
                f"{entry.seconds:.2f}",
            )
            for entry in entries
        ],
        numeric=numeric,
        foldable=["model", "status"],
    )


@app.command()
def summary(
    by: Annotated[By, typer.Option("--by", help="What to sum by.")] = By.model,
    since: Since = None,
    until: Until = None,
    key: KeyName = None,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Requests, pictures, tokens, cost and seconds, summed by model, key or day."""
    from chiasm import terminal
    from chiasm.operations import statements

    with _opened(since, until, key, model) as (database, chosen):
        found = statements.summary(database, by.value, chosen)
    if as_json:
        terminal.print_json([_summary_as_dict(one) for one in found])
        return
    if not found:
        terminal.err.print("The ledger has no such requests.")
        return
    numeric = ("requests", "images", "text", "image", "answer", "cost", "p50 s", "p95 s")
    terminal.print_rows(
        None,
        (by.value, *numeric),
        [
            (
                one.name or "(no key)",
                _short(one.requests),
                _short(one.images),
                _short(one.text_tokens),
                _short(one.image_tokens),
                _short(one.answer_tokens),
                f"${one.cost:,.4f}",
                _seconds(one.median_seconds),
                _seconds(one.p95_seconds),
            )
            for one in found
        ],
        numeric=numeric,
        foldable=[by.value],
    )
    failed, unpriced = sum(one.failed for one in found), sum(one.unpriced for one in found)
    if failed:
        terminal.err.print(f"{failed:,} requests failed; seconds are of the others.")
    if unpriced:
        terminal.err.print(f"{unpriced:,} requests have no known price and are not in the cost.")


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; else standard output.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Of the rows.")] = Format.jsonl,
    since: Since = None,
    until: Until = None,
    key: KeyName = None,
    model: ModelName = None,
) -> None:
    """Every row, the oldest first, as JSON lines or CSV."""
    from chiasm import terminal
    from chiasm.operations import statements

    with _opened(since, until, key, model) as (database, chosen):
        entries = statements.export(database, chosen)
        if output is None:
            _write(entries, format, sys.stdout)
            return
        try:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = _write(entries, format, file)
        except OSError as error:
            if error.errno == 28:  # ENOSPC
                raise NoSpace(f"There is no room on the disk for {output}.") from None
            raise InvalidRequest(f"{output} cannot be written.") from None
    terminal.err.print(f"{count:,} rows in {output}", highlight=False, soft_wrap=True)


# What the commands share ------------------------------------------------------------------------


@contextmanager
def _opened(
    since: str | None, until: str | None, key: str | None, model: str | None
) -> Iterator[tuple[Database, Chosen]]:
    from chiasm.operations.database import open_database
    from chiasm.operations.keys import Keys
    from chiasm.operations.statements import Chosen

    times = {
        "since": None if since is None else moment(since, "--since"),
        "until": None if until is None else moment(until, "--until"),
    }
    settings = read_settings({})
    with closing(open_database(settings.database, settings.data_dir)) as database:
        found = None if key is None else Keys(database).find(key).id
        yield database, Chosen(key=found, model=model, **times)


def as_dict(entry: Entry) -> dict[str, Any]:
    """A row for programs. Costs are US dollars."""
    from dataclasses import asdict

    row = asdict(entry)
    for name in ("cost", "planned_cost"):
        row[name] = None if row[name] is None else float(row[name])
    return {"id": row.pop("id"), **row, "time": iso(entry.time)}


def _summary_as_dict(one: Summary) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(one), "cost": float(one.cost), "planned_cost": float(one.planned_cost)}


def _write(entries: Iterator[Entry], format: Format, file: TextIO) -> int:
    table = None
    count = 0
    for entry in entries:
        row, count = as_dict(entry), count + 1
        if format is Format.jsonl:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            continue
        if table is None:
            table = csv.DictWriter(file, row.keys())
            table.writeheader()
        table.writerow({name: _cell(value) for name, value in row.items()})
    return count


def _cell(value: Any) -> Any:
    """Callers choose some of the texts; a spreadsheet must not take one for a formula."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _money(amount: Any) -> str:
    return "" if amount is None else f"${amount:.6f}"


def _short(count: int) -> str:
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:,.0f}k" if count < 1_000_000 else f"{count / 1e6:,.1f}M"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
