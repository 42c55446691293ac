"""Tokens are drawn from the distribution that the parameters mean."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from chiasm.errors import InvalidRequest
from chiasm.generation import Message, Request, Sampling
from chiasm.generation.engine.sampler import Sampler, describe
from chiasm.models.generator import GeneratorCheckpoint

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0, 0.0])


def expected(temperature: float, top_p: float = 1.0, top_k: int = 0) -> np.ndarray:
    """Probabilities by the definitions, in float64."""
    scaled = LOGITS.double().numpy() / temperature
    probabilities = np.exp(scaled) / np.exp(scaled).sum()
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    kept, held = [], 0.0
    for token in order:
        if held >= top_p:
            break
        kept.append(token)
        held += probabilities[token]
    cut = np.zeros_like(probabilities)
    cut[kept] = probabilities[kept]
    return cut / cut.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=2.0, top_p=0.8, seed=3),
        Sampling(temperature=1.0, top_p=0.5, seed=4),
        Sampling(temperature=1.5, top_k=3, seed=5),
        Sampling(temperature=1.5, top_k=4, top_p=0.7, seed=6),
    ],
)
def test_the_distribution(sampling: Sampling) -> None:
    sampler = Sampler(sampling)
    draws = 4000
    counts = Counter(sampler(LOGITS) for _ in range(draws))
    assert sampling.temperature is not None
    wanted = expected(sampling.temperature, sampling.top_p or 1.0, sampling.top_k)
    assert set(counts) <= set(np.flatnonzero(wanted))
    seen = [counts[token] for token in np.flatnonzero(wanted)]
    assert stats.chisquare(seen, wanted[wanted > 0] * draws).pvalue > 0.001


def test_zero_takes_the_likeliest_and_what_is_forbidden_never_comes() -> None:
    forbidden = LOGITS.clone()
    forbidden[0] = -torch.inf
    assert Sampler(Sampling())(LOGITS) == 0
    assert Sampler(Sampling())(forbidden) == 3
    sampler = Sampler(Sampling(temperature=2.0, seed=0))
    assert 0 not in {sampler(forbidden) for _ in range(300)}


def test_seeds_and_choices() -> None:
    def draw(seed: int | None, choice: int = 0) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), choice)
        return [sampler(torch.zeros(1000)) for _ in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(7, 0) != draw(7, 1)
    assert draw(None) != draw(None)


def test_log_probabilities_are_the_models_own(talker: GeneratorCheckpoint) -> None:
    said = describe(LOGITS, 3, 2, talker.tokenizer)
    total = math.log(sum(math.exp(value) for value in LOGITS.tolist()))
    assert said.logprob == pytest.approx(1.5 - total, abs=1e-6)
    assert [round(top.logprob + total, 5) for top in said.top] == [2.0, 1.5]
    assert said.bytes == talker.tokenizer.bytes_of(3)


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: Sampling(temperature=2.1), "temperature"),
        (lambda: Sampling(temperature=math.nan), "temperature"),
        (lambda: Sampling(top_p=0), "top_p"),
        (lambda: Sampling(top_k=-1), "top_k"),
        (lambda: Request((Message.user("x"),), max_tokens=0), "max_tokens"),
        (lambda: Request((Message.user("x"),), choices=17), "n"),
        (lambda: Request((Message.user("x"),), logprobs=21), "top_logprobs"),
        (lambda: Request((Message.user("x"),), stop=("",)), "stop"),
        (lambda: Request((Message.user("x"),), stop=("x",) * 17), "stop"),
    ],
)
def test_values_that_mean_nothing_are_refused(make: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()  # type: ignore[operator]
    assert caught.value.param == param
