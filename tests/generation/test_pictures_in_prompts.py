"""Pictures in prompts: their places, their features, and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chiasm.errors import ContextExceeded, UnsupportedCheckpoint
from chiasm.generation import Message, Request, TextPart, Usage
from chiasm.generation.engine.engine import Engine
from chiasm.generation.engine.prompt import build_prompt
from chiasm.models.generator import GeneratorCheckpoint
from tests.generation import driving
from tests.generation.tiny_models import picture, tiny_llava

RED, BLUE, TALL = picture(), picture((20, 40, 220)), picture((10, 200, 60), (30, 90))
TURN = (
    Message.user(RED, "What is this?"),
    Message("assistant", (TextPart("A cat."),)),
    Message.user("And here? ", BLUE, TALL),
)


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    return tiny_llava(tmp_path_factory.mktemp("seer"))


@pytest.fixture
def kind(computed_by: str) -> type[Engine]:
    """The engine, on the kernels and on torch."""
    return Engine


def ask(engine: Engine, *messages: Message, **more: Any) -> tuple[str, Usage]:
    heard = driving.ask(engine, Request(messages, max_tokens=12, **more))
    return heard.text, heard.usage


def by_hand(seer: GeneratorCheckpoint, *messages: Message, steps: int = 12) -> str:
    """Greedy decoding without any cache: everything is read again for each token."""
    prompt = build_prompt(messages, seer)
    model: Any = seer.model
    assert seer.images is not None
    ids = list(prompt.ids)
    with torch.no_grad():
        features = [model.encode_image(seer.images.prepare(p.image)) for p in prompt.pictures]
        made: list[int] = []
        for _ in range(steps):
            embeddings = model.decoder.embed(torch.tensor([ids + made]))
            for part, encoded in zip(prompt.pictures, features, strict=True):
                embeddings[0, list(part.at)] = encoded
            hidden = model.decoder(embeddings)
            made.append(int(model.logits(hidden[0, -1]).argmax()))
            if made[-1] in seer.tokenizer.eos_ids:
                break
    return seer.tokenizer.decode([t for t in made if t not in seer.tokenizer.eos_ids])


def test_each_picture_stands_where_it_was_put(seer: GeneratorCheckpoint) -> None:
    prompt = build_prompt(TURN, seer)
    assert [p.image for p in prompt.pictures] == [RED, BLUE, TALL]
    assert prompt.image_tokens == 48
    assert prompt.text_tokens == len(prompt.ids) - 48
    image_token = seer.tokenizer.token_id("<image>")
    places = [at for at, number in enumerate(prompt.ids) if number == image_token]
    assert [at for p in prompt.pictures for at in p.at] == places
    text = seer.tokenizer.decode(
        [number for number in prompt.ids if number != image_token], skip_special=False
    )
    assert text == (
        "<|im_start|>user\n\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nAnd here? \n\n<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("messages", [TURN[:1], TURN, (Message.user("Hello"),)])
def test_answers_are_those_of_reading_everything_again(
    kind: type[Engine], seer: GeneratorCheckpoint, messages: tuple[Message, ...]
) -> None:
    assert ask(kind(seer), *messages)[0] == by_hand(seer, *messages)


def test_the_picture_matters(kind: type[Engine], seer: GeneratorCheckpoint) -> None:
    engine = kind(seer)
    answers = {ask(engine, Message.user(image, "What is this?"))[0] for image in (RED, BLUE, TALL)}
    assert len(answers) == 3


def test_a_second_question_reads_the_picture_from_the_cache(
    kind: type[Engine], seer: GeneratorCheckpoint
) -> None:
    engine = kind(seer)
    first = ask(engine, Message.user(RED, "What is this?"))[1]
    again, second = ask(engine, Message.user(RED, "How many birds can be seen?"))
    assert first.vision_flops > 0
    assert second.vision_flops == 0
    assert second.cached_tokens >= 16
    assert "encode" not in second.seconds
    assert again == ask(kind(seer), Message.user(RED, "How many birds can be seen?"))[0]


def test_another_picture_of_the_same_size_is_never_taken_for_the_first(
    kind: type[Engine],
    seer: GeneratorCheckpoint,
) -> None:
    engine = kind(seer)
    ask(engine, Message.user(RED, "What is this?"))
    said, usage = ask(engine, Message.user(BLUE, "What is this?"))
    assert said == by_hand(seer, Message.user(BLUE, "What is this?"))
    before_the_picture = build_prompt((Message.user(BLUE, ""),), seer).pictures[0].at[0]
    assert usage.cached_tokens == before_the_picture


def test_a_known_picture_elsewhere_is_not_encoded_again(
    kind: type[Engine], seer: GeneratorCheckpoint
) -> None:
    engine = kind(seer)
    ask(engine, Message.user(RED, "What is this?"))
    question = Message.user("Look at this: ", BLUE, RED)
    said, usage = ask(engine, question)
    assert said == by_hand(seer, question)
    one = ask(kind(seer), Message.user(BLUE, "x"))[1].vision_flops
    assert usage.vision_flops == one


def test_a_long_prompt_is_read_in_pieces(
    kind: type[Engine], seer: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = kind(seer)
    monkeypatch.setattr(engine._passes, "rows", 7, raising=True)
    assert ask(engine, *TURN)[0] == by_hand(seer, *TURN)


def test_more_pictures_than_the_context_holds(
    kind: type[Engine], tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = tiny_llava(tmp_path_factory.mktemp("small"), context=128)
    engine = kind(small)
    with pytest.raises(ContextExceeded, match=r"160 of them for 10 pictures") as caught:
        ask(engine, Message.user(*([RED] * 10), "What are these?"))
    assert caught.value.hint == "Send fewer or smaller pictures, or a shorter text."
    assert ask(engine, Message.user(RED, "What is this?"))[1].images == 1


def test_a_template_that_takes_texts_alone(seer: GeneratorCheckpoint) -> None:
    plain = type(seer.tokenizer)(
        seer.tokenizer.backend,
        template="{% for m in messages %}[{{ m['role'] }}]{{ m['content'] + '' }}{% endfor %}",
        tokens=seer.tokenizer.tokens,
    )
    checkpoint = GeneratorCheckpoint(seer.model, seer.images, plain, "plain", "f" * 64)
    prompt = build_prompt((Message.user(RED, "What is this?"),), checkpoint)
    assert prompt.image_tokens == 16
    assert plain.decode(prompt.ids[prompt.pictures[0].at[-1] + 1 :]) == "\nWhat is this?"


def test_a_template_that_loses_pictures(seer: GeneratorCheckpoint) -> None:
    losing = type(seer.tokenizer)(
        seer.tokenizer.backend,
        template="{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}"
        "{% endfor %}{% endfor %}",
        tokens=seer.tokenizer.tokens,
    )
    checkpoint = GeneratorCheckpoint(seer.model, seer.images, losing, "losing", "f" * 64)
    with pytest.raises(UnsupportedCheckpoint, match="wrote 0 marks for 1 pictures"):
        build_prompt((Message.user(RED, "What is this?"),), checkpoint)


def test_a_typed_mark_is_no_picture(seer: GeneratorCheckpoint) -> None:
    prompt = build_prompt((Message.user(RED, "Is <image> a word?"),), seer)
    assert prompt.image_tokens == 16
    assert len(prompt.pictures) == 1
