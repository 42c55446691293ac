"""LLaVA-NeXT: LLaVA that reads a picture whole and, in more detail, in tiles.

Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024; the same as
AnyRes in LLaVA-OneVision (Li et al., arXiv 2408.03326, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.llava import LLaVA, LLaVAConfig
from chiasm.models.tiling import best_resolution, unpadded


@dataclass(frozen=True, kw_only=True)
class LLaVANeXTConfig(LLaVAConfig):
    """The entries of a LlavaNextForConditionalGeneration's `config.json`.

    image_grid_pinpoints: the (height, width) in pixels that a picture's tiles may fill together.
    """

    model_type: ClassVar[str] = "llava_next"
    architecture: ClassVar[str] = "LlavaNextForConditionalGeneration"

    image_grid_pinpoints: tuple[tuple[int, int], ...] = (
        (336, 672),
        (672, 336),
        (672, 672),
        (1008, 336),
        (336, 1008),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drops_first != self.has_class_token:
            raise UnsupportedCheckpoint(
                f"vision_feature_select_strategy is {self.vision_feature_select_strategy!r}, which "
                f"does not leave a {self.vision_config.model_type} with one token a patch."
            )
        side = self.tile_side
        if not self.image_grid_pinpoints or any(
            length < side or length % side for size in self.image_grid_pinpoints for length in size
        ):
            raise UnsupportedCheckpoint(
                f"image_grid_pinpoints must be multiples of the tower's image_size, {side}."
            )

    @property
    def tile_side(self) -> int:
        """Height and width of a tile in pixels."""
        size = self.vision_config.image_size
        if not isinstance(size, int):
            raise UnsupportedCheckpoint(f"vision_config.image_size is {size}; tiles are square.")
        return size


class LLaVANeXT(LLaVA):
    """The whole picture as one tile, then its tiles without padding, a newline after each row."""

    config: LLaVANeXTConfig

    def __init__(self, config: LLaVANeXTConfig, *, head: bool = False) -> None:
        """head: as in `LLaVA`."""
        super().__init__(config, head=head)
        width = config.text_config.hidden_size
        self.image_newline = nn.Parameter(torch.randn(width) * width**-0.5)

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's tiles, [tiles, patches, tower width] → [image tokens, decoder width].

        Raises InvalidRequest when the tiles are not those of a picture of `size`.
        """
        side = self.config.tile_side
        height, width = best_resolution(size, self.config.image_grid_pinpoints)
        rows, columns = height // side, width // side
        if len(features) != 1 + rows * columns:
            raise InvalidRequest(
                f"A picture of {size[0]}×{size[1]} pixels is read as "
                f"{1 + rows * columns} tiles, not {len(features)}."
            )
        whole, *tiles = self.projector(features)  # each [patches, width]
        grid = side // self.config.vision_config.patch_size
        detail = torch.stack(tiles).reshape(rows, columns, grid, grid, -1).transpose(1, 2)
        detail = detail.reshape(rows * grid, columns * grid, -1)  # rows and columns of patches
        seen = unpadded(size, rows * grid, columns * grid)
        detail = detail[seen.top : seen.bottom, seen.left : seen.right]
        newlines = self.image_newline.to(detail.dtype).expand(len(detail), 1, -1)
        return torch.cat((whole, torch.cat((detail, newlines), dim=1).flatten(0, 1)))
