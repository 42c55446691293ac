"""`chiasm train …`: recipes in, models out. `torchrun --no-python chiasm train …` runs many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.interrupt import stop_on_interrupt
from chiasm.cli.options import Device, Json, Offline, read_settings
from chiasm.errors import InvalidRequest

if TYPE_CHECKING:
    from chiasm.training.run import Trained

app = typer.Typer(help="Train models from recipe files.", no_args_is_help=True)

RecipeFile = Annotated[
    Path | None, typer.Argument(help="The recipe: a TOML file.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a value: --set optimizer.rate=1e-4; repeatable."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="The run's folder.", show_default="runs/ and the recipe's name"),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest snapshot in the folder.")
]
Show = Annotated[
    bool, typer.Option("--show", help="Print the recipe with every default, and stop.")
]


@app.callback()
def _root() -> None:
    """Train models from recipe files."""


@app.command()
def clip(
    recipe: RecipeFile = None,
    changes: Changes = None,
    output: Output = None,
    resume: Resume = False,
    show: Show = False,
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

    wanted = _recipe(ContrastiveRecipe, "clip", recipe, changes, show=show, as_json=as_json)
    if wanted is None:
        return

    def train(folder: Path, **options: Any) -> Trained:
        from chiasm.training.contrastive import train_contrastive

        return train_contrastive(wanted, folder, **options)

    _run(
        train,
        wanted.loop.steps,
        _folder(output, recipe),
        resume=resume,
        name=name,
        kind="dual-encoder",
        command="clip",
        use="chiasm serve --embedder",
        settings=read_settings({"device": device, "offline": offline}),
        as_json=as_json,
    )


@app.command()
def vlm(
    recipe: RecipeFile = None,
    changes: Changes = None,
    output: Output = None,
    resume: Resume = False,
    show: Show = False,
    name: Annotated[
        str | None,
        typer.Option(help="Add the result to your catalogue under this name, for --generator."),
    ] = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Train a vision-language model: align a projector, or tune on conversations."""
    from chiasm.training.instruct_recipe import InstructRecipe

    wanted = _recipe(InstructRecipe, "vlm", recipe, changes, show=show, as_json=as_json)
    if wanted is None:
        return

    def train(folder: Path, **options: Any) -> Trained:
        from chiasm.training.instruct import train_vlm

        return train_vlm(wanted, folder, **options)

    _run(
        train,
        wanted.loop.steps,
        _folder(output, recipe),
        resume=resume,
        name=name,
        kind="vision-language-model",
        command="vlm",
        use="chiasm ask --generator",
        settings=read_settings({"device": device, "offline": offline}),
        as_json=as_json,
    )


def _recipe(
    kind: Any,
    command: str,
    path: Path | None,
    changes: list[str] | None,
    *,
    show: bool,
    as_json: bool,
) -> Any:
    """The recipe to train, or None if it was only to be shown."""
    from chiasm import terminal
    from chiasm.training.recipe_file import as_table, build_recipe, read_recipe, show_recipe

    if path is None:
        if not show:
            raise InvalidRequest(
                "There is no recipe to train.",
                hint=f"Write one, beginning with what `chiasm train {command} --show` prints.",
                param="recipe",
            )
        wanted = build_recipe(kind, {}, "the defaults")
    else:
        wanted = read_recipe(kind, path, changes or [])
    if not show:
        return wanted
    if as_json:
        terminal.print_json(as_table(wanted))
    else:
        # Not wrapped: it may go to a file, and a comment's second line would be no comment.
        terminal.out.print(
            show_recipe(wanted), markup=False, highlight=False, soft_wrap=True, end=""
        )
    return None


def _folder(output: Path | None, recipe: Path | None) -> Path:
    assert recipe is not None  # or `_recipe` had nothing to train
    return output or Path("runs") / recipe.stem


def _run(
    train: Callable[..., Trained],
    steps: int,
    folder: Path,
    *,
    resume: bool,
    name: str | None,
    kind: str,
    command: str,
    use: str,
    settings: Any,
    as_json: bool,
) -> None:
    """Train, enter the result in the catalogue, and print it."""
    from chiasm import terminal
    from chiasm.training.distributed import joined

    if name is not None:
        from chiasm.models import catalog

        catalog.check_name(name)  # now, and not after hours of training
    with joined(settings.device) as world, stop_on_interrupt() as stop:
        with terminal.training_progress(steps, shown=world.first) as watch:
            trained = train(
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
            catalog.add_entry(
                settings.catalog,
                name,
                trained.model,
                kind=kind,
                description=f"Trained here by `chiasm train {command}`, {trained.steps:,} updates.",
            )
    if as_json:
        terminal.print_json(trained.as_dict() | {"name": name})
    else:
        _print(trained, f"{use} {name or trained.model}")


def _print(trained: Trained, use: str) -> None:
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
    if trained.shortened:
        terminal.err.print(
            f"{trained.shortened} samples were shortened, being too long", highlight=False
        )
    terminal.out.print(f"model  {trained.model}", highlight=False, soft_wrap=True)
    terminal.out.print(f"use    {use}", highlight=False, soft_wrap=True)
