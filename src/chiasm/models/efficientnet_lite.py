"""EfficientNet-Lite: the image tower of the default embedder.

EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 in
place of swish, so that it runs well on small processors; the stem and the head keep their width
at every scale. The published weights come from TensorFlow, hence the "same" padding, which is
one-sided at stride 2, and the batch norm's epsilon of 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.skeleton import without_weights


@dataclass(frozen=True)
class Stage:
    """A run of blocks; only the first has the stride and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


# Table 1 of the paper; EfficientNet-Lite keeps it.
STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
)
STEM_WIDTH = 32
FEATURES = 1280
_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """One scale of the family. `image_size`: pixels a side at which it was trained."""

    width_factor: float = 1.0
    depth_factor: float = 1.0
    image_size: int = 224
    classes: int = 1000

    def stages(self) -> tuple[Stage, ...]:
        """The stages at this scale; the first and the last keep their depth."""
        last = len(STAGES) - 1
        return tuple(
            Stage(
                stage.repeats if i in (0, last) else math.ceil(stage.repeats * self.depth_factor),
                stage.kernel,
                stage.stride,
                stage.expansion,
                _rounded_width(stage.width * self.width_factor),
            )
            for i, stage in enumerate(STAGES)
        )


CONFIGS = {
    "lite0": EfficientNetLiteConfig(1.0, 1.0, 224),
    "lite1": EfficientNetLiteConfig(1.0, 1.1, 240),
    "lite2": EfficientNetLiteConfig(1.1, 1.2, 260),
    "lite3": EfficientNetLiteConfig(1.2, 1.4, 280),
    "lite4": EfficientNetLiteConfig(1.4, 1.8, 300),
}


def _rounded_width(width: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor`, but never more than a tenth below."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class ConvolutionNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm, and ReLU6 if `activate`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        # At stride 1 an odd kernel's "same" padding is symmetric and the convolution does it.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPSILON, momentum=0.01)
        self.kernel, self.stride, self.activate = kernel, stride, activate

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, inputs, height, width] → [batch, outputs, ⌈height/stride⌉, ⌈width/stride⌉]."""
        if self.stride > 1:
            top, bottom = _same_padding(x.shape[-2], self.kernel, self.stride)
            left, right = _same_padding(x.shape[-1], self.kernel, self.stride)
            x = F.pad(x, (left, right, top, bottom))
        x = self.norm(self.convolution(x))
        return F.relu6(x, inplace=not self.training) if self.activate else x

    @torch.no_grad()
    def fold(self) -> None:
        """Put the batch norm into the convolution: the same function, one pass less."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d):
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.norm = nn.Identity()
        if norm.weight.is_meta:  # a skeleton: to compute there, torch would import its compiler
            self.convolution.bias = norm.bias
            return
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.convolution.weight.mul_(scale[:, None, None, None])
        self.convolution.bias = nn.Parameter(norm.bias - norm.running_mean * scale)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same": the odd pixel goes to the end."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedBottleneck(nn.Module):
    """Expand, filter by channel, project; add the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = ConvolutionNorm(inputs, width, 1) if expansion > 1 else None
        self.depthwise = ConvolutionNorm(width, width, kernel, stride=stride, groups=width)
        self.project = ConvolutionNorm(width, outputs, 1, activate=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, inputs, height, width] → [batch, outputs, height/stride, width/stride]."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The network; `forward` gives the 1000 ImageNet logits.

    Inputs are float32 [batch, 3, height, width] in RGB, normalised as (x − 127) / 128 from 0–255.
    """

    def __init__(self, config: EfficientNetLiteConfig = CONFIGS["lite0"]) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvolutionNorm(3, STEM_WIDTH, 3, stride=2)
        blocks, width = [], STEM_WIDTH
        self.stage_ends: list[int] = []
        for stage in config.stages():
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(
                    InvertedBottleneck(width, stage.width, stage.kernel, stride, stage.expansion)
                )
                width = stage.width
            self.stage_ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvolutionNorm(width, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, config.classes)

    def stages(self, pixels: Tensor) -> Iterator[Tensor]:
        """The feature map after each of the seven stages, then the head's (1280 channels)."""
        x = self.stem(pixels)  # [batch, 32, height/2, width/2]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                yield x
        yield self.head(x)  # [batch, 1280, height/32, width/32]

    def feature_map(self, pixels: Tensor) -> Tensor:
        """The head's map: [batch, 1280, height/32, width/32]."""
        *_, last = self.stages(pixels)
        return last

    def features(self, pixels: Tensor) -> Tensor:
        """The head's map averaged over space: [batch, 1280]."""
        return self.feature_map(pixels).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """ImageNet logits: [batch, classes]."""
        logits: Tensor = self.classifier(self.features(pixels))
        return logits

    def fold_batch_norms(self) -> EfficientNetLite:
        """Fold every batch norm into its convolution, in place, for inference."""
        for module in self.modules():
            if isinstance(module, ConvolutionNorm):
                module.fold()
        return self


# Names in the published checkpoint → names here.
_BLOCK_LAYERS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names(model: EfficientNetLite) -> dict[str, str]:
    """Name here → name in the published checkpoint, for every tensor of `model`."""
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i, block in enumerate(model.blocks):
        for layer, (convolution, norm) in _BLOCK_LAYERS.items():
            if getattr(block, layer) is not None:
                layers[f"blocks.{i}.{layer}"] = (
                    f"_blocks.{i}.{convolution}",
                    f"_blocks.{i}.{norm}",
                )
    names = {"classifier.weight": "_fc.weight", "classifier.bias": "_fc.bias"}
    for ours, (convolution, norm) in layers.items():
        names[f"{ours}.convolution.weight"] = f"{convolution}.weight"
        names |= {f"{ours}.norm.{tensor}": f"{norm}.{tensor}" for tensor in _NORM_TENSORS}
    return names


def load_published(
    path: Path, config: EfficientNetLiteConfig = CONFIGS["lite0"]
) -> EfficientNetLite:
    """Read a published `.pth` (tensors only; no code in it is run) into a model in eval mode."""
    try:
        published: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsupportedCheckpoint(
            f"{path} could not be read as PyTorch weights.",
            hint="Remove it and pull it again.",
        ) from error
    with without_weights():
        model = EfficientNetLite(config)
    names = published_names(model)
    missing = sorted(set(names.values()) - set(published))
    unused = sorted(set(published) - set(names.values()))
    if missing or unused:
        raise UnsupportedCheckpoint(
            f"{path} is not an EfficientNet-Lite of this scale: "
            f"{len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(unused)} are unknown ({', '.join(unused[:3])})."
        )
    model.load_state_dict({ours: published[theirs] for ours, theirs in names.items()}, assign=True)
    return model.eval()
