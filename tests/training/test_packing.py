"""Packed rows: the same losses and gradients as rows of one conversation, pictures included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chiasm.models.clip import CLIPVisionConfig
from chiasm.models.decoder import DecoderConfig, Qwen3Config
from chiasm.models.llava import LLaVA, LLaVAConfig
from chiasm.models.vision_language import ImageInputs
from chiasm.training.answer_loss import answer_loss
from chiasm.training.answer_network import AnswerNetwork
from chiasm.training.answers import Encoded
from chiasm.training.packing import (
    ConversationBatch,
    assemble,
    attention_mask,
    first_fit,
    positions_in,
)
from chiasm.training.picture_features import Loaded

IMAGE, PATCHES = 60, 4
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def network(kind: type[DecoderConfig] = DecoderConfig) -> LLaVA:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = kind(**TEXT, head_dim=8) if kind is Qwen3Config else kind(**TEXT)
    model = LLaVA(LLaVAConfig(text_config=text, vision_config=vision, image_token_index=IMAGE))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # sharper attention: a leak would be seen
    return model


def conversation(length: int, pictures: int, seed: int) -> tuple[Encoded, list[Loaded]]:
    chance = np.random.default_rng(seed)
    ids = chance.integers(0, IMAGE, length)
    for number in range(pictures):
        start = 2 + number * (PATCHES + 1)
        ids[start : start + PATCHES] = IMAGE
    learned = chance.random(length) < 0.4
    learned[: 2 + pictures * (PATCHES + 1)] = False
    learned[-1] = True
    loaded = [
        Loaded((16, 16), ImageInputs(torch.randn(1, 3, 16, 16), (16, 16))) for _ in range(pictures)
    ]
    return Encoded(str(seed), ids, learned, (b"",) * pictures), loaded


def batch(rows: list[list[tuple[Encoded, list[Loaded]]]], *, packed: bool) -> ConversationBatch:
    return assemble(
        [[each for each, _ in row] for row in rows],
        [[pictures for _, pictures in row] for row in rows],
        pad_id=7,
        packed=packed,
    )


def loss_and_gradients(model: LLaVA, whole: ConversationBatch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = AnswerNetwork(model)(whole) / whole.answer_tokens
    loss.backward()
    return float(loss.detach()), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", [DecoderConfig, Qwen3Config])
def test_packing_changes_neither_loss_nor_gradients(kind: type[DecoderConfig]) -> None:
    torch.manual_seed(1)
    model = network(kind)
    shapes = [(12, 1), (9, 0), (17, 2), (8, 1), (6, 0), (21, 3)]
    found = [conversation(length, pictures, n) for n, (length, pictures) in enumerate(shapes)]
    loss, gradients = loss_and_gradients(model, batch([[each] for each in found], packed=False))
    rows = [[found[n] for n in row] for row in first_fit([each.length for each, _ in found], 30)]
    assert len(rows) < len(found)
    packed_loss, packed = loss_and_gradients(model, batch(rows, packed=True))
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert packed.keys() == gradients.keys()
    assert "projector.linear_1.weight" in packed
    assert "image_tower.patch_embedding.weight" in packed
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_parts_of_a_batch_add_up_to_it() -> None:
    torch.manual_seed(2)
    model = network()
    shapes = [(12, 1), (9, 0), (17, 2), (8, 1), (6, 0)]
    found = [conversation(length, pictures, n) for n, (length, pictures) in enumerate(shapes)]
    whole = batch([[each] for each in found], packed=False)
    loss, gradients = loss_and_gradients(model, whole)
    model.zero_grad()
    parts = whole.parts(2)
    assert [len(part.ids) for part in parts] == [2, 2, 1]
    assert [part.ids.shape[1] for part in parts] == [12, 17, 6]
    total = sum(AnswerNetwork(model)(part) for part in parts) / whole.answer_tokens
    total.backward()
    assert float(total.detach()) == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        theirs = model.get_parameter(name).grad
        torch.testing.assert_close(theirs, gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_the_mask_and_the_positions_of_a_packed_row() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0, 0]])
    assert positions_in(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    assert attention_mask(segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_first_fit_places_each_once_and_leaves_no_two_rows_half_empty(lengths: list[int]) -> None:
    rows = first_fit(lengths, 50)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    totals = [sum(lengths[n] for n in row) for row in rows]
    assert max(totals) <= 50
    # Two rows that fit into one would have been one.
    assert all(a + b > 50 for n, a in enumerate(totals) for b in totals[n + 1 :])


def test_chunks_of_logits_give_the_loss_and_gradients_of_all_at_once() -> None:
    torch.manual_seed(3)
    hidden = torch.randn(3, 20, 8, requires_grad=True)
    head = torch.randn(50, 8, requires_grad=True)
    ids, learned = torch.randint(0, 50, (3, 20)), torch.rand(3, 20) < 0.5
    learned[:, 0] = False
    largest = 0

    def logits(rows: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(rows))
        return rows @ head.T

    loss = answer_loss(hidden, ids, learned, logits, chunk=7)
    found = torch.autograd.grad(loss, (hidden, head))
    # Token by token, by the definition.
    log_p = (hidden @ head.T).log_softmax(dim=-1)
    expected = torch.stack(
        [-log_p[row, place - 1, ids[row, place]] for row, place in learned.nonzero().tolist()]
    ).sum()
    torch.testing.assert_close(loss, expected)
    theirs = torch.autograd.grad(expected, (hidden, head))
    for ours, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)
    assert largest == 7
