"""Every command of `chiasm`: a few lines that read the flags and call a plane.

Heavy imports stand inside the commands, so that `chiasm --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chiasm import __version__
from chiasm.cli import ask as ask_command
from chiasm.cli import export as export_command
from chiasm.cli import index as index_command
from chiasm.cli import keys as keys_commands
from chiasm.cli import ledger as ledger_commands
from chiasm.cli import plan as plan_command
from chiasm.cli import shards as shards_commands
from chiasm.cli import train as train_commands
from chiasm.cli.ask import GeneratorName
from chiasm.cli.library import DEFAULT_COLLECTION, CollectionName, open_embedder, open_library
from chiasm.cli.options import Device, EmbedderName, Json, Offline, read_settings
from chiasm.cli.weights import fetch_weights
from chiasm.errors import ChiasmError, InvalidRequest

app = typer.Typer(
    name="chiasm",
    help="Vision-language models in production: find your pictures with words, and ask them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
collections_app = typer.Typer(help="List and delete collections.", no_args_is_help=True)
app.add_typer(collections_app, name="collections")
app.add_typer(train_commands.app, name="train")
app.add_typer(shards_commands.app, name="shards")
app.add_typer(keys_commands.app, name="keys")
app.add_typer(ledger_commands.app, name="ledger")
app.command()(ask_command.ask)
app.command()(plan_command.plan)
app.command()(index_command.index)
app.command()(export_command.export)


def main() -> None:
    """Run the command line; errors meant for a user become one sentence and an exit code."""
    as_json = "--json" in sys.argv
    try:
        app()
    except ChiasmError as error:
        from chiasm import terminal

        terminal.print_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader went away (`chiasm … | head`): nothing is wrong with us.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("CHIASM_DEBUG"):
            raise
        from chiasm import terminal

        internal = ChiasmError(
            f"chiasm met an error it does not know: {type(error).__name__}: {error}",
            hint="Run the command again with CHIASM_DEBUG=1 and report what it prints.",
        )
        terminal.print_error(internal, as_json=as_json)
        sys.exit(70)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chiasm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass


# Serving ----------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port.", show_default="8000")
    ] = None,
    embedder: EmbedderName = None,
    generator: GeneratorName = None,
    device: Device = None,
    offline: Offline = None,
    sample: Annotated[
        bool, typer.Option(help="Make the sample collection when there is no collection yet.")
    ] = True,
) -> None:
    """Start the server and its console. Missing weights are fetched first."""
    settings = read_settings(
        {
            "server.host": host,
            "server.port": port,
            "embedder": embedder,
            "generator": generator,
            "device": device,
            "offline": offline,
        }
    )
    fetch_weights(settings, settings.embedder, *filter(None, [settings.generator]))
    from chiasm import terminal
    from chiasm.server import run

    def announce(url: str) -> None:
        terminal.err.print(f"chiasm {__version__} at [bold]{url}[/] (Ctrl-C stops it)")

    run(settings, sample=sample, announce=announce)


# Weights ----------------------------------------------------------------------------------------


@app.command()
def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of the catalogue, or hf:owner/name.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the catalogue instead.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file again and compare its digest.")
    ] = False,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Fetch weights by name, verify them, and keep them in the cache."""
    from chiasm import terminal
    from chiasm.models import catalog

    settings = read_settings({"offline": offline})
    if listing:
        rows = [entry.as_dict() for entry in catalog.entries([settings.catalog])]
        if as_json:
            terminal.print_json(rows)
            return
        columns = ("name", "kind", "size", "licence", "what")
        terminal.print_rows(
            None,
            columns,
            [
                (
                    row["name"],
                    row["kind"],
                    _megabytes(row["size"]),
                    row["licence"],
                    row["description"],
                )
                for row in rows
            ],
            numeric=["size"],
            foldable=["licence", "what"],
        )
        return
    folders = {}
    with terminal.downloads() as progress:
        for name in names or ["default"]:
            folders[name] = catalog.pull(
                name,
                cache_dir=settings.cache_dir,
                offline=settings.offline,
                verify=verify,
                progress=progress,
                catalogs=[settings.catalog],
            )
    if as_json:
        terminal.print_json(
            [{"name": name, "folder": str(folder)} for name, folder in folders.items()]
        )
        return
    for name, folder in folders.items():
        terminal.out.print(f"{name}  {folder}", highlight=False, soft_wrap=True)


# Pictures in, pictures out ----------------------------------------------------------------------


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to look for.")] = None,
    item: Annotated[str | None, typer.Option(help="An item whose neighbours to find.")] = None,
    collection: CollectionName = DEFAULT_COLLECTION,
    where: Annotated[
        str | None, typer.Option("--filter", help='A filter on metadata: \'{"kind": "photo"}\'.')
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 10,
    embedder: EmbedderName = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Find pictures by text, by picture, or by both."""
    from chiasm import terminal
    from chiasm.media import open_image

    settings = read_settings({"embedder": embedder, "device": device, "offline": offline})
    condition = _parse_filter(where)
    query = open_image(image, limits=settings.media) if image else None
    found = (
        open_library(settings)
        .open(collection)
        .search(text=text, image=query, item=item, filter=condition, limit=limit)
    )
    if as_json:
        terminal.print_json(found.as_dict())
        return
    if not found.hits:
        terminal.err.print(f"Nothing in {collection} matches.")
        return
    terminal.print_rows(
        None,
        ("score", "picture", "id", "text"),
        [
            (f"{hit.score:.3f}", hit.item.source, hit.item.id, hit.item.text[:60])
            for hit in found.hits
        ],
        numeric=["score"],
        foldable=["picture", "text"],
    )


def _parse_filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"--filter is not valid JSON: {error.msg} at character {error.pos}.",
            hint='Write it as \'{"kind": "photo"}\'.',
            param="filter",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest("--filter must be a JSON object.", param="filter")
    return value


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to embed.")] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture to embed; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the vectors to this .npy file, texts first.")
    ] = None,
    embedder: EmbedderName = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Turn texts and pictures into vectors of the same space."""
    from chiasm import terminal

    texts, images = texts or [], images or []
    if not texts and not images:
        raise InvalidRequest(
            "There is nothing to embed.", hint='Try: chiasm embed "a red apple" --image apple.jpg'
        )
    settings = read_settings({"embedder": embedder, "device": device, "offline": offline})
    import numpy as np

    from chiasm.media import open_image

    model = open_embedder(settings)
    pictures = [
        open_image(path, limits=settings.media, shortest_side=model.decode_side) for path in images
    ]
    vectors = np.concatenate([model.embed_texts(texts), model.embed_images(pictures)])
    if out is not None:
        np.save(out, vectors)
    inputs = [*texts, *map(str, images)]
    if as_json:
        terminal.print_json(
            {
                "embedder": {"name": model.name, "digest": model.digest},
                "dimension": model.dimension,
                "data": [
                    {"input": name, "embedding": vector.tolist()}
                    for name, vector in zip(inputs, vectors, strict=True)
                ],
            }
        )
        return
    similarity = vectors @ vectors.T
    numbers = [str(i + 1) for i in range(len(inputs))]
    terminal.print_rows(
        f"{len(inputs)} vectors of {model.dimension} dimensions by {model.name}; their cosines:",
        ("input", *numbers),
        [
            (f"{i + 1} {name}", *(f"{value:.3f}" for value in similarity[i]))
            for i, name in enumerate(inputs)
        ],
        numeric=numbers,
        foldable=["input"],
    )


# Housekeeping -----------------------------------------------------------------------------------


@collections_app.command("list")
def list_collections(as_json: Json = False) -> None:
    """The collections, how many pictures each holds, and which embedder made it."""
    from chiasm import terminal
    from chiasm.retrieval.library import list_collections as read

    infos = read(read_settings({}).data_dir)
    if as_json:
        terminal.print_json([info.as_dict() for info in infos])
        return
    terminal.print_rows(
        None,
        ("collection", "items", "embedder", "created"),
        [(info.name, f"{info.items:,}", info.embedder.name, info.created_at) for info in infos],
        numeric=["items"],
        foldable=["embedder"],
    )


@collections_app.command("delete")
def delete_collection(
    name: Annotated[str, typer.Argument(help="The collection to delete.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a collection: its vectors, thumbnails and uploaded pictures."""
    from chiasm.retrieval.library import delete_collection as delete

    if not yes:
        typer.confirm(f"Delete the collection {name} and everything in it?", abort=True)
    delete(read_settings({}).data_dir, name)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which device and models are used, and what is missing."""
    from chiasm import terminal
    from chiasm.operations.doctor import examine

    report = examine(read_settings({}))
    if as_json:
        terminal.print_json(report.as_dict())
    else:
        terminal.print_checks(
            [(check.name, check.status, check.detail, check.fix) for check in report.checks]
        )
    if not report.healthy:
        raise typer.Exit(1)


# What the commands share ------------------------------------------------------------------------


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"
