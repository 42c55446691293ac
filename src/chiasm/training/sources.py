"""From what a recipe names to something that can be read: shards, a table, or a folder of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from chiasm.errors import ConfigurationError, UnusableData
from chiasm.training import shards, storage, tables
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.fields import Fields
from chiasm.training.order import Numbers
from chiasm.training.samples import Damage, Sample


class Source(Protocol):
    """Samples in units that can be read from their beginning: shards of many, or rows of one."""

    @property
    def units(self) -> int: ...
    @property
    def samples(self) -> int | None:
        """How many samples there are, where that is known without reading them."""
        ...

    @property
    def counts(self) -> Numbers | None:
        """Samples in each unit, if known; empty where a unit is one sample."""
        ...

    @property
    def identity(self) -> str:
        """What must be equal for a position to mean the same."""
        ...

    def read(self, unit: int, start: int = 0) -> Iterator[Sample | Damage]: ...


def open_source(recipe: DataRecipe, *, count: bool = False) -> Source:
    """Look at what `recipe.source` names, without reading samples.

    count: pass over local shards' headers if nothing beside them says how many samples they hold.
    Raises UnusableData if there is nothing, or a table lacks a column.
    """
    named = (recipe.source,) if isinstance(recipe.source, str) else recipe.source
    if not named or not all(named):
        raise ConfigurationError("No data is named.", hint="Set data.source.", param="data.source")
    first = named[0]
    local = None if storage.is_address(first) else Path(first)
    if len(named) == 1:
        if first.endswith(tables.SUFFIXES):
            return _filled(_table(first, recipe), first)
        if local is not None and local.is_dir() and not _holds_shards(local):
            inside = tables.table_in(local)
            if inside is not None:
                return _filled(_table(str(inside), recipe), first)
            return _filled(tables.read_pairs(local, recipe.columns), first)
        if local is not None and local.is_file() and not first.endswith(shards.SUFFIXES):
            raise UnusableData(
                f"{first} is neither a shard nor a table.",
                hint=f"Known are {', '.join((*shards.SUFFIXES, *tables.SUFFIXES))}.",
                param="data.source",
            )
    names = storage.expand(named, shards.SUFFIXES, recipe.storage_options)
    counts = shards.read_counts(names, recipe.storage_options)
    if count and not any(map(storage.is_address, names)):
        counts |= shards.count_locally([name for name in names if name not in counts])
    fields = Fields.of(recipe.columns)
    return shards.Shards(names, fields, recipe.limits, recipe.storage_options, counts)


def _table(name: str, recipe: DataRecipe) -> tables.Table:
    return tables.read_table(name, recipe.root, recipe.columns, recipe.storage_options)


def _filled(table: tables.Table, name: str) -> tables.Table:
    if table.units == 0:
        raise UnusableData(f"There are no samples in {name}.", param="data.source")
    return table


def _holds_shards(folder: Path) -> bool:
    return any(path.name.endswith(shards.SUFFIXES) for path in folder.iterdir())
