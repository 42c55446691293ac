"""What every dual encoder offers, whatever its towers are."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class DualEncoder(Protocol):
    """Pictures and texts into one space. All of them are `torch.nn.Module`s."""

    logit_scale: Any

    @property
    def dimension(self) -> int:
        """Width of the shared space."""
        ...

    def encode_image(self, pixels: Any) -> Tensor:
        """What the checkpoint's preprocessor gives → [batch, dimension], not normalised."""
        ...

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 [batch, tokens] and bool [batch, tokens] → [batch, dimension], not normalised."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move the parameters to a device."""
        ...
