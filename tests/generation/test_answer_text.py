"""Text out of tokens: whole characters, nothing of a stop text, nothing lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.generation.engine.answer_text import AnswerText
from chiasm.models.chat import ChatTokenizer
from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.tiny_models import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(talker: GeneratorCheckpoint) -> ChatTokenizer:
    return talker.tokenizer


def pushed(tokenizer: ChatTokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    """What comes out for each token, then at the end."""
    text = AnswerText(tokenizer, stops)
    out = []
    for number in ids:
        out.append(text.push(number))
        if text.stopped:
            return out
    return [*out, text.finish()]


def test_a_character_of_several_tokens_comes_whole(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("a 🚲🇸🇪 b")
    pieces = pushed(tokenizer, ids)
    assert len(ids) > 9  # the emoji is spelt in bytes
    assert "".join(pieces) == "a 🚲🇸🇪 b"
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_are_not_waited_for_for_ever(tokenizer: ChatTokenizer) -> None:
    lone = tokenizer.token_id("ð")  # the letter for byte 0xF0, which begins a character of four
    pieces = pushed(tokenizer, [lone] * 20 + tokenizer.encode("end"))
    assert "".join(pieces).endswith("end")
    assert "".join(pieces[:15])


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_what_comes_out_is_the_text_before_the_first_stop(
    tmp_path_factory: pytest.TempPathFactory, text: str, stops: list[str]
) -> None:
    tokenizer = _shared(tmp_path_factory)
    text = text.replace("\ufffd", "")
    ids = tokenizer.encode(tokenizer.harmless(text))
    whole = tokenizer.decode(ids)
    # Letter by letter: the first letter at which some stop is complete, and the longest of those.
    ends = [n for n in range(1, len(whole) + 1) if any(whole[:n].endswith(s) for s in stops)]
    expected = whole
    if ends:
        longest = max(len(stop) for stop in stops if whole[: ends[0]].endswith(stop))
        expected = whole[: ends[0] - longest]
    assert "".join(pushed(tokenizer, ids, tuple(stops))) == expected


def test_what_may_become_a_stop_waits_and_is_let_go(tokenizer: ChatTokenizer) -> None:
    ids = list(itertools.chain.from_iterable(tokenizer.encode(letter) for letter in "xENyEND!"))
    pieces = pushed(tokenizer, ids, ("END",))
    assert pieces[:4] == ["x", "", "", "ENy"]
    assert "".join(pieces) == "xENy"


_TOKENIZERS: list[ChatTokenizer] = []


def _shared(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    if not _TOKENIZERS:
        folder = tmp_path_factory.mktemp("shared")
        write_tokenizer(folder)
        _TOKENIZERS.append(ChatTokenizer.from_folder(folder))
    return _TOKENIZERS[0]
