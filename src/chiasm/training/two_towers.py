"""A dual encoder as a thing to be trained: batches in, gradients out.

`TwoTowers` gives both towers' unit vectors from one call, because DDP and FSDP2 follow a network
through its `forward` alone. `ContrastiveTrainee` puts a loss behind it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import ConfigurationError
from chiasm.models.patches import PatchBatch
from chiasm.models.vit import ViT
from chiasm.training.distributed import World, bare, exchanging
from chiasm.training.gradient_cache import cached_backward
from chiasm.training.losses import sigmoid_loss, softmax_loss
from chiasm.training.recipe import LossRecipe
from chiasm.training.samples import Batch


class Embedded(NamedTuple):
    """What a call of `TwoTowers` gives; the towers that were not asked give None.

    images: [n, dimension] and texts: [m, dimension], unit length, float32.
    scale, bias: the loss's two numbers, with their gradients.
    """

    images: Tensor | None
    texts: Tensor | None
    scale: Tensor
    bias: Tensor


class TwoTowers(nn.Module):
    """A dual encoder and the two numbers of its loss.

    A model without a `logit_bias` gets one here, which is trained and not part of what is written
    at the end: no embedding depends on it.
    """

    def __init__(self, model: Any, loss: LossRecipe, *, precision: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.own_bias = nn.Parameter(torch.tensor([-10.0])) if loss.kind == "sigmoid" else None
        for name in ("logit_scale", "logit_bias"):
            number = getattr(model, name, None)
            if number is not None:  # FSDP2 shards no parameter without a dimension
                row = number.detach().reshape(1)
                setattr(model, name, nn.Parameter(row, requires_grad=number.requires_grad))
        if hasattr(model, "logit_bias"):
            self.own_bias = None
            self.model.logit_bias.requires_grad_(loss.kind == "sigmoid")
        self._autocast = torch.bfloat16 if precision == "bf16" else None
        bias: Any = self.bias
        with torch.no_grad():
            if loss.scale is not None:
                self.model.logit_scale.fill_(math.log(loss.scale))
            if loss.bias is not None and bias is not None:
                bias.fill_(loss.bias)

    @property
    def bias(self) -> Tensor | None:
        """The sigmoid loss's bias, wherever it is kept."""
        return getattr(self.model, "logit_bias", self.own_bias)

    def forward(
        self, pixels: Any = None, ids: Tensor | None = None, mask: Tensor | None = None
    ) -> Embedded:
        """Embed pictures, texts, or both."""
        device = self.model.logit_scale.device.type
        cast = torch.autocast(device, self._autocast) if self._autocast else nullcontext()
        with cast:
            images = None if pixels is None else self.model.encode_image(pixels)
            texts = None if ids is None else self.model.encode_text(ids, mask)
        scale = self.model.logit_scale.float().exp().squeeze()
        bias = scale.new_zeros(()) if self.bias is None else self.bias.float().squeeze()
        return Embedded(_unit(images), _unit(texts), scale, bias)


def _unit(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else F.normalize(rows.float(), dim=-1)


def lock(model: nn.Module, names: tuple[str, ...]) -> None:
    """Keep the parts called `names` as they are (LiT, Zhai et al. 2022, arXiv 2111.07991).

    Raises ConfigurationError for a name that begins no parameter's.
    """
    for name in names:
        found = [p for n, p in model.named_parameters() if n == name or n.startswith(f"{name}.")]
        if not found:
            parts = sorted({n.partition(".")[0] for n, _ in model.named_parameters()})
            raise ConfigurationError(
                f"model.locked names {name}, which the model does not have.",
                hint=f"Its parts are {', '.join(parts)}.",
            )
        for parameter in found:
            parameter.requires_grad_(False)


def drop_patches(model: nn.Module, share: float) -> None:
    """Let the image tower leave out a share of its patches in training.

    Raises ConfigurationError if the tower has no patches to leave out.
    """
    towers = [module for module in model.modules() if isinstance(module, ViT)]
    if share and not towers:
        raise ConfigurationError("model.patch_dropout needs a ViT image tower.")
    for tower in towers:
        tower.patch_dropout = share


class ContrastiveTrainee:
    """Gradients of a contrastive loss. network: a `TwoTowers`, spread over the world."""

    def __init__(
        self, network: Any, loss: LossRecipe, world: World, *, micro_size: int = 0
    ) -> None:
        self.network = network
        self._loss = loss
        self._world = world
        self._micro_size = micro_size

    def backward(self, batch: Batch, *, share: float, exchange: bool) -> dict[str, float]:
        """See `loop.Trainee`. The loss is the world's, over all ranks' parts of the batch."""
        batch = batch.to(self._world.device)
        if self._micro_size and self._micro_size < len(batch.image_groups):
            # A part holds pictures and texts, so that each call uses all of the network, which
            # DDP wants of the last one.
            loss, scale = cached_backward(
                lambda part: self.network(*part),
                _parts(batch, self._micro_size),
                lambda embedded: self.loss_of(batch, embedded) * share,
                exchanging=lambda last: exchanging(self.network, exchange and last),
            )
            loss = loss / share
        else:
            with exchanging(self.network, exchange):
                embedded = self.network(batch.pixels, batch.ids, batch.mask)
                loss, scale = self.loss_of(batch, embedded), embedded.scale
                (loss * share).backward()
        padding = 1 - float(batch.mask.float().mean())
        return {"loss": float(loss.detach()), "scale": float(scale.detach()), "padding": padding}

    def updated(self) -> None:
        """Cut the scale off at its largest."""
        with torch.no_grad():
            scale = bare(self.network).model.logit_scale
            scale.clamp_(max=math.log(self._loss.largest_scale))

    def loss_of(self, batch: Batch, embedded: Embedded) -> Tensor:
        """The loss of the whole batch over all processes."""
        images, texts = embedded.images, embedded.texts
        assert images is not None
        assert texts is not None
        loss = self._pairs(embedded, images, batch.image_groups, texts, batch.text_groups)
        if self._loss.image_image:
            # Groups come in pairs: sorted by group, every other picture meets the one beside it.
            order = batch.image_groups.argsort(stable=True)
            one, other = order[0::2], order[1::2]
            loss = loss + self._loss.image_image * self._pairs(
                embedded,
                images[one],
                batch.image_groups[one],
                images[other],
                batch.image_groups[other],
            )
        return loss

    def _pairs(
        self, embedded: Embedded, rows: Tensor, row_groups: Tensor, columns: Tensor, groups: Tensor
    ) -> Tensor:
        options: dict[str, Any] = {
            "image_groups": row_groups,
            "text_groups": groups,
            "tile": self._loss.tile or None,
            "process_group": self._world.group,
        }
        if self._loss.kind == "softmax":
            return softmax_loss(rows, columns, embedded.scale, **options)
        return sigmoid_loss(rows, columns, embedded.scale, embedded.bias, **options)


def _parts(batch: Batch, size: int) -> list[tuple[Any, Tensor, Tensor]]:
    """The batch in parts of at most `size` pictures, each with its share of the texts."""
    count = -(-len(batch.image_groups) // size)
    return list(
        zip(
            _split(batch.pixels, count),
            batch.ids.tensor_split(count),
            batch.mask.tensor_split(count),
            strict=True,
        )
    )


def _split(pixels: Any, count: int) -> list[Any]:
    if isinstance(pixels, PatchBatch):
        columns = (pixels.patches, pixels.mask, pixels.shapes)
        return [
            PatchBatch(*each)
            for each in zip(*(c.tensor_split(count) for c in columns), strict=True)
        ]
    return list(pixels.tensor_split(count))
