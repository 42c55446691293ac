"""Layers through which a language model looks at pictures, each behind a gate that starts closed.

Flamingo (Alayrac et al., arXiv 2204.14198, section 2.2 and figure 4): tanh of a learned number
scales what a layer adds, so that at zero the language model is what it was. Every token looks at
one picture, the last that stands before it (section 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.decoder import RMSNorm, SwiGLU

if TYPE_CHECKING:
    from chiasm.models.flamingo import IdeficsConfig

NO_PICTURE = -1


# Which picture a token looks at -----------------------------------------------------------------


def looked_at(
    images: Tensor, ends: Tensor, before: Tensor, count: int, begins: Tensor | None = None
) -> Tensor:
    """The number of the picture that each token looks at, int64 [batch, tokens], or NO_PICTURE.

    A token looks at the last picture up to itself, unless the document ended in between.
    IDEFICS: the incremental mask of its processor, which has one 1 in each row, or none.

    images, ends: bool [batch, tokens], where image tokens and tokens that end a document are.
    before: int64 [batch], what a token without any of them before it looks at.
    count: pictures that have a number already; those among `images` are numbered on, row by row.
    begins: bool [batch, tokens], where another document begins without an end before it.
    """
    columns = torch.arange(images.shape[1], device=images.device)
    never = -2  # before column -1, which stands for the end of what came before
    last_image = torch.where(images, columns, never).cummax(dim=1).values
    last_end = torch.where(ends, columns, never).cummax(dim=1).values
    last_end = F.pad(last_end[:, :-1], (1, 0), value=never)  # the end itself still looks
    if begins is not None:
        last_end = last_end.maximum(torch.where(begins, columns - 1, never).cummax(dim=1).values)
    numbers = images.flatten().cumsum(dim=0).view_as(images) + (count - 1)
    numbers = numbers.gather(1, last_image.clamp_min(0))
    numbers = torch.where(last_image >= 0, numbers, before[:, None])
    return numbers.masked_fill(last_end > last_image, NO_PICTURE)


@dataclass(frozen=True)
class View:
    """What the tokens of one pass look at.

    pictures: int64 [batch, visible], the numbers of the pictures that a row's tokens look at.
    mask: bool [batch, 1, tokens, visible · latents]; None where every token looks at all of them.
    sees: bool [batch, tokens, 1], False where a token looks at none.
    """

    pictures: Tensor
    mask: Tensor | None
    sees: Tensor

    @classmethod
    def of(cls, numbers: Tensor, latents: int) -> View | None:
        """From what `looked_at` gave and the latents of a picture; None if no token sees any."""
        sees = numbers != NO_PICTURE
        if not bool(sees.any()):
            return None
        last = numbers.amax(dim=1)
        first = torch.where(sees, numbers, last[:, None]).amin(dim=1).clamp_min(0)
        visible = int((last - first).max()) + 1
        pictures = first[:, None] + torch.arange(visible, device=numbers.device)
        matches = numbers[..., None] == pictures[:, None]  # [batch, tokens, visible]
        mask = None
        if not bool(matches.all()):
            # A row of the mask without any True would divide zero by zero; `sees` mends it.
            mask = (matches | ~sees[..., None]).repeat_interleave(latents, dim=-1)[:, None]
        return cls(pictures.minimum(last.max()), mask, sees[..., None])

    @classmethod
    def of_nothing(cls, numbers: Tensor) -> View:
        """For tokens that see no picture, through layers that are to run all the same."""
        sees = torch.zeros_like(numbers, dtype=torch.bool)
        return cls(numbers.new_zeros(len(numbers), 1), None, sees[..., None])

    def take(self, each: Tensor) -> Tensor:
        """[pictures, heads, latents, width] → [batch, heads, visible · latents, width]."""
        if len(self.pictures) == 1 and self.pictures.shape[1] == 1:
            number = int(self.pictures)
            return each[number : number + 1]  # without a copy: one token after the other
        return each[self.pictures].transpose(1, 2).flatten(2, 3)


# The layer --------------------------------------------------------------------------------------


class CrossAttention(nn.Module):
    """Text attends to a picture's latents. No positions: a picture's latents have no order."""

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__()
        text, vision = config.hidden_size, config.vision_config.embed_dim
        inner = config.num_attention_heads * config.head_dim
        self.heads = config.num_attention_heads
        self.q = nn.Linear(text, inner, bias=False)
        self.k = nn.Linear(vision, inner, bias=False)
        self.v = nn.Linear(vision, inner, bias=False)
        self.o = nn.Linear(inner, text, bias=False)
        normed = config.qk_layer_norms
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None

    def read(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [pictures, heads, latents, head width].

        latents: [pictures, latents, vision width].
        """
        keys, values = self._in_heads(self.k(latents)), self._in_heads(self.v(latents))
        return keys if self.k_norm is None else self.k_norm(keys), values

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, view: View) -> Tensor:
        """[batch, tokens, width] → the same; zero for tokens that see no picture."""
        queries = self._in_heads(self.q(tokens))
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        mixed = F.scaled_dot_product_attention(
            queries, view.take(keys), view.take(values), attn_mask=view.mask
        )
        return self.o(mixed.transpose(1, 2).flatten(2)).masked_fill(~view.sees, 0.0)

    def _in_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedCrossAttention(nn.Module):
    """Cross-attention, then an MLP, each behind its gate; stands before a decoder's layer.

    alpha_cross_attn, alpha_dense: the gates, closed at 0.
    """

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = CrossAttention(config)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)
        self.alpha_cross_attn = nn.Parameter(_first_gate(config))
        self.alpha_dense = nn.Parameter(_first_gate(config))

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, view: View | None) -> Tensor:
        """[batch, tokens, width] → the same.

        The MLP's part is added even where no picture is seen (`view` is None): so it was trained.
        """
        if view is not None:
            seen = self.attention(self.norm1(tokens), keys, values, view)
            tokens = tokens + self.alpha_cross_attn.tanh() * seen
        return tokens + self.alpha_dense.tanh() * self.mlp(self.norm2(tokens))


def _first_gate(config: IdeficsConfig) -> Tensor:
    """The number that a gate begins with, or one for each channel."""
    shapes = {"float": (1,), "vector": (1, 1, config.hidden_size)}
    if config.alpha_type not in shapes:
        raise UnsupportedCheckpoint(
            f"alpha_type is {config.alpha_type!r}, which is not known here.",
            hint=f"Known are {', '.join(shapes)}.",
        )
    gate = torch.zeros(shapes[config.alpha_type])
    if config.alpha_initializer == "zeros":
        return gate
    if config.alpha_initializer == "ones":
        return nn.init.ones_(gate)
    if config.alpha_initializer in {"normal", "gaussian", "random"}:
        return nn.init.normal_(gate, std=config.alphas_initializer_range)
    raise UnsupportedCheckpoint(
        f"alpha_initializer is {config.alpha_initializer!r}, which is not known here.",
        hint="Known are zeros, ones and normal.",
    )
