"""The default language model, as it comes out of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity_decoders
import pytest
import torch

from chiasm.models.chat import ChatTokenizer
from chiasm.models.checkpoint import load_model, locate
from chiasm.settings import Settings

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate("smollm2-135m-instruct", cache_dir=Settings.load().cache_dir)


def test_it_answers_a_question_it_must_know(folder: Path) -> None:
    tokenizer = ChatTokenizer.from_folder(folder)
    model: Any = load_model(folder)
    prompt = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}])
    with torch.inference_mode():
        chosen = parity_decoders.greedy(model, torch.tensor([tokenizer.encode(prompt)]), 8)[0]
    answer = chosen.tolist()
    assert tokenizer.decode(answer) == "The capital of France is Paris."
    assert answer[-1] in tokenizer.eos_ids


def test_its_texts_are_cut_as_in_training(folder: Path) -> None:
    """Every digit is a token of its own, and the marks of a conversation are one each."""
    tokenizer = ChatTokenizer.from_folder(folder)
    ids = tokenizer.encode("<|im_start|>user\nIn 2024<|im_end|>")
    assert [tokenizer.decode([each], skip_special=False) for each in ids] == [
        *("<|im_start|>", "user", "\n", "In", " ", "2", "0", "2", "4", "<|im_end|>"),
    ]
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.vocabulary == 49152


def test_its_weights_are_mapped_and_not_read(folder: Path) -> None:
    """Opening half a gigabyte costs next to nothing until the weights are used."""
    before = resident()
    model = load_model(folder)
    mapped = sum(parameter.nbytes for parameter in model.parameters())
    assert mapped > 500e6
    assert resident() - before < 0.2 * mapped


def resident() -> int:
    """Bytes of this process that are in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pytest.skip("only Linux says it so")
    return pages * 4096
