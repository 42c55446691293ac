"""Every command of `chiasm`: a few lines that read the flags and call a plane.

Heavy imports stand inside the commands, so that `chiasm --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from chiasm import __version__, collector
from chiasm.cli import ask as ask_command
from chiasm.cli import export as export_command
from chiasm.cli import shards as shards_commands
from chiasm.cli import train as train_commands
from chiasm.cli.ask import GeneratorName
from chiasm.cli.interrupt import stop_on_interrupt
from chiasm.cli.options import Device, EmbedderName, Json, Offline, read_settings
from chiasm.cli.weights import fetch_weights
from chiasm.errors import ChiasmError, InvalidRequest

if TYPE_CHECKING:
    from chiasm.retrieval import Embedder, Library
    from chiasm.settings import Settings

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
app.command()(ask_command.ask)
app.command()(export_command.export)

CollectionName = Annotated[
    str, typer.Option("--collection", "-c", help="The collection's name.", show_default=True)
]

DEFAULT_COLLECTION = "pictures"


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
def index(
    folder: Annotated[Path, typer.Argument(help="The folder to take in, with its subfolders.")],
    collection: CollectionName = DEFAULT_COLLECTION,
    metadata: Annotated[
        Path | None,
        typer.Option(help="A CSV or JSON Lines table whose `file` column names the pictures."),
    ] = None,
    near_duplicates: Annotated[
        Literal["keep", "skip"],
        typer.Option(help="keep (and mark) pictures that look alike, or skip them."),
    ] = "keep",
    recreate: Annotated[
        bool, typer.Option("--recreate", help="Delete the collection first, if there is one.")
    ] = False,
    embedder: EmbedderName = None,
    device: Device = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Take a folder of pictures into a collection. Interrupt it and run it again: it goes on."""
    from chiasm import terminal

    settings = read_settings({"embedder": embedder, "device": device, "offline": offline})
    from chiasm.media import find_images
    from chiasm.retrieval.captions import read_captions

    # A folder or a table that cannot be used is refused here, before anything is deleted.
    find_images(folder)
    read_captions(folder, metadata)
    library = _library(settings)
    from chiasm.retrieval.indexing import index_folder

    target = library.create(collection, exist_ok=True, recreate=recreate)
    with (
        stop_on_interrupt() as stop,
        terminal.picture_progress(f"Indexing into {collection}") as (bars, bar),
    ):
        report = index_folder(
            folder,
            target,
            settings=settings,
            metadata=metadata,
            near_duplicates=near_duplicates,
            stop=stop,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    if as_json:
        terminal.print_json(report.as_dict())
    else:
        _print_index_report(report, collection)
    if report.interrupted:
        raise typer.Exit(130)


def _print_index_report(report: Any, collection: str) -> None:
    from chiasm import terminal

    parts = [f"{report.added} added"]
    parts += [
        f"{count} {what}"
        for count, what in (
            (report.updated, "changed"),
            (report.skipped, "already there"),
            (report.duplicates, "duplicates"),
            (report.near_duplicates, "near duplicates"),
            (len(report.failures), "could not be opened"),
        )
        if count
    ]
    rate = f", {report.images_per_second:,.1f} images/s" if report.added else ""
    terminal.out.print(
        f"{collection}: {', '.join(parts)} in {report.seconds:,.1f} s{rate}", highlight=False
    )
    if report.failures:
        terminal.print_rows(
            None,
            ("file", "reason"),
            [(str(path), reason) for path, reason in report.failures],
            foldable=["file", "reason"],
        )
    if report.interrupted:
        terminal.err.print("Interrupted. Run the same command again to go on from here.")


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
        _library(settings)
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

    model = _embedder(settings)
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


def _embedder(settings: Settings) -> Embedder:
    fetch_weights(settings, settings.embedder)
    with collector.paused():
        from chiasm.retrieval import load_embedder

        return load_embedder(settings)


def _library(settings: Settings) -> Library:
    embedder = _embedder(settings)
    with collector.paused():
        import chiasm.retrieval.lance_store  # noqa: F401 -- every library's first collection does
        from chiasm.retrieval import Library

        return Library(settings.data_dir, embedder)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"
