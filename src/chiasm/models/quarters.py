"""A picture looked at five times: whole, and in its four quarters, which overlap.

A convolutional tower trained on one object a picture names what fills its view. In a quarter a
small object fills more of it, and where it stands is known by which quarter named it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from chiasm.media.image import Image
from chiasm.media.transform import resize
from chiasm.models.efficientnet_lite import ConvolutionNorm, EfficientNetLite
from chiasm.models.vision_language import ImageInputs

LOOKS = 5
_MEAN, _DEVIATION = 127.0, 128.0  # EfficientNet-Lite's


@dataclass(frozen=True)
class QuartersReader:
    """An `ImageReader`.

    side: pixels a look is squashed to. quarter: share of the picture's width and height that a
    quarter covers. tokens: image tokens of every picture.
    """

    side: int
    quarter: float
    tokens: int
    image_token: str

    @property
    def mark(self) -> str:
        """What the chat template writes for a picture."""
        return self.image_token

    def prepare(self, image: Image) -> ImageInputs:
        """[5, 3, side, side]: whole, then the quarters, line by line."""
        width, height = image.size
        boxes = [(0.0, 0.0, 1.0, 1.0)]
        far = 1.0 - self.quarter
        boxes += [
            (left, top, left + self.quarter, top + self.quarter)
            for top in (0.0, far)
            for left in (0.0, far)
        ]
        looks = np.stack(
            [
                resize(
                    image,
                    (self.side, self.side),
                    resample="bicubic",
                    box=(left * width, top * height, right * width, bottom * height),
                )
                for left, top, right, bottom in boxes
            ]
        )
        pixels = torch.from_numpy(looks).permute(0, 3, 1, 2).to(torch.float32)
        return ImageInputs(pixels.sub_(_MEAN).div_(_DEVIATION).contiguous(), image.size)

    def placeholder(self, width: int, height: int) -> str:
        """The image tokens, with nothing around them."""
        return self.image_token * self.tokens

    def count(self, width: int, height: int) -> int:
        """The same for every size."""
        return self.tokens


def tower_flops(tower: EfficientNetLite, height: int, width: int) -> int:
    """Operations of the tower's convolutions, and of its classifier, on one picture."""
    total = 2 * tower.classifier.in_features * tower.classifier.out_features
    rows, columns = height, width
    for layer in _convolutions(tower):
        convolution = layer.convolution
        rows, columns = math.ceil(rows / layer.stride), math.ceil(columns / layer.stride)
        total += 2 * convolution.weight.numel() * rows * columns
    return total


def _convolutions(module: nn.Module) -> list[ConvolutionNorm]:
    """In the order in which they are computed, which is that of their definition."""
    return [each for each in module.modules() if isinstance(each, ConvolutionNorm)]
