"""`chiasm keys …`: who may ask, what, and for how much."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.options import Json, read_settings
from chiasm.cli.times import iso, moment, shown, span

if TYPE_CHECKING:
    from chiasm.operations.budgets import Budgets, Left, Reservation
    from chiasm.operations.keys import Key, Keys

app = typer.Typer(help="Make, list and revoke keys to this server.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or its name.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it.")],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model it may ask: gpt-5*; repeatable. None is all."),
    ] = None,
    collections: Annotated[
        list[str] | None,
        typer.Option("--collection", "-c", help="A collection it may use; repeatable."),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            "-b",
            help="money/day=5.00, image_tokens/month=1000000, requests/day=200; repeatable.",
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How fast it may ask.")
    ] = None,
    image_tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How many picture tokens it may send.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="A date, 2027-01-31, or a span from now, 30d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its text goes to standard output, once: it is kept nowhere."""
    from chiasm import terminal
    from chiasm.operations.budgets import Budget

    wanted = [Budget.parse(text) for text in budgets or ()]
    end = None if expires is None else moment(expires, "--expires", ahead=True)
    with _opened() as (keys, _):
        text, key = keys.create(
            name,
            models=models or (),
            collections=collections or (),
            budgets=wanted,
            requests_per_minute=requests_per_minute,
            image_tokens_per_minute=image_tokens_per_minute,
            expires=end,
        )
    if as_json:
        terminal.print_json({"key": text, **as_dict(key)})
        return
    _say_text(text, key)


@app.command("list")
def list_keys(
    everything: Annotated[bool, typer.Option("--all", help="Revoked ones, too.")] = False,
    as_json: Json = False,
) -> None:
    """The keys, and what they are for."""
    from chiasm import terminal

    with _opened() as (keys, _):
        found = keys.list(revoked=everything)
    if as_json:
        terminal.print_json([as_dict(key) for key in found])
        return
    if not found:
        terminal.err.print("No key is in use. Make one: chiasm keys create NAME")
        return
    terminal.print_rows(
        None,
        ("id", "name", "begins", "state", "models"),
        [
            (key.id, key.name, f"{key.prefix}…", _until(key), ", ".join(key.models) or "all")
            for key in found
        ],
        foldable=["name", "state", "models"],
    )


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """One key: its scope, its rates, and what is left of its budgets."""
    from chiasm import terminal

    with _opened() as (keys, budgets):
        key = keys.find(name)
        left = budgets.left(key)
    if as_json:
        terminal.print_json({**as_dict(key), "budgets": [_left_as_dict(one) for one in left]})
        return
    rows = [
        ("id", key.id),
        ("name", key.name),
        ("begins", f"{key.prefix}…"),
        ("state", _state(key)),
        ("created", shown(key.created)),
        ("expires", shown(key.expires) or "never"),
        ("revoked", shown(key.revoked)),
        ("models", ", ".join(key.models) or "all"),
        ("collections", ", ".join(key.collections) or "all"),
        ("requests a minute", _number(key.requests_per_minute)),
        ("image tokens a minute", _number(key.image_tokens_per_minute)),
    ]
    terminal.print_rows(None, ("", ""), [row for row in rows if row[1]], foldable=[""])
    if left:
        terminal.print_rows(
            None,
            ("budget", "spent", "reserved", "left", "begins anew"),
            [
                (
                    str(one.budget),
                    _amount(one, one.spent),
                    _amount(one, one.reserved),
                    _amount(one, one.left),
                    one.resets.date().isoformat(),
                )
                for one in left
            ],
            numeric=["spent", "reserved", "left"],
            foldable=["budget"],
        )


@app.command()
def revoke(name: Name, as_json: Json = False) -> None:
    """End a key. Running servers refuse it within two seconds."""
    from chiasm import terminal

    with _opened() as (keys, _):
        key = keys.revoke(name)
    if as_json:
        terminal.print_json(as_dict(key))
        return
    terminal.err.print(f"{key.name} ({key.id}) is revoked.", highlight=False, markup=False)


@app.command()
def rotate(name: Name, as_json: Json = False) -> None:
    """Give a key a new text; the old one ends. Its budgets and what it spent stay."""
    from chiasm import terminal

    with _opened() as (keys, _):
        text, key = keys.rotate(name)
    if as_json:
        terminal.print_json({"key": text, **as_dict(key)})
        return
    _say_text(text, key)


@app.command()
def reservations(
    name: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Of this key alone: its id, or its name.")
    ] = None,
    older_than: Annotated[
        str, typer.Option(help="Only those at least so old: 90m, 12h, 1d.")
    ] = "0m",
    clear: Annotated[bool, typer.Option("--clear", help="Give them back to the budgets.")] = False,
    as_json: Json = False,
) -> None:
    """What is reserved and not settled: requests under way, or what a crash has left."""
    from chiasm import terminal

    age = span(older_than, "--older-than")
    with _opened() as (keys, budgets):
        key = None if name is None else keys.find(name).id
        read = budgets.clear if clear else budgets.open_reservations
        found = read(key=key, older_than=age)
    if as_json:
        terminal.print_json([_reservation_as_dict(one) for one in found])
        return
    if not found:
        terminal.err.print("Nothing is reserved.")
        return
    terminal.print_rows(
        "Given back:" if clear else None,
        ("since", "key", "money", "image tokens", "requests"),
        [
            (
                shown(one.created),
                one.key,
                f"${one.estimate.money:.6f}",
                f"{one.estimate.image_tokens:,}",
                f"{one.estimate.requests}",
            )
            for one in found
        ],
        numeric=["money", "image tokens", "requests"],
    )


# What the commands share ------------------------------------------------------------------------


@contextmanager
def _opened() -> Iterator[tuple[Keys, Budgets]]:
    from chiasm.operations.budgets import Budgets
    from chiasm.operations.database import open_database
    from chiasm.operations.keys import Keys

    settings = read_settings({})
    with closing(open_database(settings.database, settings.data_dir)) as database:
        yield Keys(database), Budgets(database)


def as_dict(key: Key) -> dict[str, Any]:
    """For programs."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "state": _state(key),
        "created": iso(key.created),
        "expires": iso(key.expires),
        "revoked": iso(key.revoked),
        "models": [*key.models],
        "collections": [*key.collections],
        "budgets": [
            {"of": budget.of, "period": budget.period, "limit": _plain(budget.limit)}
            for budget in key.budgets
        ],
        "requests_per_minute": key.requests_per_minute,
        "image_tokens_per_minute": key.image_tokens_per_minute,
    }


def _left_as_dict(left: Left) -> dict[str, Any]:
    return {
        "of": left.budget.of,
        "period": left.budget.period,
        "limit": _plain(left.budget.limit),
        "spent": _plain(left.spent),
        "reserved": _plain(left.reserved),
        "left": _plain(left.left),
        "resets": iso(left.resets),
    }


def _reservation_as_dict(reservation: Reservation) -> dict[str, Any]:
    return {
        "id": reservation.id,
        "key": reservation.key,
        "created": iso(reservation.created),
        "money": _plain(reservation.estimate.money),
        "image_tokens": reservation.estimate.image_tokens,
        "requests": reservation.estimate.requests,
    }


def _plain(amount: Any) -> int | float:
    return amount if isinstance(amount, int) else float(amount)


def _amount(left: Left, amount: Any) -> str:
    from chiasm.operations import money

    return money.shown(amount) if left.budget.of == "money" else f"{amount:,}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _state(key: Key) -> str:
    from chiasm.operations.moments import now

    return key.state(now())


def _until(key: Key) -> str:
    state = _state(key)
    return f"until {shown(key.expires)}" if state == "active" and key.expires else state


def _say_text(text: str, key: Key) -> None:
    from chiasm import terminal

    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    said = f"{key.name} ({key.id}). This is shown once: keep it now."
    terminal.err.print(said, highlight=False, markup=False)
