"""Pictures as sequences of patches, for image towers that read any aspect (NaFlex)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchBatch:
    """Pictures cut into patches, each keeping its aspect, padded to one number of patches.

    patches: float32 [batch, patches, patch · patch · 3], a patch's values in the order row,
        column, channel. mask: bool [batch, patches], False at padding.
    shapes: int64 [batch, 2], rows and columns of patches of each picture; stays on the host.
    """

    patches: Tensor
    mask: Tensor
    shapes: Tensor

    def to(self, device: torch.device | str) -> PatchBatch:
        """The same batch on another device."""
        return PatchBatch(self.patches.to(device), self.mask.to(device), self.shapes)


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """[height, width, 3] → [patches, patch · patch · 3], patches row by row."""
    height, width, channels = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    grid = pixels.reshape(rows, patch_size, columns, patch_size, channels)
    return grid.transpose(1, 2).reshape(-1, patch_size * patch_size * channels)
