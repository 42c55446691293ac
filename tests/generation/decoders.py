"""Small decoders of every kind, with random weights, and what they say of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.models.decoder import Decoder, DecoderConfig, Qwen2Config, Qwen3Config
from chiasm.models.rotary import RopeParameters

SMALL: dict[str, Any] = {
    "vocab_size": 403,  # no multiple of four
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = RopeParameters(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = RopeParameters(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
CONFIGS: dict[str, DecoderConfig] = {
    "llama": DecoderConfig(**SMALL, tie_word_embeddings=True),
    "llama, own head": DecoderConfig(**SMALL),
    "llama, head width 8": DecoderConfig(**SMALL | {"num_attention_heads": 8}),
    "llama, head width 64": DecoderConfig(**SMALL, head_dim=64),
    "llama, head width 128, one key head": DecoderConfig(
        **SMALL | {"num_key_value_heads": 1}, head_dim=128
    ),
    "llama, biases everywhere": DecoderConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama3's rope": DecoderConfig(**SMALL, rope_parameters=LLAMA3),
    "yarn": DecoderConfig(**SMALL, rope_parameters=YARN),
    "odd widths": DecoderConfig(
        **SMALL | {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 6},
        head_dim=24,
    ),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL | {"head_dim": 16}),
    "qwen3, head width 128": Qwen3Config(**SMALL),
}
IDS = [(7 * n * n + 3 * n) % 403 for n in range(75)]
CUTS = (1, 16, 17, 40, 75)
"""Prefixes of the ids: read behind each other, the logits wanted after each."""


def decoder_of(config: DecoderConfig) -> Decoder:
    """With random weights of a size that makes a difference, norms and biases too."""
    torch.manual_seed(5)
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(mean=float("norm" in name), std=0.2)
        else:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    decoder.embedding.weight.normal_(std=0.3)
    return decoder


def torch_logits(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """[ids, vocabulary]."""
    with torch.no_grad():
        return decoder.logits(decoder(decoder.embed(torch.tensor([list(ids)]))))[0]
