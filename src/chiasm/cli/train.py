"""`chiasm train …`: recipes in, models out. `torchrun --no-python chiasm train …` runs many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.interrupt import stop_on_interrupt
from chiasm.cli.options import Device, Json, Offline, read_settings
from chiasm.errors import InvalidRequest

if TYPE_CHECKING:
    from chiasm.training.contrastive import Trained

app = typer.Typer(help="Train models from recipe files.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Train models from recipe files."""


@app.command()
def clip(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe: a TOML file.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a value: --set optimizer.rate=1e-4; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run's folder.", show_default="runs/ and the recipe's name"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest snapshot in the folder.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the recipe with every default, and stop.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Add the result to your catalogue under this name, for --embedder."),
    ] = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Train a dual encoder, CLIP's way or SigLIP's, or fine-tune one."""
    from chiasm.training.recipe import ContrastiveRecipe
    from chiasm.training.recipe_file import as_table, build_recipe, read_recipe, show_recipe

    if recipe is None:
        if not show:
            raise InvalidRequest(
                "There is no recipe to train.",
                hint="Write one, beginning with what `chiasm train clip --show` prints.",
                param="recipe",
            )
        wanted = build_recipe(ContrastiveRecipe, {}, "the defaults")
    else:
        wanted = read_recipe(ContrastiveRecipe, recipe, changes or [])
    from chiasm import terminal

    if show:
        if as_json:
            terminal.print_json(as_table(wanted))
        else:
            terminal.out.print(show_recipe(wanted), markup=False, highlight=False, end="")
        return
    assert recipe is not None
    settings = read_settings({"device": device, "offline": offline})
    from chiasm.training.contrastive import train_contrastive
    from chiasm.training.distributed import joined

    folder = output or Path("runs") / recipe.stem
    if name is not None:
        from chiasm.models import catalog

        catalog.check_name(name)  # now, and not after hours of training
    with joined(settings.device) as world, stop_on_interrupt() as stop:
        with terminal.training_progress(wanted.loop.steps, shown=world.first) as watch:
            trained = train_contrastive(
                wanted,
                folder,
                world=world,
                resume=resume,
                cache_dir=settings.cache_dir,
                offline=settings.offline,
                catalogs=[settings.catalog],
                watch=watch,
                stop=stop,
            )
        if not world.first:
            return
        if name is not None:
            _enter(name, trained, settings)
    if as_json:
        terminal.print_json(trained.as_dict() | {"name": name})
    else:
        _print(trained, name)


def _enter(name: str, trained: Trained, settings: Any) -> None:
    """Into the user's catalogue."""
    from chiasm.models import catalog

    catalog.add_entry(
        settings.catalog,
        name,
        trained.model,
        kind="dual-encoder",
        description=f"Trained here by `chiasm train clip`, {trained.steps:,} updates.",
    )


def _print(trained: Trained, name: str | None) -> None:
    from chiasm import terminal

    terminal.print_rows(
        None,
        ("figure", "value"),
        [(key, f"{value:.4f}") for key, value in trained.figures.items()],
        numeric=["value"],
    )
    if trained.skipped:
        total = sum(trained.skipped.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in trained.skipped.items())
        terminal.err.print(f"{total} samples were left out: {reasons}", highlight=False)
    terminal.out.print(f"model  {trained.model}", highlight=False, soft_wrap=True)
    use = name or trained.model
    terminal.out.print(f"use    chiasm serve --embedder {use}", highlight=False, soft_wrap=True)
