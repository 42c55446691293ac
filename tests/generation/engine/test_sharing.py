"""What questions share, who is served when, and what is left when they have gone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chiasm.errors import ContextExceeded, TimedOut
from chiasm.generation import Message, Request, Sampling
from chiasm.generation.engine.engine import Engine
from chiasm.generation.engine.prompt import build_prompt
from chiasm.media import Image
from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.driving import Heard, ask, finish, put
from tests.generation.tiny_models import picture

RED, BLUE, TALL = picture(), picture((20, 40, 220)), picture((10, 200, 60), (30, 90))
ASKED = "How many birds can be seen in it?"
pytestmark = pytest.mark.usefixtures("computed_by")


def about(*parts: str | Image, **more: Any) -> Request:
    return Request((Message.user(*parts),), **{"max_tokens": 8, **more})


@pytest.fixture
def encoded(llava: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills with the pictures that are encoded; raises for one that is all black."""
    model: Any = llava.model
    encode: Callable[[Any], Any] = model.encode_image
    seen: list[Any] = []

    def counted(inputs: Any) -> Any:
        seen.append(inputs)
        if torch.equal(inputs.pixels.amax((-1, -2)), inputs.pixels.amin((-1, -2))):
            raise RuntimeError("a picture of nothing")
        return encode(inputs)

    monkeypatch.setattr(model, "encode_image", counted)
    return seen


# Caches -----------------------------------------------------------------------------------------


def test_a_second_question_about_a_picture_reads_only_the_rest(
    llava: GeneratorCheckpoint, encoded: list[Any]
) -> None:
    engine = Engine(llava)
    first = ask(engine, about(RED, "What is this?"))
    second = ask(engine, about(RED, ASKED))
    units = [build_prompt(about(RED, q).messages, llava).units() for q in ("What is this?", ASKED)]
    shared = next(n for n, (a, b) in enumerate(zip(*units, strict=False)) if a != b)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == shared
    assert shared > 16
    assert len(encoded) == 1
    assert second.text == ask(Engine(llava), about(RED, ASKED)).text


def test_nothing_is_shared_with_another_tenant(
    llava: GeneratorCheckpoint, encoded: list[Any]
) -> None:
    engine = Engine(llava)
    ask(engine, about(RED, ASKED, tenant="one"))
    other = ask(engine, about(RED, ASKED, tenant="two"))
    assert other.usage.cached_tokens == 0
    assert other.usage.vision_flops > 0
    assert len(encoded) == 2
    again = ask(engine, about(RED, ASKED, tenant="one"))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert len(encoded) == 2
    # At the same time it is no different.
    heard = [put(engine, about(BLUE, ASKED, tenant=tenant)) for tenant in ("one", "two") * 2]
    finish(engine)
    assert len(encoded) == 4
    assert len({each.text for each in heard}) == 1


@pytest.mark.parametrize("feature_bytes", [2**26, 0])
def test_ten_questions_about_a_new_picture_encode_it_once(
    llava: GeneratorCheckpoint, encoded: list[Any], feature_bytes: int
) -> None:
    engine = Engine(llava, feature_bytes=feature_bytes, running=4)
    heard = [put(engine, about(f"{n}", RED, ASKED)) for n in range(10)]
    finish(engine)
    assert len(encoded) == 1
    assert sum(each.usage.vision_flops > 0 for each in heard) == 1
    assert heard[7].text == ask(Engine(llava), about("7", RED, ASKED)).text


def test_a_warm_up_costs_what_was_known_and_nothing_else(llava: GeneratorCheckpoint) -> None:
    engine = Engine(llava)
    before = ask(engine, about(RED, ASKED))
    engine.warm_up()
    after = ask(engine, about(RED, ASKED))
    assert after.text == before.text
    assert after.usage.cached_tokens == 0
    assert 1 <= engine.running <= 16


def test_a_block_is_copied_only_where_there_is_room_for_the_copy(
    llava: GeneratorCheckpoint,
) -> None:
    known, alike, other = (
        about(text, max_tokens=30) for text in ("qzxwvkj" * 2, "qzxwvkjqzxwvk?", "x")
    )
    units = [build_prompt(each.messages, llava).units() for each in (known, alike, other)]
    assert units[0][:18] == units[1][:18] != units[2][:18]
    assert units[0] != units[1]
    assert all(16 < len(each) <= 32 for each in units)
    engine = Engine(llava, pool_bytes=0)  # four blocks of 16 tokens
    ask(engine, dataclasses.replace(known, max_tokens=33 - len(units[0])))
    assert engine.blocks.known == 2
    heard = [put(engine, other)]
    engine.step()
    assert engine.blocks.available == 2  # which are those that are known
    heard.append(put(engine, alike))
    finish(engine)
    assert [each.text for each in heard] == [
        ask(Engine(llava), each).text for each in (other, alike)
    ]


# Who is served when -----------------------------------------------------------------------------


def steps_until(engine: Engine, heard: Heard) -> int:
    steps = 0
    while not heard.ended:
        engine.step()
        steps += 1
        assert steps < 1000
    return steps


@pytest.mark.parametrize("parts", [(ASKED,), (BLUE, ASKED)], ids=["text", "picture"])
def test_forty_pictures_do_not_stall_a_short_question(
    llava: GeneratorCheckpoint, parts: tuple[Any, ...]
) -> None:
    short = about(*parts, max_tokens=12)
    alone = steps_until(engine := Engine(llava), put(engine, short))
    engine = Engine(llava)
    forty = [picture((6 * n, 255 - 5 * n, n)) for n in range(40)]
    big = put(engine, about(*forty, "Which is the largest?", max_tokens=5))
    engine.step()
    engine.step()
    assert steps_until(engine, put(engine, short)) <= alone + 4
    assert not big.ended
    finish(engine)
    assert big.usage.images == 40


def test_the_first_priority_is_served_first(llava: GeneratorCheckpoint) -> None:
    engine = Engine(llava, running=1)
    heard = {p: put(engine, about(RED, ASKED, priority=p)) for p in (5, 0, 9, -1)}
    order = []
    while not engine.idle:
        engine.step()
        order += [p for p, each in heard.items() if each.ended and p not in order]
    assert order == [-1, 0, 5, 9]


# Endings ----------------------------------------------------------------------------------------


def test_a_deadline_ends_a_question_and_frees_its_memory(llava: GeneratorCheckpoint) -> None:
    engine = Engine(llava, running=1)
    late = put(engine, about(RED, ASKED, max_tokens=400, deadline=50))
    waiting = put(engine, about(BLUE, ASKED, deadline=50))
    other = put(engine, about(TALL, ASKED))
    for _ in range(5):
        engine.step()
    assert late.events
    assert not late.ended
    for each in (late, waiting):
        assert each.question is not None
        each.question.ledger.arrived -= 51
    engine.step()
    assert isinstance(late.error, TimedOut)
    assert isinstance(waiting.error, TimedOut)
    finish(engine)
    assert other.text
    assert engine.blocks.available == engine.blocks.count


@pytest.mark.parametrize("after", [0, 1, 6])
def test_giving_up_frees_memory_at_the_next_step(llava: GeneratorCheckpoint, after: int) -> None:
    engine = Engine(llava)
    heard = put(engine, about(RED, ASKED, max_tokens=400, choices=3))
    for _ in range(after):
        engine.step()
    assert (engine.blocks.available < engine.blocks.count) == (after > 0)
    heard.cancel()
    engine.step()
    assert heard.ended
    assert heard.error is None
    assert engine.idle
    assert engine.blocks.available == engine.blocks.count


def test_whoever_comes_last_makes_room_and_is_answered_all_the_same(
    llava: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside: list[int] = []
    put_aside = Engine._put_aside

    def watched(self: Engine, text: Any) -> None:
        aside.append(text.arrival)
        put_aside(self, text)

    monkeypatch.setattr(Engine, "_put_aside", watched)
    drawn = Sampling(temperature=1.2, seed=3)
    endless = {"type": "string", "minLength": 1000}
    requests = [about(f"{n}", RED, max_tokens=60, sampling=drawn, schema=endless) for n in range(3)]
    alone = [ask(Engine(llava), each).text for each in requests]
    assert not aside
    engine = Engine(llava, pool_bytes=12 * 2 * 2 * 2 * 16 * 4 * 16)
    assert engine.blocks.count == 12
    heard = [put(engine, each) for each in requests]
    finish(engine)
    assert [each.text for each in heard] == alone
    assert aside
    assert 1 not in aside


def test_a_prompt_that_no_memory_could_hold(llava: GeneratorCheckpoint) -> None:
    engine = Engine(llava, pool_bytes=0)
    assert engine.context == 64
    with pytest.raises(ContextExceeded, match="reads 64 with its answer"):
        put(engine, about(RED, BLUE, TALL, RED, ASKED))
    assert ask(engine, about("Hello", max_tokens=100)).reasons == ["length"]


BLACK = Image(picture().pixels * 0, (40, 30))


def test_a_picture_that_cannot_be_encoded_ends_its_own_question(
    llava: GeneratorCheckpoint, encoded: list[Any]
) -> None:
    engine = Engine(llava)
    requests = [about(RED, ASKED), about(BLUE, BLACK, ASKED), about(BLUE, ASKED)]
    heard = [put(engine, each) for each in requests]
    finish(engine)
    assert str(heard[1].error) == "a picture of nothing"
    assert heard[0].text == ask(Engine(llava), requests[0]).text
    assert heard[2].text == ask(Engine(llava), requests[2]).text
    assert engine.blocks.available == engine.blocks.count


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_behind_whatever_happens(
    llava: GeneratorCheckpoint, encoded: list[Any], seed: int
) -> None:
    dice = random.Random(seed)
    requests = [
        about(f"{n}", *dice.sample([RED, BLUE, TALL], dice.randint(0, 3)), ASKED,
              max_tokens=dice.randint(1, 30), choices=dice.choice([1, 1, 3]), deadline=50,
              sampling=Sampling(temperature=1.0, seed=n), priority=dice.choice([0, 1]))
        for n in range(6)
    ]  # fmt: skip
    alone = [ask(Engine(llava), each).texts for each in requests]
    engine = Engine(llava, pool_bytes=dice.choice([30, 300]) * 2**12 * 2, running=4)
    asked: list[tuple[int, Heard]] = []
    for _ in range(150):
        match dice.choice(["ask", "ask", "black", "step", "step", "step", "cancel", "late"]):
            case "ask":
                which = dice.randrange(6)
                asked.append((which, put(engine, requests[which])))
            case "black":
                asked.append((-1, put(engine, about(BLACK, ASKED))))
            case "step":
                engine.step()
            case ending:
                going = [heard for _, heard in asked if not heard.ended]
                if going:
                    heard = dice.choice(going)
                    assert heard.question is not None
                    if ending == "cancel":
                        heard.cancel()
                    else:
                        heard.question.ledger.arrived -= 51
    finish(engine)
    whole = 0
    for which, heard in asked:
        assert heard.ended
        if which < 0:
            assert heard.error is not None or heard.question.cancelled.is_set()  # type: ignore[union-attr]
        elif heard.error is not None:
            assert isinstance(heard.error, TimedOut)
        elif not heard.question.cancelled.is_set():  # type: ignore[union-attr]
            assert heard.texts == alone[which]
            whole += 1
    assert whole > 5
    assert engine.blocks.available == engine.blocks.count
    assert ask(engine, requests[0]).texts == alone[0]
