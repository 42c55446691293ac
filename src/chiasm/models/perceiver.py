"""The perceiver resampler: any number of image tokens become a fixed number of latents.

Flamingo (Alayrac et al., arXiv 2204.14198, section 2.1 and appendix A.1.1); as in IDEFICS, the
queries and keys may be normalised, one head at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.models.configuration import at_least_one
from chiasm.models.flops import product_flops

_EXPANSION = 4  # how much wider than the latents the hidden layer of their MLP is


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """The entries of `perceiver_config`."""

    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False

    def __post_init__(self) -> None:
        at_least_one(
            self,
            "resampler_n_latents",
            "resampler_depth",
            "resampler_n_heads",
            "resampler_head_dim",
        )

    @property
    def inner_width(self) -> int:
        """All heads side by side."""
        return self.resampler_n_heads * self.resampler_head_dim


class PerceiverAttention(nn.Module):
    """The latents attend to the picture and to themselves, in one softmax."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        head, inner = config.resampler_head_dim, config.inner_width
        self.heads = config.resampler_n_heads
        self.context_norm = nn.LayerNorm(width)
        self.latents_norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        normed = config.qk_layer_norms_perceiver
        self.q_norm = nn.LayerNorm(head) if normed else None
        self.k_norm = nn.LayerNorm(head) if normed else None

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """[batch, latents, width] and [batch, tokens, width] → [batch, latents, width]."""
        latents = self.latents_norm(latents)
        both = torch.cat((self.context_norm(context), latents), dim=1)
        q, k, v = (self._in_heads(each) for each in (self.q(latents), self.k(both), self.v(both)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = F.scaled_dot_product_attention(q, k, v)  # [batch, heads, latents, head width]
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _in_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PerceiverMLP(nn.Module):
    """Two linear layers without biases and a plain ReLU, where Flamingo's own squares it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, _EXPANSION * width, bias=False)
        self.fc2 = nn.Linear(_EXPANSION * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.norm(x))))


class PerceiverBlock(nn.Module):
    """Attention, then the MLP, each added to the latents."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, config)
        self.mlp = PerceiverMLP(width)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        latents = latents + self.attention(latents, context)
        return latents + self.mlp(latents)


class PerceiverResampler(nn.Module):
    """Learned latents that read a picture's tokens, block after block."""

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.resampler_n_latents, width))
        self.blocks = nn.ModuleList(
            PerceiverBlock(width, config) for _ in range(config.resampler_depth)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.latents)

    def forward(self, context: Tensor) -> Tensor:
        """[batch, tokens, width] → [batch, latents, width]."""
        latents = self.latents.expand(len(context), -1, -1)
        for block in self.blocks:
            latents = block(latents, context)
        return self.norm(latents)

    def flops(self, pictures: int, tokens: int) -> int:
        """Operations in matrix products for so many pictures of so many tokens each."""
        latents, width = self.latents.shape
        inner, read = self.config.inner_width, tokens + latents
        one_way = product_flops(latents, width, inner)  # queries; as much for the output
        keys_and_values = product_flops(read, width, 2 * inner)
        attention = 2 * product_flops(latents, inner, read)  # all heads: scores, the mix
        mlp = 2 * product_flops(latents, width, _EXPANSION * width)
        block = 2 * one_way + keys_and_values + attention + mlp
        return pictures * self.config.resampler_depth * block
