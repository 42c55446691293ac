"""The generators of one provider that are kept: those that were asked of late.

Where a provider's settings list no models, callers choose the names; so there is an end to them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from chiasm.errors import UnknownModel

if TYPE_CHECKING:
    from chiasm.generation.request import Event, Generator, Request

MOST_KEPT = 256


class Kept:
    """By the model's name, the one asked longest ago first. Used in one event loop."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._lent: OrderedDict[str, Lent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lent)

    def find(self, model: str) -> Lent | None:
        """None: it must be made."""
        found = self._lent.get(model)
        if found is not None:
            self._lent.move_to_end(model)
        return found

    def keep(self, model: str, generator: Generator) -> Lent:
        """From now on, instead of the one that was asked longest ago."""
        lent = self._lent[model] = Lent(self, model, generator)
        while len(self._lent) > self._most:
            _, oldest = self._lent.popitem(last=False)
            oldest.let_go()
        return lent

    def forget(self, lent: Lent) -> None:
        """The provider serves no model of that name."""
        if self._lent.get(lent.model) is lent:
            del self._lent[lent.model]
            lent.let_go()

    def close(self) -> None:
        """Close all, those that answer, too."""
        for lent in self._lent.values():
            lent.generator.close()
        self._lent.clear()


class Lent:
    """A generator, and how many answers of it are under way."""

    def __init__(self, kept: Kept, model: str, generator: Generator) -> None:
        self.model = model
        self.generator = generator
        self._kept = kept
        self._under_way = 0
        self._gone = False

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`."""
        self._under_way += 1
        try:
            async with aclosing(self.generator.stream(request)) as events:
                async for event in events:
                    yield event
        except UnknownModel:
            self._kept.forget(self)
            raise
        finally:
            self._under_way -= 1
            self._close_if_done()

    def let_go(self) -> None:
        """Close it as soon as nothing is under way."""
        self._gone = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._gone and not self._under_way:
            self._gone = False  # once
            self.generator.close()
