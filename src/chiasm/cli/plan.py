"""`chiasm plan`: what pictures will cost, of every model, before one is sent."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm import collector
from chiasm.cli.options import Json, read_settings
from chiasm.errors import InvalidRequest, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chiasm.operations.drift import Drift
    from chiasm.operations.plan import Picture, PlanRow, Repeat
    from chiasm.settings import Settings


def plan(
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="PICTURE…", help="The pictures, in order.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What would be asked about them.")] = "",
    size: Annotated[
        list[str] | None, typer.Option(help="A picture of this size, 1920x1080; repeatable.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between: routes, provider/model, open models.",
            show_default="all that are known",
        ),
    ] = None,
    detail: Annotated[
        str | None, typer.Option(help="auto, low, high or original.", show_default="every one")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=0, help="Of the answer.", show_default="300")
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(help="Scale the pictures down to tokens=800 or to cost=0.002 (USD)."),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Where each number is from, and when it was read."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare bills in the ledger with their plans instead."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Tokens, cost, time and compute of pictures, model by model. Nothing is sent."""
    settings = read_settings({})
    if check:
        _check(settings, None if models is None else _names(models), as_json=as_json)
        return
    asked = [*_sizes(size or []), *_headers(pictures or [], settings)]
    if not asked and not prompt:
        raise InvalidRequest(
            "There is nothing to plan.",
            hint='Try: chiasm plan photo.jpg --prompt "What is this?", or --size 1920x1080',
        )
    with collector.paused():
        from chiasm.operations.plan import DEFAULT_ANSWER, Planner
        from chiasm.operations.price_list import PriceList

    listed = PriceList(settings.cache_dir / "prices.json")
    planner = Planner(settings, seconds=_seconds(settings), warm=False, listed=listed)
    tokens, cost = _budget(fit or [])
    rows = planner.plan(
        asked,
        prompt,
        models=None if models is None else _names(models),
        details=None if detail is None else [detail],
        answer_tokens=DEFAULT_ANSWER if answer_tokens is None else answer_tokens,
        fit_tokens=tokens,
        fit_cost=cost,
    )
    listed.save()
    repeats = planner.repeats(asked)
    if as_json:
        _print_json(rows, asked, repeats)
    else:
        _print(rows, asked, repeats, verbose=verbose)


# What was asked ---------------------------------------------------------------------------------


def _names(models: str) -> list[str]:
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise UnknownModel("--models names none.", hint="Write them with commas between.")
    return names


def _sizes(texts: Sequence[str]) -> list[Picture]:
    from chiasm.operations.plan import Picture

    found = []
    for text in texts:
        width, _, height = text.lower().replace("×", "x").partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise InvalidRequest(f"--size {text} is no size.", hint="Write it as 1920x1080.")
        found.append(Picture(int(width), int(height), name=text))
    return found


def _headers(paths: Sequence[Path], settings: Settings) -> list[Picture]:
    """Sizes from the pictures' headers, and digests of their files where two are as long."""
    from chiasm.media.decode import read_header
    from chiasm.operations.plan import Picture

    headers = [read_header(path, limits=settings.media) for path in paths]
    lengths = [path.stat().st_size for path in paths]
    return [
        Picture(*header.size, name=str(path), digest=_digest(path, lengths, length))
        for header, path, length in zip(headers, paths, lengths, strict=True)
    ]


def _digest(path: Path, lengths: Sequence[int], length: int) -> str:
    if lengths.count(length) < 2:
        return ""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _budget(fit: Sequence[str]) -> tuple[int | None, Decimal | None]:
    """`tokens=800`, `cost=0.002`."""
    tokens, cost = None, None
    for text in fit:
        for each in text.split(","):
            name, _, value = each.strip().partition("=")
            try:
                amount = Decimal(value.strip().lstrip("$"))
                if not amount.is_finite() or amount <= 0:
                    raise InvalidOperation
                if name == "tokens" and amount == amount.to_integral_value():
                    tokens = int(amount)
                elif name == "cost":
                    cost = amount
                else:
                    raise InvalidOperation
            except InvalidOperation:
                raise InvalidRequest(
                    f"--fit {each.strip()} is no budget.",
                    hint="Write tokens=800, or cost=0.002 for US dollars.",
                    param="fit",
                ) from None
    return tokens, cost


def _seconds(settings: Settings) -> Callable[[str], float | None]:
    """To a target's first token by the ledger; without one nothing is known."""
    from chiasm.errors import StoreError
    from chiasm.operations.measured import first_token_seconds

    try:
        return first_token_seconds(settings.database, settings.data_dir).get
    except StoreError as error:
        from chiasm import terminal

        terminal.err.print(f"Seconds are not shown: {error.message}", highlight=False, markup=False)
        return lambda target: None


# What is shown ----------------------------------------------------------------------------------


def _print_json(
    rows: Sequence[PlanRow], pictures: Sequence[Picture], repeats: Sequence[Repeat]
) -> None:
    from chiasm import terminal
    from chiasm.operations.plan_row import plan_as_dict

    terminal.print_json(plan_as_dict(rows, pictures, repeats))


def _print(
    rows: Sequence[PlanRow],
    pictures: Sequence[Picture],
    repeats: Sequence[Repeat],
    *,
    verbose: bool,
) -> None:
    from chiasm import terminal

    shown = [row for row in rows if row.refusal is None]
    timed = any(row.seconds_to_first_token is not None for row in shown)
    open_ones = any(row.vision_flops is not None for row in shown)
    columns = ["model", "detail", "seen at", "image", "text", "request", "per 1,000"]
    columns += ["first token"] * timed + ["vision + language"] * open_ones
    columns += ["rule", "prices"] * verbose
    numeric = ["image", "text", "request", "per 1,000", "first token", "vision + language"]
    table = []
    for row in shown:
        cells = [row.target, row.detail, _seen(row), f"{row.image_tokens:,}", _text(row)]
        cells += [_dollars(row.cost), _dollars(row.cost and row.cost * 1000, places=2)]
        cells += [_time(row)] * timed + [_compute(row)] * open_ones
        cells += [_rule(row), row.price] * verbose
        table.append(cells)
    terminal.print_rows(
        _title(pictures, rows),
        columns,
        table,
        numeric=numeric,
        foldable=["model", "rule", "prices"],
    )
    for row in rows:
        if row.refusal is not None:
            terminal.err.print(f"{row.target}: {row.refusal}", highlight=False, markup=False)
        elif row.fits_context is False:
            terminal.err.print(
                f"{row.target}: more than its context of {row.context:,} tokens.", highlight=False
            )
    for repeat in repeats:
        terminal.err.print(
            f"Picture {repeat.picture + 1} is picture {repeat.first + 1} again; each is counted, "
            "for each is billed.",
            highlight=False,
        )


def _title(pictures: Sequence[Picture], rows: Sequence[PlanRow]) -> str:
    what = ", ".join(f"{each.width}×{each.height}" for each in pictures[:4])
    more = f" and {len(pictures) - 4} more" if len(pictures) > 4 else ""
    answer = f"an answer of {rows[0].answer_tokens:,} tokens" if rows else ""
    return f"{what}{more}{', ' if what else ''}{answer}; US dollars by list prices"


def _seen(row: PlanRow) -> str:
    """The size at which the model sees the first picture, and how many crops it makes of it."""
    if not row.images:
        return ""
    first = row.images[0]
    crops = f" in {first.tiles}" if first.tiles > 1 else ""
    more = f" +{len(row.images) - 1}" if len(row.images) > 1 else ""
    return f"{first.size[0]}×{first.size[1]}{crops}{more}"


def _text(row: PlanRow) -> str:
    off = round(row.text_tokens * row.text_error)
    return f"{row.text_tokens:,}" + (f" ±{off:,}" if off else "")


def _dollars(cost: Decimal | None, *, places: int = 5) -> str:
    return "" if cost is None else f"${cost:,.{places}f}"


def _time(row: PlanRow) -> str:
    seconds = row.seconds_to_first_token
    if seconds is None:
        return ""
    return f"{seconds:.2f} s"


def _compute(row: PlanRow) -> str:
    if row.vision_flops is None or row.language_flops is None:
        return ""
    return f"{row.vision_flops / 1e12:,.2f} + {row.language_flops / 1e12:,.2f} TFLOP"


def _rule(row: PlanRow) -> str:
    read = "" if row.read is None else f", {row.read:%Y-%m-%d}"
    return f"{row.source}{read} ({row.evidence})" if row.source else ""


# Planned and billed -----------------------------------------------------------------------------


def _check(settings: Settings, models: Sequence[str] | None, *, as_json: bool) -> None:
    """The ledger's bills against its plans. Exits with 1 where a model has drifted."""
    from contextlib import closing

    from chiasm import terminal
    from chiasm.operations.database import open_database
    from chiasm.operations.statements import drift

    with closing(open_database(settings.database, settings.data_dir)) as database:
        found = drift(database)
    if models is not None:
        found = [each for each in found if each.model in models or each.model.lstrip("/") in models]
    if as_json:
        terminal.print_json([_drift_as_dict(each) for each in found])
    elif not found:
        terminal.err.print("The ledger has no bills to compare.")
    else:
        terminal.print_rows(
            None,
            ("model", "requests", "planned", "billed", "ratio", "95 %", "since", "before", ""),
            [_drift_row(each) for each in found],
            numeric=("requests", "planned", "billed", "ratio", "before"),
            foldable=["model"],
        )
    if any(each.drifts for each in found):
        raise typer.Exit(1)


def _drift_row(one: Drift) -> tuple[str, ...]:
    interval = "" if one.low is None or one.high is None else f"{one.low:.3f}–{one.high:.3f}"
    return (
        one.model.lstrip("/"),
        f"{one.requests:,}",
        f"{one.planned:,}",
        f"{one.billed:,}",
        f"{one.ratio:.3f}",
        interval,
        "" if one.changed is None else f"{one.changed:%Y-%m-%d %H:%M}",
        "" if one.before is None else f"{one.before:.3f}",
        "drifts" if one.drifts else "",
    )


def _drift_as_dict(one: Drift) -> dict[str, Any]:
    from dataclasses import asdict

    from chiasm.cli.times import iso

    changed = None if one.changed is None else iso(one.changed)
    return {**asdict(one), "model": one.model.lstrip("/"), "changed": changed, "drifts": one.drifts}
