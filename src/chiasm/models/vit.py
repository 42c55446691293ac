"""ViT, the vision transformer (Dosovitskiy et al., arXiv 2010.11929).

`ViT` is the tower that CLIP and SigLIP share with the original; what differs between them are
arguments of its constructor. `ViTModel` is the original with its pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import InvalidRequest
from chiasm.models.configuration import TransformerConfig, at_least_one
from chiasm.models.layout import Layout, under
from chiasm.models.transformer import Blocks, activation


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """An image tower. image_size: pixels, one number for a square or (height, width)."""

    num_channels: int = 3
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "patch_size", "num_channels")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a picture of `image_size`."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size


class PatchEmbedding(nn.Module):
    """A linear layer over the pixels of each patch."""

    def __init__(self, config: ViTConfig, *, bias: bool) -> None:
        super().__init__()
        side, width = config.patch_size, config.hidden_size
        # Stored as the convolution of stride `patch_size` that it is equal to.
        self.weight = nn.Parameter(torch.empty(width, config.num_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, channels, height, width] → [batch, rows, columns, width]."""
        side = self.weight.shape[-1]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        pixels = pixels[:, :, : rows * side, : columns * side]
        patches = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side))
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # [batch, rows, columns, channels, side, side]
        return F.linear(patches.flatten(3), self.weight.flatten(1), self.bias)


class ViT(nn.Module):
    """Patches, positions, pre-norm blocks, and a last norm.

    class_token: put a learned token before the patches. patch_bias: the patch embedding has one.
    pre_norm: CLIP's additional norm before the first block. qkv_bias: as it says.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        class_token: bool = True,
        patch_bias: bool = True,
        pre_norm: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        width, (rows, columns) = config.hidden_size, config.grid
        self.patch_embedding = PatchEmbedding(config, bias=patch_bias)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02) if class_token else None
        positions = rows * columns + int(class_token)
        self.position_embedding = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if pre_norm else None
        self.blocks = Blocks(config, qkv_bias=qkv_bias)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.patch_dropout = 0.0  # share of the patches that training leaves out

    def embed(self, pixels: Tensor) -> Tensor:
        """[batch, channels, height, width] → [batch, tokens, width], what the blocks receive."""
        batch, channels, height, width = pixels.shape
        side = self.config.patch_size
        if channels != self.config.num_channels or min(height, width) < side:
            raise InvalidRequest(
                f"The image tower reads {self.config.num_channels} channels of at least "
                f"{side}×{side} pixels, not {channels} of {width}×{height}."
            )
        patches = self.patch_embedding(pixels)  # [batch, rows, columns, width]
        tokens = patches.flatten(1, 2) + self._patch_positions(*patches.shape[1:3])
        if self.training and self.patch_dropout:
            tokens = _some(tokens, 1 - self.patch_dropout)
        if self.class_token is not None:
            first = (self.class_token + self.position_embedding[0]).expand(batch, 1, -1)
            tokens = torch.cat((first, tokens), dim=1)
        return tokens if self.pre_norm is None else self.pre_norm(tokens)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Every token after the last block and before the last norm, [batch, tokens, width]."""
        return self.blocks(self.embed(pixels))

    def after(self, pixels: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Every token after so many blocks, for each of `counts`: [batch, tokens, width] each.

        0 is what the first block receives. Blocks behind the last that is wanted do not run, and
        the last norm is not applied.
        """
        tokens = self.embed(pixels)
        found = {0: tokens}
        for number, block in enumerate(islice(self.blocks, max(counts)), start=1):
            found[number] = tokens = block(tokens)
        return [found[count] for count in counts]

    def forward(self, pixels: Tensor) -> Tensor:
        """The class token after the last norm, [batch, width]."""
        tokens = self.embed(pixels)
        first = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        return self.norm(self.blocks.one(tokens, first))

    def _patch_positions(self, rows: int, columns: int) -> Tensor:
        """[rows · columns, width], interpolated where the picture has another size than trained."""
        positions = self.position_embedding[int(self.class_token is not None) :]
        if (rows, columns) == self.config.grid:
            return positions
        grid = positions.unflatten(0, self.config.grid).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid[0].flatten(1).T


def _some(patches: Tensor, share: float) -> Tensor:
    """A random share of each picture's patches, [batch, kept, width], at least one.

    Training on half of them costs half (FLIP, Li et al., arXiv 2212.00794, section 3).
    """
    batch, count, width = patches.shape
    kept = max(1, round(count * share))
    chosen = torch.rand(batch, count, device=patches.device).topk(kept, dim=1).indices
    return patches.gather(1, chosen[..., None].expand(-1, -1, width))


@dataclass(frozen=True, kw_only=True)
class ViTModelConfig(ViTConfig):
    """The entries of a ViTModel's `config.json`."""

    model_type: ClassVar[str] = "vit"
    architecture: ClassVar[str] = "ViTModel"

    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"


class ViTModel(nn.Module):
    """The original vision transformer, with or without a pooler."""

    def __init__(self, config: ViTModelConfig, *, pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        self.tower = ViT(config, qkv_bias=config.qkv_bias)
        output = config.pooler_output_size or config.hidden_size
        self.pooler = nn.Linear(config.hidden_size, output) if pooler else None
        self.pooler_activation = activation(config.pooler_act)

    def forward(self, pixels: Tensor) -> Tensor:
        """The pooled class token, [batch, width]; the bare one if there is no pooler."""
        feature = self.tower(pixels)
        return feature if self.pooler is None else self.pooler_activation(self.pooler(feature))

    def hidden_states(self, pixels: Tensor) -> Tensor:
        """Every token after the last norm, [batch, tokens, width]."""
        return self.tower.norm(self.tower.tokens(pixels))


LAYOUT = Layout(
    rows={
        "tower.class_token": "embeddings.cls_token",
        "tower.position_embedding": "embeddings.position_embeddings",
        "tower.patch_embedding": "embeddings.patch_embeddings.projection",
        "tower.norm": "layernorm",
        "pooler": "pooler.dense",
        **under(
            "tower.blocks.{}",
            "encoder.layer.{}",
            {
                "norm1": "layernorm_before",
                "attention.qkv": (
                    "attention.attention.query",
                    "attention.attention.key",
                    "attention.attention.value",
                ),
                "attention.out": "attention.output.dense",
                "norm2": "layernorm_after",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
            },
        ),
    },
    leading={"embeddings.cls_token": 2, "embeddings.position_embeddings": 1},
    renames=(
        (r"^vit\.", ""),
        # The names transformers 5 uses in memory; it writes the published ones.
        (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    ignored=(r"^classifier\.", r"^embeddings\.mask_token$", r"^decoder\."),
)
