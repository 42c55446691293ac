"""ConvNeXt, a convolutional network built like a transformer (Liu et al., arXiv 2201.03545)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.layout import Layout, under
from chiasm.models.transformer import activation

_BLOCK_EPS = 1e-6  # every norm but the last; the configuration's `layer_norm_eps` is the last's


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """The entries of a ConvNextModel's `config.json`."""

    model_type: ClassVar[str] = "convnext"
    architecture: ClassVar[str] = "ConvNextModel"

    num_channels: int = 3
    patch_size: int = 4
    num_stages: int = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-6
    image_size: int | tuple[int, int] = 224

    def __post_init__(self) -> None:
        if not self.num_stages == len(self.hidden_sizes) == len(self.depths):
            raise UnsupportedCheckpoint(
                f"{self.num_stages} stages, but {len(self.hidden_sizes)} hidden_sizes "
                f"and {len(self.depths)} depths."
            )


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + scale · mlp(norm(depthwise(x)))."""

    def __init__(self, config: ConvNeXtConfig, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=_BLOCK_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.activation = activation(config.hidden_act)
        self.fc2 = nn.Linear(4 * width, width)
        initial = config.layer_scale_init_value
        self.scale = nn.Parameter(torch.full((width,), initial)) if initial > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, width, height, width of the map]."""
        y = self.depthwise(x).permute(0, 2, 3, 1)  # [batch, height, width of the map, width]
        y = self.fc2(self.activation(self.fc1(self.norm(y))))
        if self.scale is not None:
            y = y * self.scale
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one width; all stages but the first halve the map before."""

    def __init__(self, config: ConvNeXtConfig, number: int) -> None:
        super().__init__()
        width = config.hidden_sizes[number]
        self.downsample = (
            nn.Sequential(
                ChannelNorm(config.hidden_sizes[number - 1], eps=_BLOCK_EPS),
                nn.Conv2d(config.hidden_sizes[number - 1], width, kernel_size=2, stride=2),
            )
            if number > 0
            else nn.Sequential()
        )
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(config, width) for _ in range(config.depths[number]))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """A patchifying stem, the stages, and a norm over the pooled map."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        first, side = config.hidden_sizes[0], config.patch_size
        self.stem = nn.Conv2d(config.num_channels, first, kernel_size=side, stride=side)
        self.stem_norm = ChannelNorm(first, eps=_BLOCK_EPS)
        self.stages = nn.ModuleList(Stage(config, number) for number in range(config.num_stages))
        self.norm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """[batch, channels, height, width] → the last stage's [batch, width, rows, columns]."""
        smallest = self.config.patch_size * 2 ** (self.config.num_stages - 1)
        if min(pixels.shape[2:]) < smallest:
            raise InvalidRequest(
                f"ConvNeXt reads pictures of at least {smallest}×{smallest} pixels, not "
                f"{pixels.shape[3]}×{pixels.shape[2]}."
            )
        # Channels last in memory: the norms and the linear layers then need no copies.
        x = self.stem_norm(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, pixels: Tensor) -> Tensor:
        """The normed mean over the last map, [batch, width]."""
        return self.norm(self.feature_map(pixels).mean(dim=(2, 3)))


LAYOUT = Layout(
    rows={
        "stem": "embeddings.patch_embeddings",
        "stem_norm": "embeddings.layernorm",
        "norm": "layernorm",
        **under(
            "stages.{}",
            "encoder.stages.{}",
            {
                "downsample.{}": "downsampling_layer.{}",
                "blocks.{}.depthwise": "layers.{}.dwconv",
                "blocks.{}.norm": "layers.{}.layernorm",
                "blocks.{}.fc1": "layers.{}.pwconv1",
                "blocks.{}.fc2": "layers.{}.pwconv2",
                "blocks.{}.scale": "layers.{}.layer_scale_parameter",
            },
        ),
    },
    renames=((r"^convnext\.", ""),),
    ignored=(r"^classifier\.",),
)
