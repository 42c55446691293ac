"""`chiasm shards …`: pictures with captions into the shards that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chiasm.cli.interrupt import stop_on_interrupt
from chiasm.cli.options import Json, read_settings

if TYPE_CHECKING:
    from chiasm.training.shard_report import ShardReport

app = typer.Typer(help="Write training data as WebDataset shards.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Write training data as WebDataset shards."""


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            help="A table (.csv, .tsv, .jsonl, .parquet), a folder with a.jpg beside a.txt, or "
            "shards to write anew."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the shards: new, or one to go on in.")],
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    shard_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Close a shard at so many bytes.", show_default="no bound"),
    ] = None,
    longest_side: Annotated[
        int | None,
        typer.Option(min=1, help="Scale larger pictures down to so many pixels; writes JPEGs."),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of the JPEGs; without both, bytes stay as they are."),
    ] = None,
    near_duplicates: Annotated[
        Literal["mark", "skip", "keep"],
        typer.Option(
            help="Mark pictures that look like an earlier one, skip them, or do not look."
        ),
    ] = "mark",
    contamination: Annotated[
        str | None,
        typer.Option(help="A folder or table of evaluation pictures; mark what looks like one."),
    ] = None,
    drop_contaminated: Annotated[
        bool, typer.Option("--drop-contaminated", help="Leave those out instead.")
    ] = False,
    root: Annotated[
        str,
        typer.Option(help="The folder that a table's paths begin at.", show_default="the table's"),
    ] = "",
    image_column: Annotated[
        str, typer.Option(help="The column of pictures.", show_default="file, image, …")
    ] = "",
    caption_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--caption-column", help="A column of captions; repeatable.", show_default="caption, …"
        ),
    ] = None,
    group_column: Annotated[
        str, typer.Option(help="The column of groups.", show_default="group, sku")
    ] = "",
    as_json: Json = False,
) -> None:
    """Write shards from pictures with captions. Interrupt it and run it again: it goes on."""
    from chiasm import terminal
    from chiasm.errors import InvalidRequest
    from chiasm.training.data_recipe import Columns, DataRecipe
    from chiasm.training.shard_report import ShardRecipe
    from chiasm.training.shard_writer import build_shards

    if drop_contaminated and contamination is None:
        raise InvalidRequest(
            "--drop-contaminated needs to know what with.",
            hint="Add --contamination and a folder of evaluation pictures.",
            param="contamination",
        )
    data = DataRecipe(
        source=source,
        root=root,
        columns=Columns(
            image=image_column, captions=tuple(caption_columns or ()), group=group_column
        ),
        limits=read_settings({}).media,
    )
    recipe = ShardRecipe(
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        longest_side=longest_side,
        quality=quality,
        near_duplicates=near_duplicates,
        contamination=contamination,
        drop_contaminated=drop_contaminated,
    )
    with stop_on_interrupt() as stop, terminal.picture_progress("Writing shards") as (bars, bar):
        report = build_shards(
            data,
            out,
            recipe,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
            stop=stop,
        )
    if as_json:
        terminal.print_json(report.as_dict())
    else:
        _print(report, out, recipe.near_duplicates == "skip", drop_contaminated)
    if report.interrupted:
        raise typer.Exit(130)


def _print(report: ShardReport, out: Path, skipped: bool, dropped: bool) -> None:
    from chiasm import terminal

    parts = [
        f"{report.samples:,} samples in {report.shards:,} shards, {report.bytes / 1e6:,.1f} MB"
    ]
    if report.near_duplicates:
        parts.append(f"{report.near_duplicates:,} near duplicates {_fate(skipped)}")
    if report.contaminated:
        parts.append(f"{report.contaminated:,} contaminated {_fate(dropped)}")
    parts += [f"{count:,} {reason}" for reason, count in report.skipped.most_common()]
    terminal.out.print(f"{out}: {'; '.join(parts)}", highlight=False, soft_wrap=True)
    if report.failures:
        terminal.print_rows(
            None, ("sample", "reason"), report.failures, foldable=["sample", "reason"]
        )
    if report.interrupted:
        terminal.err.print("Interrupted. Run the same command again to go on from here.")


def _fate(left_out: bool) -> str:
    return "left out" if left_out else "marked"
