"""What a network computes in its matrix products, counted from its configuration.

As the roofline literature counts: a multiplication and an addition are two operations; norms,
activations and the rotary turn are left out. Image towers and projectors are counted as
`torch.utils.flop_counter` counts them, to the last operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from chiasm.models.configuration import TransformerConfig
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
    between = tokens * config.flops_between_layers
    return 2 * (config.num_hidden_layers * layer + head) + between


def product_flops(rows: int, inner: int, columns: int) -> int:
    """Operations of [rows, inner] times [inner, columns]."""
    return 2 * rows * inner * columns


def linear_flops(layer: nn.Linear, rows: int) -> int:
    """Operations of a linear layer over so many rows."""
    return product_flops(rows, layer.in_features, layer.out_features)


def blocks_flops(config: TransformerConfig, blocks: int, batch: int, tokens: int) -> int:
    """Operations of so many blocks over [batch, tokens, width], every token attending to all."""
    width, rows = config.hidden_size, batch * tokens
    linear = 4 * product_flops(rows, width, width)  # queries, keys, values, output
    mlp = 2 * product_flops(rows, width, config.intermediate_size)
    attention = 2 * batch * product_flops(tokens, width, tokens)  # all heads: scores, the mix
    return blocks * (linear + mlp + attention)
