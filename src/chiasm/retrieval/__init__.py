"""Collections of pictures that are found by words, by pictures, and by both."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.retrieval.collection import Collection
    from chiasm.retrieval.embedder import DualEncoderEmbedder, Embedder, load_embedder
    from chiasm.retrieval.indexing import IndexReport, index_folder
    from chiasm.retrieval.library import CollectionInfo, Library
    from chiasm.retrieval.store import Added, Hit, Item, NewItem, Page, SearchResult, Store

_HOMES = {
    "Added": "store",
    "Collection": "collection",
    "CollectionInfo": "library",
    "DualEncoderEmbedder": "embedder",
    "Embedder": "embedder",
    "Hit": "store",
    "IndexReport": "indexing",
    "Item": "store",
    "Library": "library",
    "NewItem": "store",
    "Page": "store",
    "SearchResult": "store",
    "Store": "store",
    "index_folder": "indexing",
    "load_embedder": "embedder",
}

__all__ = [
    "Added",
    "Collection",
    "CollectionInfo",
    "DualEncoderEmbedder",
    "Embedder",
    "Hit",
    "IndexReport",
    "Item",
    "Library",
    "NewItem",
    "Page",
    "SearchResult",
    "Store",
    "index_folder",
    "load_embedder",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'chiasm.retrieval' has no attribute {name!r}")
    return getattr(import_module(f"chiasm.retrieval.{home}"), name)
