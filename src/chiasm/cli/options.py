"""The flags that several commands have, and the settings they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from chiasm.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Offline = Annotated[
    bool | None, typer.Option("--offline", help="Never fetch anything.", show_default=False)
]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="A name of the catalogue, hf:owner/name, or a folder.",
        show_default="default",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or mps.", show_default="auto")
]


def read_settings(flags: dict[str, Any]) -> Settings:
    """Defaults, file, environment, and these flags on top; None means not given."""
    from chiasm.settings import Settings

    return Settings.load(flags)
