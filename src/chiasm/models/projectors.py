"""Projectors: from the width of an image tower to the width of a language model."""

from __future__ import annotations

import math

from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.flops import linear_flops
from chiasm.models.transformer import activation


class LinearProjector(nn.Module):
    """One linear layer (LLaVA, Liu et al., arXiv 2304.08485, section 4.1)."""

    def __init__(self, tower_width: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(tower_width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., tokens, tower width] → [..., tokens, width]."""
        return self.linear(tokens)

    def flops(self, tokens: int) -> int:
        """Operations for so many tokens."""
        return linear_flops(self.linear, tokens)


class MLPProjector(nn.Module):
    """Two linear layers with an activation (LLaVA-1.5, Liu et al., arXiv 2310.03744, section 3)."""

    def __init__(
        self, tower_width: int, width: int, *, hidden_act: str = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(tower_width, width, bias=bias)
        self.activation = activation(hidden_act)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., tokens, tower width] → [..., tokens, width]."""
        return self.linear_2(self.activation(self.linear_1(tokens)))

    def flops(self, tokens: int) -> int:
        """Operations for so many tokens."""
        return linear_flops(self.linear_1, tokens) + linear_flops(self.linear_2, tokens)


class PixelShuffleProjector(nn.Module):
    """A square of factor × factor tokens becomes one, then a linear layer.

    Idefics3 (Laurençon et al., arXiv 2408.12637, section 3.1), after InternVL's pixel shuffle.
    """

    def __init__(self, tower_width: int, width: int, *, factor: int, bias: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(tower_width * factor**2, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, side · side, tower width] → [batch, side · side / factor², width]."""
        batch, count, width = tokens.shape
        side = math.isqrt(count)
        if side * side != count or side % self.factor:
            raise UnsupportedCheckpoint(
                f"{count} tokens are no square that {self.factor}×{self.factor} squares fill; the "
                "pixel shuffle cannot join them."
            )
        small = side // self.factor
        # [batch, rows, row in square, columns, column in square, tower width]
        squares = tokens.reshape(batch, small, self.factor, small, self.factor, width)
        joined = squares.transpose(2, 3).reshape(batch, small * small, self.factor**2 * width)
        return self.linear(joined)

    def flops(self, tokens: int) -> int:
        """Operations for so many tokens of the tower."""
        return linear_flops(self.linear, tokens // self.factor**2)
