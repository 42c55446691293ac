"""`chiasm index`: a folder of pictures into a collection."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from chiasm.cli.interrupt import stop_on_interrupt
from chiasm.cli.library import DEFAULT_COLLECTION, CollectionName, open_library
from chiasm.cli.options import Device, EmbedderName, Json, Offline, read_settings
from chiasm.errors import InvalidRequest

if TYPE_CHECKING:
    from chiasm.retrieval.ray_engine import RayEngine


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
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where pictures are opened and embedded: here, or on a Ray cluster."),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="The cluster, as ray.init takes it.",
            show_default="RAY_ADDRESS, or a Ray on this machine",
        ),
    ] = None,
    ray_workers: Annotated[
        int,
        typer.Option(min=0, help="Workers on the cluster; 0 for as many as it has CPUs or GPUs."),
    ] = 0,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="GPUs of each worker, 0.5 for half of one.",
            show_default="1 if it has any",
        ),
    ] = None,
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

    ray = _ray_engine(engine, address=ray_address, workers=ray_workers, gpus=ray_gpus)
    # A folder or a table that cannot be used is refused here, before anything is deleted.
    find_images(folder)
    read_captions(folder, metadata)
    with ray or nullcontext():
        library = open_library(settings)
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
                ray=ray,
                on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
    if as_json:
        terminal.print_json(report.as_dict())
    else:
        _print_index_report(report, collection)
    if report.interrupted:
        raise typer.Exit(130)


def _ray_engine(engine: str, **options: Any) -> RayEngine | None:
    """Of the flags, where they ask for one. ConfigurationError, InvalidRequest."""
    if engine == "ray":
        from chiasm.retrieval.ray_engine import RayEngine

        return RayEngine(**options)
    if any(options.values()):
        raise InvalidRequest(
            "--ray-address, --ray-workers and --ray-gpus belong to --engine ray.",
            hint="Add --engine ray.",
        )
    return None


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
