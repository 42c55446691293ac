"""The embedder and the library that a command works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from chiasm import collector
from chiasm.cli.weights import fetch_weights

if TYPE_CHECKING:
    from chiasm.retrieval import Embedder, Library
    from chiasm.settings import Settings

CollectionName = Annotated[
    str, typer.Option("--collection", "-c", help="The collection's name.", show_default=True)
]

DEFAULT_COLLECTION = "pictures"


def open_embedder(settings: Settings) -> Embedder:
    """The one that the settings name, with its weights fetched."""
    fetch_weights(settings, settings.embedder)
    with collector.paused():
        from chiasm.retrieval import load_embedder

        return load_embedder(settings)


def open_library(settings: Settings) -> Library:
    """The collections on this machine, for that embedder."""
    embedder = open_embedder(settings)
    with collector.paused():
        import chiasm.retrieval.lance_store  # noqa: F401 -- every library's first collection does
        from chiasm.retrieval import Library

        return Library(settings.data_dir, embedder)
