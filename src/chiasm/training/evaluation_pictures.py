"""The pictures of an evaluation set, which training should not have seen; no captions needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chiasm.media import find_images
from chiasm.training import storage, tables
from chiasm.training.data_recipe import Columns, DataRecipe
from chiasm.training.samples import Sample
from chiasm.training.sources import open_source


def evaluation_pictures(source: str, data: DataRecipe) -> Iterator[tuple[str, bytes | Path]]:
    """(name, picture) of a folder, a table or shards. Raises UnusableData if there are none."""
    folder = None if storage.is_address(source) else Path(source)
    if folder is not None and folder.is_dir() and not _has_index(folder):
        for path in find_images(folder):
            yield str(path.relative_to(folder)), path
        return
    table = tables.table_in(folder) if folder is not None and folder.is_dir() else None
    name = str(table) if table is not None else source
    if name.endswith(tables.SUFFIXES):
        columns = Columns(image=data.columns.image)
        found = tables.read_table(name, "", columns, data.storage_options, need_captions=False)
        yield from found.pictures()
        return
    opened = open_source(replace(data, source=source, root=""))
    for unit in range(opened.units):
        for sample in opened.read(unit):
            if isinstance(sample, Sample):
                yield sample.key, sample.picture


def _has_index(folder: Path) -> bool:
    """Whether the folder is more than its pictures: shards, or a table."""
    return any(path.name.endswith((".tar", *tables.SUFFIXES)) for path in folder.iterdir())
