"""Names that callers choose: how many generators they can make a server hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from chiasm.errors import UnknownModel
from chiasm.generation import Event, Request, TextDelta
from chiasm.generation.providers.kept import MOST_KEPT
from chiasm.generation.providers.loading import Providers
from chiasm.generation.targets import Target
from chiasm.settings import ProviderSettings

ASKED = Request(())


class Said:
    """Says one word, then waits for the test; or has no such model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.closed = 0
        self.go_on = asyncio.Event()

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        if self.model == "none":
            raise UnknownModel("No such model.")
        yield TextDelta(0, self.model)
        await self.go_on.wait()

    def close(self) -> None:
        self.closed += 1


class World:
    def __init__(self) -> None:
        self.made: list[Said] = []
        self.providers = Providers({"p": ProviderSettings("openai")}, make=self._make)

    def _make(self, name: str, settings: ProviderSettings, model: str) -> Any:
        self.made.append(Said(model))
        return self.made[-1]

    async def begin(self, model: str) -> AsyncGenerator[Event]:
        events = (await self.providers.generator(Target("p", model))).stream(ASKED)
        await anext(events)
        return events

    async def ask(self, model: str) -> None:
        async with aclosing(await self.begin(model)):
            pass


def test_the_one_that_was_asked_longest_ago_goes() -> None:
    async def story() -> None:
        world = World()
        for n in range(MOST_KEPT):
            await world.ask(f"m{n}")
        await world.ask("m0")
        assert len(world.made) == MOST_KEPT
        await world.ask("one more")
        assert [each.model for each in world.made if each.closed] == ["m1"]
        await world.ask("m0")
        assert len(world.made) == MOST_KEPT + 1

    asyncio.run(story())


def test_it_is_closed_once_its_answers_have_ended() -> None:
    async def story() -> None:
        world = World()
        first, second = await world.begin("old"), await world.begin("old")
        for n in range(MOST_KEPT):
            await world.ask(f"m{n}")
        (old,) = (each for each in world.made if each.model == "old")
        assert not old.closed
        await first.aclose()
        assert not old.closed
        old.go_on.set()
        with pytest.raises(StopAsyncIteration):
            await anext(second)
        assert old.closed == 1
        world.providers.close()
        assert all(each.closed == 1 for each in world.made)

    asyncio.run(story())


def test_a_model_that_the_provider_does_not_know_is_forgotten() -> None:
    async def story() -> None:
        world = World()
        for _ in range(2):
            with pytest.raises(UnknownModel):
                await world.ask("none")
        assert [each.closed for each in world.made] == [1, 1]

    asyncio.run(story())


def test_two_at_once_make_one() -> None:
    async def story() -> None:
        world = World()
        await asyncio.gather(world.ask("m"), world.ask("m"))
        assert len(world.made) == 1

    asyncio.run(story())


def test_one_that_cannot_be_made_is_tried_anew() -> None:
    async def story() -> None:
        world = World()
        world.providers._make = lambda *_: (_ for _ in ()).throw(UnknownModel("No."))
        with pytest.raises(UnknownModel):
            await world.ask("m")
        world.providers._make = world._make
        await world.ask("m")

    asyncio.run(story())
