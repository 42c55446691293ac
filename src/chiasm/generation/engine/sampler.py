"""From logits to a token: greedy, or drawn with a seed of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.generation.request import Sampling, TokenLogprob
from chiasm.models.chat import ChatTokenizer


class Sampler:
    """Draws the tokens of one answer. Two samplers of the same seed draw the same."""

    def __init__(self, sampling: Sampling, choice: int = 0) -> None:
        """choice: which answer of several; each draws differently from the same seed."""
        self._sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            # Mixed, so that neighbouring seeds and choices share nothing.
            self._random.manual_seed((sampling.seed * 1_000_003 + choice) % 2**63)

    def __call__(self, logits: Tensor) -> int:
        """Float [vocabulary] → a token. Minus infinity marks what may not be chosen."""
        sampling = self._sampling
        if not sampling.temperature:
            # numpy's, on the CPU: torch would wake threads for it, which keep a core busy after.
            return int(logits.argmax() if logits.device.type != "cpu" else logits.numpy().argmax())
        logits = logits.float().cpu() / sampling.temperature
        if sampling.top_k and sampling.top_k < len(logits):
            logits, tokens = logits.topk(sampling.top_k)
        else:
            logits, tokens = logits.sort(descending=True)
        probabilities = logits.softmax(dim=0)
        if sampling.top_p is not None and sampling.top_p < 1:
            # A token stays while those before it hold less than the share: at least one does.
            before = probabilities.cumsum(dim=0) - probabilities
            probabilities = probabilities * (before < sampling.top_p)
        drawn = torch.multinomial(probabilities, 1, generator=self._random)
        return int(tokens[drawn])


def describe(logits: Tensor, token: int, count: int, tokenizer: ChatTokenizer) -> TokenLogprob:
    """The log-probability of `token` and of the `count` likeliest.

    Of the model's own distribution: before temperature, top_p and constraints.
    """
    logprobs = logits.float().log_softmax(dim=0)
    values, tokens = logprobs.topk(count) if count else (logprobs[:0], logprobs[:0])
    top = tuple(
        _one(int(number), float(value), tokenizer)
        for number, value in zip(tokens, values, strict=True)
    )
    chosen = _one(token, float(logprobs[token]), tokenizer)
    return TokenLogprob(chosen.token, chosen.bytes, chosen.logprob, top)


def _one(token: int, logprob: float, tokenizer: ChatTokenizer) -> TokenLogprob:
    spelling = tokenizer.bytes_of(token)
    return TokenLogprob(spelling.decode("utf-8", errors="replace"), spelling, logprob)
