"""From the setting `generator` to a generator: weights that are run here, or servers elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chiasm.generation.providers.address import is_remote, parse_address

if TYPE_CHECKING:
    from chiasm.generation.request import Generator
    from chiasm.models.catalog import Progress
    from chiasm.settings import Settings


def load_generator(settings: Settings, *, progress: Progress | None = None) -> Generator:
    """The generator that the settings name.

    Raises what `load_native_generator` raises; of an address what `generator_at`
    raises, and ConfigurationError if it is none.
    """
    if is_remote(settings.generator):
        from chiasm.generation.providers.loading import generator_at

        return generator_at(parse_address(settings.generator), settings.media)
    from chiasm.generation.engine.native import load_native_generator

    return load_native_generator(settings, progress=progress)
