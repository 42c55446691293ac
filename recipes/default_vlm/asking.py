"""Answers of a model to many questions, each asked by itself: greedy, several at once.

The picture comes first in every prompt, so it is read once for all of its questions.
"""

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
    longest: int = 28,
    at_once: int = 24,
) -> list[str]:
    """features: [image tokens, width] of the picture of each question."""
    model: Any = found.model
    assert found.images is not None
    begin, _, rest = _template(found)
    head = found.tokenizer.encode(begin + found.images.placeholder(1, 1))
    tails = [found.tokenizer.encode(rest.replace("?", question, 1)) for question in questions]
    read = _read(model, head, features, at_once)
    order = sorted(range(len(tails)), key=lambda i: len(tails[i]))
    said = [""] * len(tails)
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        longest_tail = max(len(tails[i]) for i in chosen)
        cache = model.new_cache(batch=len(chosen), capacity=len(head) + longest_tail + longest)
        for row, i in enumerate(chosen):
            keys, values = read[id(features[i])]
            cache.keys[:, row, :, : len(head)] = keys
            cache.values[:, row, :, : len(head)] = values
        cache.length = len(head)
        rows = _greedy(model, cache, [tails[i] for i in chosen], found.tokenizer.eos_ids, longest)
        for i, ids in zip(chosen, rows, strict=True):
            said[i] = found.tokenizer.decode(ids).strip()
    return said


def _template(found: GeneratorCheckpoint) -> tuple[str, str, str]:
    """What stands before the picture, its mark, and what stands behind it for the question "?"."""
    assert found.images is not None
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    return found.tokenizer.render([{"role": "user", "content": content}]).partition(
        found.images.mark
    )


def _read(
    model: Any, head: list[int], features: Sequence[Tensor], at_once: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values of each different picture's prompt head, by the identity of its features."""
    different = list({id(each): each for each in features}.values())
    read = {}
    for start in range(0, len(different), at_once):
        chosen = different[start : start + at_once]
        cache = model.new_cache(batch=len(chosen), capacity=len(head))
        model(torch.tensor([head] * len(chosen)), torch.cat(chosen), cache=cache)
        for row, each in enumerate(chosen):
            read[id(each)] = (cache.keys[:, row].clone(), cache.values[:, row].clone())
    return read


def _greedy(
    model: Any, cache: Any, tails: list[list[int]], ends: frozenset[int], longest: int
) -> list[list[int]]:
    """Tails padded on the left, so that all of them end together."""
    width, before = max(map(len, tails)), cache.length
    ids = torch.tensor([[0] * (width - len(each)) + each for each in tails])
    padding = torch.tensor([[True] * (width - len(each)) + [False] * len(each) for each in tails])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    behind = torch.ones(len(tails), width, before, dtype=torch.bool)
    mask = torch.cat([behind, ~padding[:, None, :] & causal], dim=2)
    positions = before + ((~padding).cumsum(dim=1) - 1).clamp_min(0)
    hidden = model(ids, positions=positions, mask=mask[:, None], cache=cache)[:, -1]
    seen = torch.cat([behind[:, 0], ~padding], dim=1)  # [batch, tokens so far]
    rows: list[list[int]] = [[] for _ in tails]
    going = [True] * len(tails)
    for step in range(longest):
        tokens = model.logits(hidden).argmax(dim=-1)
        for number, token in enumerate(tokens.tolist()):
            going[number] = going[number] and token not in ends
            if going[number]:
                rows[number].append(token)
        if not any(going):
            break
        seen = torch.cat([seen, torch.ones(len(tails), 1, dtype=torch.bool)], dim=1)
        hidden = model(
            tokens[:, None],
            positions=positions[:, -1:] + 1 + step,
            mask=seen[:, None, None, :],
            cache=cache,
        )[:, -1]
    return rows
