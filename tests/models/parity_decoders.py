"""Random decoders, built by transformers, for `parity.measure`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from parity import Case, Read, randomise
from torch import Tensor

from chiasm.models.cache import KeyValueCache
from chiasm.models.decoder import Decoder, causal_mask, padded_positions

SIZES = {
    "vocab_size": 130,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
STEPS = 24
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name, made when called."""
    return {
        "Llama, tied head": lambda: _llama(tie_word_embeddings=True),
        "Llama, untied, θ 100000": lambda: _llama(
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0}
        ),
        "Llama, no grouping, biases": lambda: _llama(
            num_key_value_heads=6, attention_bias=True, mlp_bias=True
        ),
        "Llama, one key head, head_dim 14": lambda: _llama(num_key_value_heads=1, head_dim=14),
        "Llama, linear scaling": lambda: _llama(
            rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
        ),
        "Llama, llama3 scaling": lambda: _llama(
            head_dim=16, rope_parameters={**LLAMA3, "rope_theta": 500.0}
        ),
        "Llama, YaRN": lambda: _llama(
            head_dim=32, rope_parameters={**YARN, "rope_theta": 1000.0, "beta_fast": 4.0}
        ),
        "Qwen2, tied head": lambda: _qwen2(tie_word_embeddings=True),
        "Qwen2, untied": lambda: _qwen2(
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}
        ),
        "Qwen3, tied head": lambda: _qwen3(tie_word_embeddings=True),
        "Qwen3, untied, YaRN": lambda: _qwen3(
            rope_parameters={**YARN, "rope_theta": 10000.0, "attention_factor": 1.3}
        ),
    }


def _llama(**entries: Any) -> Case:
    config = transformers.LlamaConfig(**{**SIZES, **entries})
    return _case(transformers.LlamaForCausalLM(config))


def _qwen2(**entries: Any) -> Case:
    config = transformers.Qwen2Config(**{**SIZES, **entries})
    return _case(transformers.Qwen2ForCausalLM(config))


def _qwen3(**entries: Any) -> Case:
    config = transformers.Qwen3Config(**{**SIZES, "head_dim": 20, **entries})
    return _case(transformers.Qwen3ForCausalLM(config))


def _case(reference: Any) -> Case:
    ids, held = prompts()
    left = padded_left(ids, held)
    left_held = held.flip(1)
    whole = ids[:1].expand(2, -1)
    outputs: dict[str, tuple[Read, Read]] = {
        "logits": (lambda m: logits(m, whole), lambda m: m(whole).logits),
        "logits, one token": (lambda m: logits(m, ids[:, :1]), lambda m: m(ids[:, :1]).logits),
        "logits, in chunks through the cache": (
            lambda m: logits_in_chunks(m, whole, (1, 5, 1, 1, whole.shape[1])),
            lambda m: m(whole).logits,
        ),
        "logits, padded right": (
            lambda m: logits(m, ids, held)[held],
            lambda m: m(ids, held.long()).logits[held],
        ),
        "logits, padded left": (
            lambda m: logits(m, left, left_held)[left_held],
            lambda m: m(left, left_held.long(), position_ids=padded_positions(left_held)).logits[
                left_held
            ],
        ),
        f"{STEPS} greedy tokens": (
            lambda m: greedy(m, ids[:1], STEPS).float(),
            lambda m: generated(m, ids[:1]),
        ),
        f"{STEPS} greedy tokens, padded left": (
            lambda m: greedy(m, left, STEPS, left_held).float(),
            lambda m: generated(m, left, left_held),
        ),
    }
    return Case(randomise(reference), outputs)


def prompts() -> tuple[Tensor, Tensor]:
    """Texts of several lengths, padded right: ids int64 and what is held, bool, [4, tokens]."""
    ids = torch.randint(1, 130, (4, 40), generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([40, 23, 1, 39])
    held = torch.arange(40) < lengths[:, None]
    return ids * held, held


def padded_left(ids: Tensor, held: Tensor) -> Tensor:
    """The same texts with their padding in front."""
    return torch.stack([row.roll(int((~keep).sum())) for row, keep in zip(ids, held, strict=True)])


def logits(model: Decoder, ids: Tensor, held: Tensor | None = None) -> Tensor:
    """[batch, tokens, vocabulary] without a cache."""
    hidden = model(
        model.embed(ids),
        mask=None if held is None else causal_mask(ids.shape[1], held=held),
        positions=None if held is None else padded_positions(held),
    )
    return model.logits(hidden)


def logits_in_chunks(model: Decoder, ids: Tensor, chunks: tuple[int, ...]) -> Tensor:
    """The same, read piece by piece through a cache that has to grow."""
    cache = KeyValueCache(model.config, batch=len(ids), capacity=2)
    parts, start = [], 0
    for size in chunks:
        piece = model.embed(ids[:, start : start + size])
        parts.append(model.logits(model(piece, cache=cache)))
        start += size
    return torch.cat(parts, dim=1)


def greedy(model: Decoder, ids: Tensor, steps: int, held: Tensor | None = None) -> Tensor:
    """int64 [batch, steps]: the likeliest next tokens, one after the other, through a cache."""
    cache = KeyValueCache(model.config, batch=len(ids))
    padded = held is not None
    held = torch.ones_like(ids, dtype=torch.bool) if held is None else held
    chosen: list[Tensor] = []
    for _ in range(steps):
        hidden = model(
            model.embed(ids),
            positions=padded_positions(held)[:, -ids.shape[1] :] if padded else None,
            mask=causal_mask(held.shape[1], ids.shape[1], held=held) if padded else None,
            cache=cache,
        )
        ids = model.logits(hidden[:, -1:]).argmax(dim=-1)
        held = torch.cat((held, torch.ones_like(ids, dtype=torch.bool)), dim=1)
        chosen.append(ids)
    return torch.cat(chosen, dim=1)


def generated(model: Any, ids: Tensor, held: Tensor | None = None) -> Tensor:
    """What transformers generates greedily, as float so that it can be subtracted."""
    held = torch.ones_like(ids, dtype=torch.bool) if held is None else held
    made = model.generate(
        ids, attention_mask=held.long(), do_sample=False, max_new_tokens=STEPS, pad_token_id=0
    )
    return made[:, ids.shape[1] :].float()
