"""Missing weights are fetched before a command needs them, with bars to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chiasm.settings import Settings


def fetch_weights(settings: Settings, *names: str) -> None:
    """Fetch what is missing of these catalogue entries, `hf:` addresses or folders.

    A generator that servers run elsewhere needs none.
    """
    from chiasm import terminal
    from chiasm.generation.providers.address import is_remote
    from chiasm.models import catalog

    with terminal.downloads() as progress:
        for name in names:
            if is_remote(name):
                continue
            catalog.ensure(
                name,
                cache_dir=settings.cache_dir,
                offline=settings.offline,
                progress=progress,
                catalogs=[settings.catalog],
            )
