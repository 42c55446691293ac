"""A Flamingo behind the engine, from a folder that transformers wrote, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from transformers import IdeficsProcessor, PreTrainedTokenizerFast
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from chiasm.generation import Message, Request, TextPart, Usage
from chiasm.generation.engine.native import load_native_generator
from chiasm.generation.engine.one_at_a_time import OneAtATime
from chiasm.generation.engine.prompt import build_prompt
from chiasm.models.generator import GeneratorCheckpoint, load_generator
from chiasm.settings import Settings
from tests.generation import driving
from tests.generation.tiny_models import picture, write_tokenizer

AROUND = "<fake_token_around_image>"
# As IDEFICS was instructed: no special token but pictures' and the ends of turns.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'User:' if message['role'] == 'user' else 'Assistant:' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
RED, BLUE, TALL = picture(), picture((20, 40, 220)), picture((10, 200, 60), (30, 90))
CONVERSATIONS = {
    "no picture": (Message.user("Hello"),),
    "one picture": (Message.user(RED, "What is this?"),),
    "three pictures, two adjacent": (
        Message.user(RED, "What is this?"),
        Message("assistant", (TextPart("A cat."),)),
        Message.user("And here?", BLUE, TALL, "Which is larger?"),
    ),
}
STEPS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a tiny IDEFICS."""
    path = tmp_path_factory.mktemp("flamingo")
    write_tokenizer(path)
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    words = backend.get_vocab_size()
    backend.add_special_tokens([AddedToken(AROUND, normalized=False)])
    backend.save(str(path / "tokenizer.json"))
    entries = json.loads((path / "tokenizer_config.json").read_text())
    entries |= {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(entries))
    end = backend.token_to_id("<|im_end|>")
    config = transformers.IdeficsConfig(
        vocab_size=words,
        additional_vocab_size=1,
        image_token_id=backend.token_to_id("<image>"),
        eos_token_id=backend.token_to_id("<|endoftext|>"),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        qk_layer_norms=True,
        use_resampler=True,
        alpha_initializer="ones",
        max_position_embeddings=512,
        vision_config={
            "embed_dim": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_head_dim": 8},
    )
    torch.manual_seed(0)
    model = transformers.IdeficsForVisionText2Text(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than an initialisation: answers differ
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.generation_config.eos_token_id = [end]
    model.save_pretrained(path)
    IdeficsImageProcessorPil(image_size=32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def seer(folder: Path) -> GeneratorCheckpoint:
    return load_generator(folder, cache_dir=folder)


def ask(engine: OneAtATime, *messages: Message, **more: Any) -> tuple[str, Usage]:
    heard = driving.ask(engine, Request(messages, max_tokens=STEPS, **more))
    return heard.text, heard.usage


def parts(messages: tuple[Message, ...]) -> list[Any]:
    """The conversation as transformers' processor takes it: texts and pictures in a row."""
    row: list[Any] = [""]
    for message in messages:
        row[-1:] = [f"{row[-1]}{'User:' if message.role == 'user' else 'Assistant:'}"]
        for part in message.parts:
            if isinstance(part, TextPart):
                row[-1] += part.text
            else:
                row += [PIL.Image.fromarray(np.array(part.image.pixels)), ""]
        row[-1] += "<|im_end|>\n"
    row[-1] += "Assistant:"
    return [part for part in row if part != ""]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_and_answer_are_those_of_transformers(
    name: str, folder: Path, seer: GeneratorCheckpoint
) -> None:
    messages = CONVERSATIONS[name]
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = IdeficsProcessor(IdeficsImageProcessorPil.from_pretrained(folder), fast)
    inputs = processor(text=parts(messages), add_end_of_utterance_token=False)
    prompt = build_prompt(messages, seer)
    assert list(prompt.ids) == inputs["input_ids"][0].tolist()
    assert prompt.image_tokens == len(prompt.pictures)
    theirs = transformers.IdeficsForVisionText2Text.from_pretrained(folder).eval()
    made = theirs.generate(**inputs, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
    new = [t for t in made[0, len(prompt.ids) :].tolist() if t not in seer.tokenizer.eos_ids]
    assert len(new) > 3
    assert ask(OneAtATime(seer), *messages)[0] == seer.tokenizer.decode(new)


def test_the_picture_matters(seer: GeneratorCheckpoint) -> None:
    engine = OneAtATime(seer)
    answers = {ask(engine, Message.user(image, "What is this?"))[0] for image in (RED, BLUE, TALL)}
    assert len(answers) == 3


def test_a_second_question_finds_the_pictures_latents_in_the_cache(
    seer: GeneratorCheckpoint,
) -> None:
    engine = OneAtATime(seer)
    first = ask(engine, Message.user(RED, "What is this?"))[1]
    question = Message.user(RED, "How many birds can be seen?")
    again, second = ask(engine, question)
    assert first.vision_flops > 0 == second.vision_flops
    assert second.cached_tokens >= 4
    assert again == ask(OneAtATime(seer), question)[0]


def test_kept_prompts_stay_within_their_budget(seer: GeneratorCheckpoint) -> None:
    one = OneAtATime(seer)
    ask(one, Message.user("What is this?"))
    budget = 3 * one.cached_bytes
    engine = OneAtATime(seer, prefix_bytes=budget)
    for number in range(12):
        ask(engine, Message.user(f"{number} birds?"))
        assert 0 < engine.cached_bytes <= budget
    assert OneAtATime(seer, prefix_bytes=0).cached_bytes == 0


def test_a_long_prompt_is_read_in_pieces(
    seer: GeneratorCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = CONVERSATIONS["three pictures, two adjacent"]
    whole = ask(OneAtATime(seer), *messages)[0]
    monkeypatch.setattr("chiasm.generation.engine.one_at_a_time.PREFILL_CHUNK", 7)
    assert ask(OneAtATime(seer), *messages)[0] == whole


def test_an_answer_by_a_schema_knows_of_the_additional_tokens(seer: GeneratorCheckpoint) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"],
              "additionalProperties": False}  # fmt: skip
    text, _ = ask(OneAtATime(seer), Message.user(RED, "Is there a cat?"), schema=schema)
    assert set(json.loads(text)) == {"sure"}


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_generator_answers_one_at_a_time_in_float32_whatever_the_settings(
    folder: Path, seer: GeneratorCheckpoint, precision: str
) -> None:
    flags = {"generator": str(folder), "device": "cpu", "engine.precision": precision}
    generator = load_native_generator(Settings.load(flags, environment={}))
    try:
        assert generator.running == 1
        question = Message.user(RED, "What is this?")
        events = list(generator.run(Request((question,), max_tokens=STEPS)))
        assert driving.Heard(events).text == ask(OneAtATime(seer), question)[0]
    finally:
        generator.close()
