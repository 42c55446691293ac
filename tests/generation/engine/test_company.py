"""Whatever else is in the batch, an answer is the one that would be given alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from chiasm.generation import Message, Request, Sampling, TextPart
from chiasm.generation.engine import passes
from chiasm.generation.engine.engine import Engine
from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.driving import Heard, ask, finish, put
from tests.generation.tiny_models import picture

WORDS = (
    *("What", "is", "in", "this", "picture", "?", "A", "red", "bicycle", ",", "a", "grey", "cat"),
    *(".", "How", "many", "birds", "?", "Där", "你好", "42"),
)
PICTURES = [
    picture((40 * n, 250 - 30 * n, 60 + 20 * n), size)
    for n, size in enumerate([(40, 30), (32, 32), (30, 90), (64, 20), (48, 48), (40, 30)])
]
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["count"],
    "additionalProperties": False,
}


def random_request(dice: random.Random) -> Request:
    """Of any length, with none to three pictures and any way of choosing tokens."""

    def words(most: int) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))

    pictures = dice.sample(PICTURES, dice.choice([0, 0, 1, 1, 2, 3]))
    messages = [Message.user(*pictures[:1], words(40))]
    if dice.random() < 0.3:
        messages += [
            Message("assistant", (TextPart(words(10)),)),
            Message.user(words(10), *pictures[1:]),
        ]
    drawn = Sampling(
        temperature=dice.uniform(0.5, 1.8),
        top_p=dice.choice([1.0, 0.9]),
        top_k=dice.choice([0, 20]),
        seed=dice.randrange(1000),
    )
    return Request(
        tuple(messages),
        max_tokens=dice.randint(1, 24),
        sampling=dice.choice([Sampling(), drawn]),
        stop=tuple(dice.choices(["a", " ", "th", "ö"], k=dice.choice([0, 0, 1, 2]))),
        choices=dice.choice([1, 1, 1, 2, 4]),
        logprobs=dice.choice([None, 0, 3]),
        schema=dice.choice([None, None, None, SCHEMA]),
        priority=dice.choice([0, 0, 1, 5]),
        tenant=dice.choice(["", "", "other"]),
    )


def what_matters(heard: Heard) -> dict[str, Any]:
    """All of an answer but when it came, and what it cost."""
    assert heard.ended
    assert heard.error is None
    usage = heard.usage
    return {
        "texts": heard.texts,
        "reasons": heard.reasons,
        "logprobs": heard.logprobs,
        "tokens": (usage.text_tokens, usage.image_tokens, usage.answer_tokens),
    }


@pytest.mark.parametrize("model", ["llava", "smolvlm"])
def test_64_requests_alone_and_together(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: GeneratorCheckpoint = request.getfixturevalue(model)
    dice = random.Random(2026)
    requests = [random_request(dice) for _ in range(64)]
    alone = [what_matters(ask(Engine(checkpoint), each)) for each in requests]
    assert len({str(each["texts"]) for each in alone}) > 50  # else anything could pass

    aside = 0
    put_aside = Engine._put_aside

    def counted(self: Engine, text: Any) -> None:
        nonlocal aside
        aside += 1
        put_aside(self, text)

    monkeypatch.setattr(Engine, "_put_aside", counted)
    for pool, running in ((2**26, 16), (900_000, 7)):
        engine = Engine(checkpoint, pool_bytes=pool, running=running)
        heard = [put(engine, each) for each in requests]
        finish(engine)
        assert [what_matters(each) for each in heard] == alone
        assert engine.blocks.available == engine.blocks.count
        # Once more, when much of it is known; and while others come and go.
        heard = []
        for each in reversed(requests):
            heard.insert(0, put(engine, each))
            for _ in range(dice.randint(0, 3)):
                engine.step()
        finish(engine)
        assert [what_matters(each) for each in heard] == alone


def test_int8_is_the_same_in_company_too(llava: GeneratorCheckpoint) -> None:
    dice = random.Random(7)
    requests = [random_request(dice) for _ in range(12)]
    alone = [what_matters(ask(Engine(llava, precision="int8"), each)) for each in requests]
    engine = Engine(llava, precision="int8")
    heard = [put(engine, each) for each in requests]
    finish(engine)
    assert [what_matters(each) for each in heard] == alone


def test_torch_says_the_same_in_company_when_it_does_not_draw(
    llava: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not bit by bit: log-probabilities are as close as sums in another order are."""
    monkeypatch.setattr(passes, "_kernels_can", lambda decoder: False)
    dice = random.Random(2027)
    requests = [replace(random_request(dice), sampling=Sampling(), logprobs=1) for _ in range(24)]
    alone = [what_matters(ask(Engine(llava), each)) for each in requests]
    assert len({str(each["texts"]) for each in alone}) > 15
    for pool, running in ((2**25, 16), (900_000, 5)):
        engine = Engine(llava, pool_bytes=pool, running=running)
        heard = []
        for each in requests:
            heard.append(put(engine, each))
            for _ in range(dice.randint(0, 2)):
                engine.step()
        finish(engine)
        for one, other in zip(heard, alone, strict=True):
            together = what_matters(one)
            close = [[pytest.approx(t.logprob, abs=1e-4) for t in c] for c in other["logprobs"]]
            assert [[t.logprob for t in choice] for choice in together.pop("logprobs")] == close
            assert together == {key: other[key] for key in together}
        assert engine.blocks.available == engine.blocks.count
