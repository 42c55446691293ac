"""Answers of a model to many questions, each asked by itself: greedy, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.models.generator import GeneratorCheckpoint


@torch.no_grad()
def answers(
    found: GeneratorCheckpoint,
    features: Sequence[Tensor],
    questions: Sequence[str],
    *,
    longest: int = 40,
    at_once: int = 24,
) -> list[str]:
    """features: [image tokens, width] of the picture of each question."""
    model: Any = found.model
    assert found.images is not None
    prompts = []
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = found.tokenizer.render([{"role": "user", "content": content}])
        text = text.replace(found.images.mark, found.images.placeholder(1, 1))
        prompts.append(found.tokenizer.encode(text))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said = [""] * len(prompts)
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        rows = _greedy(
            model,
            [prompts[i] for i in chosen],
            torch.cat([features[i] for i in chosen]),
            found.tokenizer.eos_ids,
            longest,
        )
        for i, ids in zip(chosen, rows, strict=True):
            said[i] = found.tokenizer.decode(ids).strip()
    return said


def _greedy(
    model: Any, prompts: list[list[int]], features: Tensor, ends: frozenset[int], longest: int
) -> list[list[int]]:
    """Prompts padded on the left, so that all of them end together."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts])
    real = torch.tensor([[False] * (width - len(each)) + [True] * len(each) for each in prompts])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding attends to itself, so that no row of the softmax is empty.
    mask = (real[:, None, :] & causal) | torch.eye(width, dtype=torch.bool)  # [batch, width, width]
    positions = (real.cumsum(dim=1) - 1).clamp_min(0)
    cache = model.new_cache(batch=len(prompts), capacity=width + longest)
    hidden = model(ids, features, positions=positions, mask=mask[:, None], cache=cache)[:, -1]
    rows: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    for step in range(longest):
        tokens = model.logits(hidden).argmax(dim=-1)
        for number, token in enumerate(tokens.tolist()):
            going[number] = going[number] and token not in ends
            if going[number]:
                rows[number].append(token)
        if not any(going):
            break
        real = torch.cat([real, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
        hidden = model(
            tokens[:, None],
            positions=positions[:, -1:] + 1 + step,
            mask=real[:, None, None, :],
            cache=cache,
        )[:, -1]
    return rows
