"""Who is asked, again or next: with generators whose behaviour is written down beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from chiasm.errors import (
    ChiasmError,
    ConfigurationError,
    ContentRefused,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    NoModelQualifies,
    ProviderBusy,
    ProviderKeyRefused,
    TimedOut,
    UnknownModel,
    Unsupported,
)
from chiasm.generation import (
    Completed,
    Event,
    Finished,
    ImagePart,
    Message,
    Request,
    Restarted,
    Sampling,
    TextDelta,
    Usage,
)
from chiasm.generation.breaker import Breaker
from chiasm.generation.providers.loading import Providers
from chiasm.generation.router import Router, Trace
from chiasm.generation.targets import Routes, Target
from chiasm.media import Image
from chiasm.settings import ModelSettings, ProviderSettings

ASKED = Request(messages=(Message.user("What is it?"),))
DOWN = GeneratorUnreachable("a is away.")
BROKEN = GeneratorFailed("a broke.")

Step = str | float | ChiasmError
"""A word, a pause in seconds, or an error."""


class Scripted:
    """A provider's model that follows a script, one line a question; its last line again."""

    def __init__(self, *script: list[Step]) -> None:
        self.script = script
        self.asked = 0
        self.closed = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        line = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        try:
            for step in line:
                if isinstance(step, ChiasmError):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield TextDelta(0, step)
            yield Finished(0, "stop")
            yield Completed(Usage(text_tokens=5, image_tokens=0, answer_tokens=len(line)))
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class World:
    """Providers a, b, c, each with one model m, behind a router."""

    def __init__(
        self,
        generators: Mapping[str, Scripted],
        how: Mapping[str, Any] | None = None,
        provider: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.generators = generators
        self.clock = Clock()
        settings = {name: ProviderSettings("openai", **(provider or {})) for name in generators}
        targets = tuple(f"{name}/m" for name in generators)
        self.routes = Routes(settings, {"pick": ModelSettings(targets, **(how or {}))})
        providers = Providers(settings, make=lambda name, _, model: generators[name])  # type: ignore[arg-type, return-value]
        self.router = Router(
            providers, _nobody, pause=self.clock.pause, clock=self.clock, **options
        )

    def ask(self, request: Request = ASKED, *, restart: bool = False) -> tuple[str, Trace]:
        return asyncio.run(self.asking(request, restart=restart))

    async def asking(self, request: Request = ASKED, *, restart: bool = False) -> tuple[str, Trace]:
        route, trace, said = self.routes.find("pick"), Trace(), ""
        assert route is not None
        targets = self.router.order(route, request)
        async for event in self.router.stream(route, targets, request, trace, restart=restart):
            if isinstance(event, Restarted):
                said += "|"
            elif isinstance(event, TextDelta):
                said += event.text
        return said, trace

    @property
    def asked(self) -> list[int]:
        return [each.asked for each in self.generators.values()]


async def _nobody(target: Target, request: Request) -> AsyncGenerator[Event]:
    raise AssertionError("nobody runs here")
    yield


# Retries and fallback ---------------------------------------------------------------------------


def test_the_first_target_answers() -> None:
    world = World({"a": Scripted(["hello"]), "b": Scripted(["no"])})
    said, trace = world.ask()
    assert said == "hello"
    assert trace.target == Target("a", "m")
    assert (trace.retries, world.asked) == (0, [1, 0])


@pytest.mark.parametrize("error", [DOWN, BROKEN], ids=["away", "broken"])
def test_a_failure_is_tried_again_after_growing_pauses(error: ChiasmError) -> None:
    world = World({"a": Scripted([error], [error], ["there"])})
    said, trace = world.ask()
    assert said == "there"
    first, second = world.clock.pauses
    assert 0.125 <= first <= 0.375
    assert 0.25 <= second <= 0.75
    assert [each.trouble for each in trace.attempts] == [error.code, error.code, None]


def test_pauses_are_not_all_the_same() -> None:
    pauses = {World({"a": Scripted([DOWN], ["x"])}) for _ in range(8)}
    for world in pauses:
        world.ask()
    assert len({world.clock.pauses[0] for world in pauses}) > 1


def test_then_the_next_target_is_asked() -> None:
    world = World({"a": Scripted([DOWN]), "b": Scripted(["b"])}, {"retries": 1})
    assert world.ask()[0] == "b"
    assert world.asked == [2, 1]


def test_the_last_error_is_raised_when_none_answers() -> None:
    world = World({"a": Scripted([DOWN]), "b": Scripted([BROKEN])}, {"retries": 0})
    with pytest.raises(GeneratorFailed, match="a broke"):
        world.ask()


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("No."), ContentRefused("Not that.")],
    ids=["invalid", "refused content"],
)
def test_what_is_the_callers_fault_is_asked_once(error: ChiasmError) -> None:
    world = World({"a": Scripted([error]), "b": Scripted(["b"])})
    with pytest.raises(type(error)):
        world.ask()
    assert world.asked == [1, 0]


@pytest.mark.parametrize("error", [ContextExceeded("Too long."), Unsupported("No tools.")])
def test_what_another_model_may_manage_is_given_to_it(error: ChiasmError) -> None:
    world = World({"a": Scripted([error]), "b": Scripted(["b"])})
    assert world.ask()[0] == "b"
    assert world.asked == [1, 1]


def test_a_refused_key_is_not_tried_again() -> None:
    world = World({"a": Scripted([ProviderKeyRefused("Wrong key.")])})
    with pytest.raises(ProviderKeyRefused):
        world.ask()
    assert world.asked == [1]


def test_a_busy_provider_is_waited_for_as_long_as_it_says() -> None:
    world = World({"a": Scripted([ProviderBusy("Busy.", retry_after=7.0)], ["a"])})
    assert world.ask()[0] == "a"
    assert world.clock.pauses == [7.0]


def test_a_busy_provider_is_left_for_another_at_once() -> None:
    busy = ProviderBusy("Busy.", retry_after=7.0)
    world = World({"a": Scripted([busy]), "b": Scripted(["b"])})
    assert world.ask()[0] == "b"
    assert (world.clock.pauses, world.asked) == ([], [1, 1])


def test_a_provider_that_is_busy_for_long_is_not_waited_for() -> None:
    world = World({"a": Scripted([ProviderBusy("Busy.", retry_after=600.0)])})
    with pytest.raises(ProviderBusy):
        world.ask()
    assert world.clock.pauses == []


def test_once_a_word_was_sent_nothing_begins_anew() -> None:
    world = World({"a": Scripted(["one ", BROKEN]), "b": Scripted(["two"])})
    with pytest.raises(GeneratorFailed):
        world.ask()
    assert world.asked == [1, 0]


def test_unless_the_caller_allows_it() -> None:
    world = World({"a": Scripted(["one ", BROKEN]), "b": Scripted(["two"])}, {"retries": 0})
    said, trace = world.ask(restart=True)
    assert said == "one |two"
    assert trace.restarted


def test_no_restart_after_the_callers_own_fault() -> None:
    world = World({"a": Scripted(["one ", InvalidRequest("No.")]), "b": Scripted(["two"])})
    with pytest.raises(InvalidRequest):
        world.ask(restart=True)


# Time -------------------------------------------------------------------------------------------


def test_silence_before_the_first_token() -> None:
    limits = {"first_token_seconds": 0.05, "retries": 0}
    world = World({"a": Scripted([5.0, "late"]), "b": Scripted(["b"])}, limits)
    said, trace = world.ask()
    assert said == "b"
    assert trace.attempts[0].trouble == "generator_failed"
    assert world.generators["a"].closed == 1, "the silent one goes on working"


def test_silence_between_tokens() -> None:
    world = World({"a": Scripted(["one", 5.0, "two"])}, {"between_seconds": 0.05})
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.05 seconds"):
        world.ask()


def test_a_providers_own_limits_hold_where_the_route_has_none() -> None:
    world = World({"a": Scripted([5.0, "late"])}, {"retries": 0}, {"first_token_seconds": 0.05})
    with pytest.raises(GeneratorFailed, match="silent"):
        world.ask()


def test_no_more_at_once_than_a_provider_takes() -> None:
    world = World({"a": Scripted([0.05, "x"])}, provider={"places": 2})

    async def several() -> int:
        tasks = [asyncio.create_task(world.asking()) for _ in range(5)]
        await asyncio.sleep(0.02)
        under_way = world.generators["a"].asked
        await asyncio.gather(*tasks)
        return under_way

    assert asyncio.run(several()) == 2
    assert world.asked == [5]


def test_whoever_waits_too_long_for_a_place_goes_on() -> None:
    world = World(
        {"a": Scripted(["a", 0.5, "."]), "b": Scripted(["b"])},
        {"retries": 0, "first_token_seconds": 0.1},
        {"places": 1},
    )

    async def two() -> list[str]:
        first = asyncio.create_task(world.asking())
        await asyncio.sleep(0.02)
        second = await world.asking()
        first.cancel()
        return [second[0]]

    assert asyncio.run(two()) == ["b"]
    assert world.asked[0] == 1


def test_a_deadline_holds_while_a_place_is_waited_for() -> None:
    world = World({"a": Scripted([0.5, "a"])}, {"retries": 0}, {"places": 1})

    async def two() -> None:
        first = asyncio.create_task(world.asking())
        await asyncio.sleep(0.02)
        try:
            await world.asking(Request(messages=ASKED.messages, deadline=0.05))
        finally:
            first.cancel()

    with pytest.raises(TimedOut):
        asyncio.run(two())


# Hedging ----------------------------------------------------------------------------------------


def test_a_slow_target_is_hedged_and_the_slower_one_stopped() -> None:
    slow, quick = Scripted([5.0, "slow"]), Scripted(["quick", " one"])
    said, trace = World({"a": slow, "b": quick}, {"hedge_seconds": 0.02}).ask()
    assert said == "quick one"
    assert trace.hedged
    assert trace.target == Target("b", "m")
    assert slow.closed == 1


def test_a_quick_target_is_not_hedged() -> None:
    world = World({"a": Scripted(["a"]), "b": Scripted(["b"])}, {"hedge_seconds": 0.5})
    said, trace = world.ask()
    assert (said, trace.hedged, world.asked) == ("a", False, [1, 0])


def test_a_hedge_that_fails_leaves_the_first_alone() -> None:
    world = World({"a": Scripted([0.1, "a"]), "b": Scripted([DOWN])}, {"hedge_seconds": 0.02})
    assert world.ask()[0] == "a"


def test_when_both_fail_the_chain_goes_on() -> None:
    hedged = {"hedge_seconds": 0.01, "retries": 0}
    world = World(
        {"a": Scripted([0.05, DOWN]), "b": Scripted([BROKEN]), "c": Scripted(["c"])}, hedged
    )
    assert world.ask()[0] == "c"


# The breaker ------------------------------------------------------------------------------------


def test_a_provider_that_fails_again_and_again_is_left_alone() -> None:
    world = World(
        {"a": Scripted([DOWN]), "b": Scripted(["b"])},
        {"retries": 0},
        {"failures": 3, "rest_seconds": 30.0},
    )
    for _ in range(5):
        assert world.ask()[0] == "b"
    assert world.asked == [3, 5]
    assert world.router.breakers["a"].state == "open"
    assert world.ask()[1].attempts[0].trouble == "circuit_open"
    world.clock.now += 31
    world.ask()
    assert world.asked[0] == 4, "after its rest one question is tried"
    world.ask()
    assert world.asked[0] == 4, "and it rests again"


def test_a_provider_that_is_well_again_closes_its_breaker() -> None:
    world = World(
        {"a": Scripted([DOWN], [DOWN], ["well"])},
        {"retries": 0},
        {"failures": 2, "rest_seconds": 1.0},
    )
    for _ in range(2):
        with pytest.raises(GeneratorUnreachable):
            world.ask()
    with pytest.raises(GeneratorUnreachable, match="left alone"):
        world.ask()
    world.clock.now += 2
    assert world.ask()[0] == "well"
    assert world.router.breakers["a"].state == "closed"


@pytest.mark.parametrize("error", [ProviderBusy("Busy."), InvalidRequest("No.")])
def test_refusals_do_not_open_a_breaker(error: ChiasmError) -> None:
    world = World({"a": Scripted([error])}, {"retries": 0}, {"failures": 1})
    for _ in range(3):
        with pytest.raises(type(error)):
            world.ask()
    assert world.asked == [3]


def test_one_trial_at_a_time() -> None:
    clock = Clock()
    breaker = Breaker(1, 10.0, clock=clock)
    breaker.fail(breaker.begin())
    assert not breaker.usable
    clock.now += 11
    assert breaker.usable
    trial = breaker.begin()
    assert trial
    assert not breaker.usable, "the trial is under way"
    breaker.give_up(False)
    breaker.fail(False)
    assert not breaker.usable, "requests from before say nothing of it"
    breaker.give_up(trial)
    assert breaker.usable, "it said nothing"


@pytest.mark.parametrize("error", [ProviderBusy("Busy."), TimedOut("Late.")])
def test_a_trial_that_says_nothing_is_not_the_last(error: ChiasmError) -> None:
    world = World(
        {"a": Scripted([BROKEN], [error], ["well"])},
        {"retries": 0},
        {"failures": 1, "rest_seconds": 1.0},
    )
    with pytest.raises(GeneratorFailed):
        world.ask()
    world.clock.now += 2
    with pytest.raises(type(error)):
        world.ask()
    assert world.ask()[0] == "well"


def test_retries_end_where_the_breaker_has_opened() -> None:
    world = World({"a": Scripted([BROKEN])}, {"retries": 5}, {"failures": 2})
    with pytest.raises(GeneratorFailed):
        world.ask()
    assert world.asked == [2]


# Choosing ---------------------------------------------------------------------------------------


def three(how: Mapping[str, Any], **options: Any) -> World:
    return World({name: Scripted([name]) for name in "abc"}, how, **options)


def test_the_cheapest_first_and_the_unpriced_last() -> None:
    prices = {"a": None, "b": 0.02, "c": 0.01}
    world = three({"choose": "cheapest"}, price=lambda target, _: prices[target.provider])
    assert world.ask()[0] == "c"


def test_the_fastest_is_who_was_measured_to_be() -> None:
    world = World({"a": Scripted([0.05, "a"]), "b": Scripted(["b"])}, {"choose": "fastest"})
    world.clock = Clock()
    ticks = iter([0.0, 9.0, 9.0, 10.0, 10.5, 10.5, *map(float, range(11, 99))])
    world.router._clock = lambda: next(ticks)
    assert world.ask()[0] == "a", "nobody was measured yet"
    assert world.router.first_token_seconds(Target("a", "m")) == 9.0
    assert world.ask()[0] == "a", "b is unknown, so it comes after"


def test_the_cheapest_that_is_good_enough() -> None:
    accuracies = {"a": 0.95, "b": 0.91, "c": 0.5}
    prices = {"a": 0.03, "b": 0.02, "c": 0.001}
    world = three(
        {"choose": "cheapest", "evaluation": "skus", "min_accuracy": 0.9},
        price=lambda target, _: prices[target.provider],
        accuracy=lambda evaluation, target: (
            accuracies[target.provider] if evaluation == "skus" else None
        ),
    )
    assert world.ask()[0] == "b"


def test_none_is_good_enough() -> None:
    world = three({"evaluation": "skus", "min_accuracy": 0.9})
    with pytest.raises(NoModelQualifies, match=r"0\.9 on skus"):
        world.ask()


# The cache of answers ---------------------------------------------------------------------------


def picture(*colour: int) -> Image:
    return Image(np.full((2, 2, 3), colour, np.uint8), (2, 2))


def pictured(image: Image, **fields: Any) -> Request:
    message = Message("user", (*Message.user("What?").parts, ImagePart(image)))
    return Request(messages=(message,), **fields)


def test_the_same_question_has_the_same_answer() -> None:
    world = World({"a": Scripted(["first"], ["second"])}, {"cache_seconds": 60.0})
    asked = pictured(picture(1, 2, 3))
    assert world.ask(asked)[0] == "first"
    said, trace = world.ask(pictured(picture(1, 2, 3)))
    assert (said, trace.from_cache) == ("first", True)
    world.clock.now += 61
    assert world.ask(asked)[0] == "second"


@pytest.mark.parametrize(
    "other",
    [
        pictured(picture(1, 2, 4)),
        pictured(picture(1, 2, 3), tenant="somebody"),
        pictured(picture(1, 2, 3), sampling=Sampling(temperature=0.5)),
        pictured(picture(1, 2, 3), max_tokens=5),
        pictured(picture(1, 2, 3), schema={"type": "object"}),
        pictured(picture(1, 2, 3), max_image_tokens=100),
    ],
    ids=["picture", "tenant", "temperature", "max_tokens", "schema", "fit"],
)
def test_another_question_has_its_own(other: Request) -> None:
    world = World({"a": Scripted(["first"], ["second"])}, {"cache_seconds": 60.0})
    world.ask(pictured(picture(1, 2, 3)))
    assert world.ask(other)[0] == "second"


def test_a_remembered_answer_is_whose_it_was() -> None:
    world = World(
        {"a": Scripted([DOWN]), "b": Scripted(["b"])}, {"cache_seconds": 60.0, "retries": 0}
    )
    world.ask()
    _, trace = world.ask()
    assert (trace.from_cache, trace.target) == (True, Target("b", "m"))


def test_without_being_told_nothing_is_kept() -> None:
    world = World({"a": Scripted(["first"], ["second"])})
    assert [world.ask()[0], world.ask()[0]] == ["first", "second"]


def test_half_an_answer_is_not_kept() -> None:
    world = World(
        {"a": Scripted(["half", BROKEN], ["whole"])}, {"cache_seconds": 60.0, "retries": 0}
    )
    with pytest.raises(GeneratorFailed):
        world.ask()
    assert world.ask()[0] == "whole"


# Names ------------------------------------------------------------------------------------------


def routes(**models: ModelSettings) -> Routes:
    providers = {
        "openai": ProviderSettings(models=("gpt-5*",)),
        "box": ProviderSettings("vllm", models=("org/model",)),
    }
    return Routes(providers, models)


def test_names_and_what_they_mean() -> None:
    found = routes(fast=ModelSettings(("openai/gpt-5-mini", "default-vlm")))
    fast = found.find("fast")
    assert fast is not None
    assert fast.targets == (Target("openai", "gpt-5-mini"), Target("", "default-vlm"))
    direct = found.find("box/org/model")
    assert direct is not None
    assert direct.targets == (Target("box", "org/model"),)
    assert found.find("default-vlm") is None
    assert found.names == ["fast", "box/org/model"]


def test_a_model_that_the_provider_is_not_asked_for() -> None:
    with pytest.raises(UnknownModel, match=r"box/org/model"):
        routes().find("box/org/modell")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: routes(x=ModelSettings()), "names no targets"),
        (lambda: routes(x=ModelSettings(("a",), choose="best")), "cheapest"),
        (lambda: routes(x=ModelSettings(("a",), min_accuracy=0.5)), "evaluation"),
        (lambda: Routes({"mystery": ProviderSettings()}, {}), "openai"),
        (lambda: Routes({"a/b": ProviderSettings("vllm")}, {}), "no slash"),
        (lambda: Routes({"vllm": ProviderSettings(places=0)}, {}), "1 or more"),
    ],
)
def test_tables_that_cannot_be_followed(make: Callable[[], Routes], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()
