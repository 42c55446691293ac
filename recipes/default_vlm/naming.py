"""The namer's linear map, and how well a namer names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from split import Split, load
from torch import nn

from chiasm.models.small_vlm import SmallVLM

SHRUNK, STEPS = 0.3, 100


def add_direct(model: SmallVLM, cache: Any, found: Split, chosen: list[int]) -> None:
    """Fit the linear map on every view of the chosen pictures."""
    namer = model.namer
    if not namer.config.direct:
        namer.register_buffer("direct", torch.zeros(namer.answers.shape[0], namer.mean.shape[0]))
        namer.config = replace(namer.config, direct=True)
        model.config = replace(model.config, namer=namer.config)
    namer.direct.zero_()
    listed = {word: number for number, word in enumerate(vocabulary())}
    summaries, owners = [], []
    for number in range(9):
        have = [i for i in chosen if cache.has_view[number, i]]
        summaries.append(cache.views[number][have].float())
        owners += have
    inputs = torch.cat(summaries)
    right = [torch.tensor([listed[name] for name in found.concepts[i].accepted if name in listed])
             for i in owners]  # fmt: skip
    # A stamp has eight composites and the others two; each picture counts alike, a stamp twice.
    weights = torch.tensor([0.75 if found.pictures[i].source == "stamp" else 1.0 for i in owners])
    cosine, class_weight, floor, share, temperature = namer.weights
    with torch.no_grad():
        standard = ((inputs - namer.mean) / namer.deviation).clamp(-6, 6)
        logits = cache.logits(inputs)
        probabilities = (logits / temperature).softmax(dim=-1)
        distance = torch.cdist(standard @ namer.reduce.T, namer.centres).square()
        base = torch.exp(-distance / namer.reach) @ namer.answers.T + namer.offset
        base = base + share * (probabilities @ namer.class_embeddings)
        named = torch.zeros(len(inputs), len(listed))
        named.index_add_(1, namer.link_words, probabilities[:, namer.link_classes])
        evidence = torch.where(named > 0, (named + floor).log() - floor.log(), 0.0)
        rest = (class_weight * evidence + namer.prior).half()
    scale = standard.shape[1] ** 0.5
    torch.manual_seed(0)
    layer = nn.Linear(standard.shape[1], base.shape[1], bias=False)
    nn.init.zeros_(layer.weight)
    sizes = nn.Parameter(torch.tensor([float(cosine), 1.0, 1.0]))  # cosine, rest, regression
    optimizer = torch.optim.AdamW([layer.weight, sizes], lr=3e-3, weight_decay=1e-3)
    for step in range(STEPS + 1):
        rows = torch.multinomial(weights, 128)
        moved = layer(F.dropout(standard[rows] / scale, 0.3))
        embedding = F.normalize(sizes[2] * base[rows] + moved, dim=-1)
        scores = sizes[0] * (embedding @ namer.word_embeddings.T) + sizes[1] * rest[rows].float()
        log = scores.log_softmax(dim=1)
        loss = -torch.stack(
            [log[n, right[row]].logsumexp(dim=0) for n, row in enumerate(rows.tolist())]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"direct, step {step}: {loss.item():.3f}", flush=True)
    with torch.no_grad():
        namer.direct.copy_(SHRUNK * layer.weight / scale / sizes[2])
        namer.weights[0] = sizes[0]
        namer.weights[1] = class_weight * sizes[1]
        namer.prior.mul_(sizes[1])


@torch.no_grad()
def measure(model: Any, cache: Any, found: Split, title: str) -> None:
    """How often an accepted name is among the first words, on plain views."""
    listed = vocabulary()
    for part in ("validation", "familiar"):
        chosen = found.parts[part]
        summaries = cache.views[0][chosen].float()
        scores = model.namer(summaries, cache.logits(summaries)).words
        best = scores.topk(10, dim=1).indices.tolist()
        hits = torch.tensor(
            [
                [listed[word] in found.concepts[i].accepted for word in row]
                for i, row in zip(chosen, best, strict=True)
            ]
        ).float()
        stamps = torch.tensor([found.pictures[i].source == "stamp" for i in chosen])
        for what, rows in (("all", hits), ("stamps", hits[stamps])):
            shares = [round(rows[:, :k].amax(dim=1).mean().item(), 3) for k in (1, 3, 5, 10)]
            print(f"{title}, {part}, {what}: named among 1, 3, 5, 10 words {shares}", flush=True)


def vocabulary() -> list[str]:
    """The namer's words."""
    path = Path(load()["work"]) / "vocabulary.pt"
    words: list[str] = torch.load(path, weights_only=False)["words"]
    return words
