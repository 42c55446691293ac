"""The samples of a source in its own order, once: for measuring, and for learning a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from chiasm.training.data_recipe import DataRecipe
from chiasm.training.samples import Sample
from chiasm.training.sources import open_source


def samples_in_order(data: DataRecipe, limit: int | None = None) -> Iterator[Sample]:
    """Up to `limit` samples; damaged ones are left out. Raises UnusableData if there is no data."""
    source = open_source(data)
    samples = (
        found
        for unit in range(source.units)
        for found in source.read(unit)
        if isinstance(found, Sample)
    )
    return islice(samples, limit)


def captions_of(data: DataRecipe) -> Iterator[str]:
    """Every caption of every sample."""
    for sample in samples_in_order(data):
        yield from sample.captions
