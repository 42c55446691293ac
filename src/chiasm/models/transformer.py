"""The parts that every transformer here is made of: attention, the MLP, the pre-norm block.

The linear layers for queries, keys and values are kept as one matrix and run as one product; the
mapping table of each checkpoint joins and splits them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.configuration import TransformerConfig


def quick_gelu(x: Tensor) -> Tensor:
    """GELU as OpenAI's CLIP was trained with it: x · sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a configuration calls `name`; UnsupportedCheckpoint if there is none."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise UnsupportedCheckpoint(
            f"hidden_act is {name!r}, which is not known here.",
            hint=f"Known are {', '.join(ACTIVATIONS)}.",
        ) from None


def attended(mask: Tensor | None) -> Tensor | None:
    """A padding mask, bool [batch, tokens], as attention wants it: [batch, 1, 1, tokens].

    None when nothing is padded, because attention without a mask is faster.
    """
    if mask is None or bool(mask.all()):
        return None
    return mask.bool()[:, None, None]


class TextEmbedding(nn.Module):
    """A vector for each token plus one for its position."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [batch, tokens] → [batch, tokens, width]."""
        length, longest = ids.shape[1], self.position.num_embeddings
        if length > longest:
            raise InvalidRequest(f"A text has {length} tokens; the model reads at most {longest}.")
        return self.token(ids) + self.position.weight[:length]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Every token attends to every token, or to those up to itself when `causal`.

        tokens: [batch, tokens, width]. mask: bool, broadcast to [batch, heads, tokens, tokens],
        True where attention is allowed; it and `causal` exclude each other.
        """
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, head width]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        mixed = mixed.transpose(1, 2).flatten(2)  # [batch, tokens, width]
        return self.out(mixed)

    def query(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`queries` [batch, queries, width] attend to `tokens` [batch, tokens, width]."""
        width = tokens.shape[-1]
        w_q, w_kv = self.qkv.weight.split((width, 2 * width))
        b_q, b_kv = (
            (None, None) if self.qkv.bias is None else self.qkv.bias.split((width, 2 * width))
        )
        q = F.linear(queries, w_q, b_q).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = F.linear(tokens, w_kv, b_kv).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, head width]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, bias=qkv_bias)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), mask, causal)
        return tokens + self.mlp(self.norm2(tokens))

    def one(self, tokens: Tensor, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `forward` would give at one token of each sequence, and nothing else.

        tokens: [batch, tokens, width]. rows: int64 [batch], the token that is wanted.
        mask: bool, broadcast to [batch, heads, 1, tokens]. Returns [batch, width].
        """
        each = torch.arange(len(tokens), device=tokens.device)
        normed = self.norm1(tokens)
        wanted = tokens[each, rows]  # [batch, width]
        wanted = wanted + self.attention.query(normed[each, rows, None], normed, mask)[:, 0]
        return wanted + self.mlp(self.norm2(wanted))


class Blocks(nn.ModuleList):
    """The blocks of a tower, one after the other."""

    def __init__(self, config: TransformerConfig, *, qkv_bias: bool = True) -> None:
        super().__init__(Block(config, qkv_bias=qkv_bias) for _ in range(config.num_hidden_layers))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """All tokens, [batch, tokens, width]; arguments as in `Attention`."""
        for block in self:
            tokens = block(tokens, mask, causal)
        return tokens

    def one(
        self, tokens: Tensor, rows: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """One token of each sequence, `rows` int64 [batch]: [batch, width].

        A dual encoder reads a single token of its last block, so the others need no query, no
        output projection and no MLP there.
        """
        *blocks, last = cast("list[Block]", list(self))
        for block in blocks:
            tokens = block(tokens, mask, causal)
        if causal:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            mask = (positions <= rows[:, None])[:, None, None]  # [batch, 1, 1, tokens]
        elif mask is not None and mask.shape[2] > 1:
            mask = mask[torch.arange(len(rows), device=rows.device), :, rows][:, :, None]
        return last.one(tokens, rows, mask)
