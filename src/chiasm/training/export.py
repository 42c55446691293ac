"""The end of a run: a folder that this package, `transformers` and open_clip read."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.models import aligned, checkpoint
from chiasm.models.checkpoint import DualEncoderCheckpoint
from chiasm.training.open_clip_layout import open_clip_obstacle, write_open_clip

log = logging.getLogger("chiasm.training")

_PREFIX = "model."  # of the dual encoder inside `TwoTowers`


def blueprint(model: nn.Module) -> nn.Module:
    """The same network without memory behind it, to be filled with the weights of the end.

    Taken before the network is spread over processes, after which it has no whole weights.
    """
    # Its tensors count as copied already, so that they never are.
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    empty |= {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    return copy.deepcopy(model, empty)


def write_model(
    folder: Path, empty: nn.Module, weights: dict[str, Tensor], begun: DualEncoderCheckpoint
) -> None:
    """Write what was trained, with the preprocessor and tokenizer it was trained with.

    empty: from `blueprint`. weights: whole tensors of the run's `TwoTowers`, by name.
    Raises NoSpace.
    """
    model: Any = empty
    own = {
        name: weights[f"{_PREFIX}{name}"].reshape(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(own, assign=True)
    if isinstance(model, aligned.AlignedDualEncoder):
        aligned.save(folder, model)
        return
    checkpoint.save_checkpoint(folder, model, begun.preprocessor, begun.tokenizer)
    if obstacle := open_clip_obstacle(model, begun.preprocessor):
        log.info("open_clip will not open %s: %s", folder, obstacle)
    else:
        write_open_clip(folder, model, begun.preprocessor, begun.tokenizer)
