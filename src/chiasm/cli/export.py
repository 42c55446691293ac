"""`chiasm export`: a model in the form that other programs open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from chiasm.cli.options import Json, Offline, read_settings


def export(
    model: Annotated[
        str,
        typer.Argument(help="A name of the catalogue, hf:owner/name, or a folder."),
    ],
    folder: Annotated[Path, typer.Argument(help="Where to write it; new, or empty.")],
    to: Annotated[
        Literal["hf"],
        typer.Option("--to", help="hf: what vLLM, SGLang and transformers load."),
    ] = "hf",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="The type of the weights.", show_default="the checkpoint's own"),
    ] = None,
    offline: Offline = None,
    as_json: Json = False,
) -> None:
    """Write a model for vLLM, SGLang or transformers. Adapters are merged into it."""
    settings = read_settings({"offline": offline})
    from chiasm import terminal
    from chiasm.models.export import export_hf

    with terminal.downloads() as progress:
        written = export_hf(
            model,
            folder,
            dtype=dtype,
            cache_dir=settings.cache_dir,
            offline=settings.offline,
            progress=progress,
            catalogs=[settings.catalog],
        )
    if as_json:
        terminal.print_json(
            {
                "folder": str(written.folder),
                "architecture": written.architecture,
                "parameters": written.parameters,
                "dtype": written.dtype,
                "bytes": written.bytes,
                "adapters_merged": written.merged,
            }
        )
        return
    merged = ", adapters merged" if written.merged else ""
    terminal.out.print(
        f"{written.architecture}, {written.parameters / 1e6:,.1f} million parameters in "
        f"{written.dtype}, {written.bytes / 1e6:,.0f} MB{merged}",
        highlight=False,
    )
    terminal.out.print(f"vllm serve {written.folder}", highlight=False, soft_wrap=True)
