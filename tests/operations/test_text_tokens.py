"""Text tokens: the estimate's features, the chat's frame, and that nothing is ever fetched."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chiasm.models.chat import ChatTokenizer
from chiasm.operations import text_tokens
from chiasm.operations.text_tokens import FEATURES, TextCounter, counter_for, own_counter

NAMES = [
    "gpt-5-mini", "claude-opus-4-5", "claude-opus-4-7", "claude-sonnet-5", "gemini-2.5-flash",
    "Qwen/Qwen2.5-VL-7B-Instruct", "default-vlm", "mistralai/Pixtral-12B", "nobody-knows-this",
]  # fmt: skip


def by_name(text: str) -> dict[str, float]:
    return dict(zip(FEATURES, text_tokens.features(text), strict=True))


def test_features_by_hand() -> None:
    found = by_name("Two birds,  3 of 250!\n\n")
    assert found | {
        "upper": 1, "lower": 9, "digit": 4, "mark": 2, "space": 5, "newline": 2,
        "words": 3, "mark_runs": 2, "digit_runs": 2, "space_runs": 4, "newline_runs": 1,
    } == found  # fmt: skip
    russian = by_name("Что на картинке?")
    assert (russian["cyrillic"], russian["cyrillic_words"], russian["words"]) == (13, 3, 3)
    assert by_name("图片里有什么")["han"] == 6
    assert by_name("what is the use of it")["english"] > by_name("was ist das hier denn")["english"]


@given(st.text(st.characters(max_codepoint=127), min_size=1))
def test_both_ways_to_count_agree(text: str) -> None:
    assert text_tokens._features_of_ascii(text) == text_tokens._features(text)


@given(st.text())
def test_every_text_has_a_number(text: str) -> None:
    counted = counter_for("claude-opus-4-5").count(text)
    assert counted.tokens >= bool(text)
    assert np.isfinite(counted.error)


@pytest.mark.parametrize("name", NAMES)
def test_english_takes_three_to_six_letters_a_token(name: str) -> None:
    """Every published tokenizer of these families does."""
    text = (
        "You are looking at the scan of an invoice. Read the total, the currency and the date, and "
        "say whether the customer's address is the same as on the order. Where something cannot be "
        "read, say so, and do not guess. Answer in one short paragraph of plain English."
    )
    counted = counter_for(name).count(text)
    assert 3.0 < len(text) / counted.tokens < 6.0


def test_a_long_text_is_sampled_on_the_way_of_a_request() -> None:
    text = "Describe every part of the drawing in the order of its numbers. " * 2000
    counter = counter_for("gemini-2.5-flash")
    whole, quick = counter.count(text), counter.count(text, quick=True)
    assert quick.tokens == pytest.approx(whole.tokens, rel=0.02)
    assert quick.error >= whole.error + 0.05


def test_no_network_is_ever_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a count has asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    text_tokens._family_counter.cache_clear()
    try:
        assert not counter_for("gpt-4o").exact
        # A damaged vocabulary is what tiktoken would fetch anew.
        name = "fb374d419588a4632f3f557e76b4b70aebbca790"  # the SHA-1 of its address
        (tmp_path / name).write_bytes(b"half a vocab")
        text_tokens._family_counter.cache_clear()
        assert not counter_for("gpt-4o").exact
    finally:
        text_tokens._family_counter.cache_clear()


# Checkpoints that are here ----------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a good helper.<|im_end|>\n"
    "{% endif %}" + CHATML
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
    "{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["user assistant system what is in this picture you are a good helper"] * 20
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


TALKS = [
    [("user", "what is in this picture")],
    [("system", "you are short"), ("user", "what is this")],
    [("user", "what is this"), ("assistant", "a picture"), ("user", "is it good")],
    [("system", "you are"), ("user", "what"), ("assistant", "this"), ("user", "is it")],
]


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT])
def test_a_conversation_has_as_many_tokens_as_its_template_writes(
    backend: Tokenizer, template: str, talk: list[tuple[str, str]]
) -> None:
    tokenizer = ChatTokenizer(backend, template=template)
    counted = own_counter(tokenizer, "own").conversation(talk)
    written = tokenizer.render([{"role": role, "content": text} for role, text in talk])
    assert counted.tokens == len(tokenizer.encode(written))
    assert counted.error == 0


@pytest.mark.parametrize("talk", [TALKS[0], TALKS[2]])
def test_a_template_that_refuses_much(backend: Tokenizer, talk: list[tuple[str, str]]) -> None:
    tokenizer = ChatTokenizer(backend, template=STRICT)
    counted = own_counter(tokenizer, "own").conversation(talk)
    written = tokenizer.render([{"role": role, "content": text} for role, text in talk])
    assert counted.tokens == pytest.approx(len(tokenizer.encode(written)), abs=3)


def test_what_was_counted_is_remembered() -> None:
    seen: list[str] = []

    def count(text: str) -> int:
        seen.append(text)
        return 1

    counter = TextCounter("once", count, text_tokens.Frame())
    assert counter.count("a") == counter.count("a")
    assert seen == ["a"]
