"""What a language model computes, counted from its configuration.

As the roofline literature counts: a multiplication and an addition are two operations; norms,
activations and the rotary turn are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chiasm.models.decoder import DecoderConfig


def decoder_flops(
    config: DecoderConfig, tokens: int, *, before: int = 0, logits: int | None = None
) -> int:
    """Operations to read `tokens` tokens after `before` others.

    Each token attends to those up to itself. logits: for how many of them the output layer is
    computed; for all if None.
    """
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    weights = width * (queries + 2 * keys) + queries * width + 3 * width * inner
    pairs = tokens * before + tokens * (tokens + 1) // 2
    layer = tokens * weights + pairs * 2 * queries  # scores, and the mix of values
    head = (tokens if logits is None else logits) * width * config.vocab_size
    return 2 * (config.num_hidden_layers * layer + head)
