"""A small collection to try things on: eighty pictures that anyone may use.

The pictures lie beside this file; `pictures.csv` names each one's title, category, source, licence
and author. `recipes/sample_collection/build.py` made them.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from chiasm.media import open_image
from chiasm.retrieval.store import NewItem

if TYPE_CHECKING:
    from chiasm.retrieval.library import Library

NAME = "sample"

_HERE = Path(__file__).parent
_METADATA = ("category", "kind", "licence", "author")


def pictures() -> list[NewItem]:
    """The sample's pictures, decoded, with their titles and metadata."""
    with (_HERE / "pictures.csv").open(encoding="utf-8", newline="") as table:
        return [
            NewItem(
                image=open_image(_HERE / f"{row['file']}.webp"),
                text=row["title"],
                metadata={name: row[name] for name in _METADATA},
                source=f"sample/{row['file']}.webp",
                id=row["file"],
            )
            for row in csv.DictReader(table)
        ]


def add_sample(library: Library) -> int:
    """Make the sample collection where there is none of any kind yet; returns how many it took.

    The pictures are written in one commit. Where that did not happen because the process was
    stopped, the empty collection it left is made anew the next time.
    """
    infos = library.collections()
    if any(info.name != NAME or info.items for info in infos):
        return 0
    # The last first: a gallery shows what was added last at its head, and there the best belong.
    return len(library.create(NAME, recreate=True).add(pictures()[::-1]))
