"""chiasm: where the paths of pictures and words cross.

The public names are loaded when they are first used, so that `import chiasm` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.media import Image, open_image
    from chiasm.retrieval import Collection, Embedder, Library, load_embedder
    from chiasm.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "Image": "chiasm.media",
    "open_image": "chiasm.media",
    "Collection": "chiasm.retrieval",
    "Embedder": "chiasm.retrieval",
    "Library": "chiasm.retrieval",
    "load_embedder": "chiasm.retrieval",
    "Settings": "chiasm.settings",
}

__all__ = [
    "Collection",
    "Embedder",
    "Image",
    "Library",
    "Settings",
    "__version__",
    "load_embedder",
    "open_image",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'chiasm' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
