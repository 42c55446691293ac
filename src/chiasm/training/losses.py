"""The losses of contrastive pretraining: softmax (CLIP) and sigmoid (SigLIP).

A pair of image i and text j is positive if and only if their groups are equal. That one rule
carries several captions an image, duplicates in the batch (positives of each other, never
negatives), and hard negatives (texts whose group no image has: negatives of every image).
Without groups, image i belongs to text i and to no other.

Each loss comes in a plain form, which holds the whole matrix of similarities, and in a tiled one
(`tile`), which never does and is otherwise the same: value and gradients. Given a process group,
embeddings are this process's share of the batch, and the loss is that of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from chiasm.errors import InvalidRequest
from chiasm.training.tiled import DEFAULT_TILE, Alone, Plan, TiledSigmoid, TiledSoftmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def softmax_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
    tile: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """The symmetric cross-entropy of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3).

    With the logits sᵢⱼ = scale · xᵢ·yⱼ, an image's loss is −(1/|P|) Σ log softmax(sᵢ)ₚ over its
    positive texts P; the loss is the mean over the images that have a positive, averaged with the
    same thing from texts to images. Where no pair is positive it is zero.

    Args:
        images: embeddings [n, d], unit length; half precision is computed in single.
        texts: embeddings [m, d]; m may differ from n if groups are given.
        scale: a scalar, exp(logit_scale), the inverse of the temperature.
        image_groups: int64 [n]; with `text_groups`, says which pairs are positive.
        text_groups: int64 [m].
        tile: the side of a tile; memory grows with tile² instead of n · m. None: the plain form.
            1,024 is a good choice on a CPU, 4,096 and more on a GPU.
        process_group: the processes among which the batch is divided, in shares of any size. Every
            process must call the loss, and its backward pass, equally often. Tiles are always used.

    Returns:
        A scalar. With a process group it is the loss of the whole batch, the same everywhere, and
        the gradients are those of one process with the whole batch *times the number of
        processes*, each process having its own part; the part at `scale` is what its own images
        contribute. Averaging over processes, as DDP and FSDP do, gives exactly the gradient of one
        process.

    Raises:
        InvalidRequest: sizes, types or groups that do not fit together.
    """
    images, texts, scale = _single(images, texts, scale)
    batch = _Batch(images, texts, image_groups, text_groups)
    plan = _plan(batch, tile, process_group, scale=scale)
    scale = scale.reshape(())
    with _exact(images):
        if plan is None:
            return _plain_softmax(batch, scale)
        return TiledSoftmax.apply(images, texts, scale, *batch.groups(plan.before), plan)


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
    tile: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, equation 1).

    −(1/n) Σᵢⱼ log σ(zᵢⱼ (scale · xᵢ·yⱼ + bias)), with z = +1 for a positive pair and −1 for any
    other, and n the number of images.

    Args:
        images: embeddings [n, d], unit length; half precision is computed in single.
        texts: embeddings [m, d]; m may differ from n if groups are given.
        scale: a scalar, exp(logit_scale).
        bias: a scalar, logit_bias (SigLIP starts at −10, with a scale of 10).
        image_groups: int64 [n]; with `text_groups`, says which pairs are positive.
        text_groups: int64 [m].
        tile: the side of a tile, as for `softmax_loss`. Here the tiled form makes the gradients
            together with the loss and keeps them until the backward pass.
        process_group: as for `softmax_loss`.

    Returns:
        A scalar; its gradients across processes are scaled as those of `softmax_loss`.

    Raises:
        InvalidRequest: sizes, types or groups that do not fit together.
    """
    images, texts, scale, bias = _single(images, texts, scale, bias)
    batch = _Batch(images, texts, image_groups, text_groups)
    plan = _plan(batch, tile, process_group, scale=scale, bias=bias)
    scale, bias = scale.reshape(()), bias.reshape(())
    with _exact(images):
        if plan is None:
            return _plain_sigmoid(batch, scale, bias)
        return TiledSigmoid.apply(images, texts, scale, bias, *batch.groups(plan.before), plan)


# The plain forms --------------------------------------------------------------------------------


def _plain_softmax(batch: _Batch, scale: Tensor) -> Tensor:
    logits = scale * batch.images @ batch.texts.T  # [n, m]
    if batch.image_groups is None:
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    positive = batch.positives()
    return (_targets(logits, positive) + _targets(logits.T, positive.T)) / 2


def _targets(logits: Tensor, positive: Tensor) -> Tensor:
    """The mean over rows with a positive of −(1/|P|) Σ log softmax."""
    count = positive.sum(1)
    losses = torch.where(positive, -logits.log_softmax(1), 0.0).sum(1) / count.clamp(min=1)
    return losses.sum() / (count > 0).sum().clamp(min=1)


def _plain_sigmoid(batch: _Batch, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * batch.images @ batch.texts.T + bias  # [n, m]
    # −log σ(zs) = softplus(−zs), which keeps a matrix less for the backward pass.
    if batch.image_groups is None:
        logits.diagonal().neg_()
    else:
        logits = torch.where(batch.positives(), -logits, logits)
    return F.softplus(logits).sum() / len(logits)


# What is given, and whether it fits -------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    texts: Tensor
    image_groups: Tensor | None
    text_groups: Tensor | None

    def groups(self, offset: int = 0) -> tuple[Tensor, Tensor]:
        """The groups that say what `None` means: pair i with i. `offset`: pairs before these."""
        if self.image_groups is None or self.text_groups is None:
            order = torch.arange(offset, offset + len(self.images), device=self.images.device)
            return order, order
        return self.image_groups, self.text_groups

    def positives(self) -> Tensor:
        """Which pairs belong together: bool [n, m]."""
        images, texts = self.groups()
        return images[:, None] == texts[None, :]

    def problem(self, **scalars: Tensor) -> InvalidRequest | None:
        """The first thing that does not fit, if any."""
        for name, one in (("images", self.images), ("texts", self.texts)):
            if one.dim() != 2 or not one.is_floating_point():
                return _misfit(
                    f"The embeddings of {name} are {_described(one)}.",
                    "They must be floating-point numbers [number, dimension].",
                    name,
                )
        if self.images.shape[1] != self.texts.shape[1]:
            return _misfit(
                f"Images are embedded in {self.images.shape[1]} dimensions, texts in "
                f"{self.texts.shape[1]}.",
                "Project both to the same dimension.",
                "texts",
            )
        devices = {one.device for one in (self.images, self.texts, *scalars.values())}
        if len(devices) > 1:
            return _misfit(
                f"Embeddings and scalars are on {', '.join(sorted(map(str, devices)))}.",
                "Move them to one device.",
                "texts",
            )
        for name, one in scalars.items():
            if one.numel() != 1 or not one.is_floating_point():
                return _misfit(
                    f"The {name} is {_described(one)}.",
                    "It must be one floating-point number.",
                    name,
                )
        return self._group_problem()

    def nothing(self) -> InvalidRequest | None:
        """A batch without images or without texts has no loss."""
        for name, one in (("images", self.images), ("texts", self.texts)):
            if not len(one):
                return _misfit(f"There are no {name}.", "A loss needs one pair at least.", name)
        return None

    def _group_problem(self) -> InvalidRequest | None:
        given = (
            ("image_groups", self.image_groups, "images", self.images),
            ("text_groups", self.text_groups, "texts", self.texts),
        )
        if self.image_groups is None and self.text_groups is None:
            if len(self.images) != len(self.texts):
                return _misfit(
                    f"There are {len(self.images)} images and {len(self.texts)} texts, but no "
                    "groups.",
                    "Give image_groups and text_groups, which say what belongs together.",
                    "texts",
                )
            return None
        for name, groups, of, embeddings in given:
            if groups is None:
                return _misfit(f"There are no {name}.", "Groups go with both sides.", name)
            if groups.dtype != torch.int64 or groups.shape != (len(embeddings),):
                return _misfit(
                    f"{name} is {_described(groups)}, for {len(embeddings)} {of}.",
                    f"It must be int64 [{len(embeddings)}].",
                    name,
                )
            if groups.device != embeddings.device:
                return _misfit(
                    f"{name} is on {groups.device}, {of} on {embeddings.device}.",
                    "Move them to one device.",
                    name,
                )
        return None


def _misfit(message: str, hint: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, hint=hint, param=param)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _tile_problem(tile: int | None) -> InvalidRequest | None:
    if tile is None or tile >= 1:
        return None
    return _misfit(f"A tile of side {tile} holds nothing.", "It must be 1 or more.", "tile")


def _single(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision as single precision; double stays double, for all."""
    double = any(one.dtype == torch.float64 for one in tensors)
    dtype = torch.float64 if double else torch.float32
    return tuple(one.to(dtype) if one.is_floating_point() else one for one in tensors)


def _exact(tensor: Tensor) -> torch.autocast:
    """Mixed precision ends where the loss begins."""
    return torch.autocast(tensor.device.type, enabled=False)


# The tiled forms' plan --------------------------------------------------------------------------


def _plan(
    batch: _Batch, tile: int | None, group: ProcessGroup | None, **scalars: Tensor
) -> Plan | None:
    """How the tiled form shall go about it; None for the plain form."""
    problem = batch.problem(**scalars) or _tile_problem(tile)
    if group is not None and group.size() > 1:
        # A process whose part does not fit must tell the others, or they would wait for it.
        from chiasm.training.ring import Share, ring_plan

        share = None
        if problem is None:
            share = Share(
                images=len(batch.images),
                texts=len(batch.texts),
                dimension=batch.images.shape[1],
                grouped=batch.image_groups is not None,
                double=batch.images.dtype == torch.float64,
                tile=tile or DEFAULT_TILE,
                longest_image=_longest(batch.images),
                longest_text=_longest(batch.texts),
                **_gradients(batch, scalars),
            )
        return ring_plan(group, share, problem, batch.images.device)
    problem = problem or batch.nothing()
    if problem is not None:
        raise problem
    if tile is None:
        return None
    longest = _longest(batch.images) * _longest(batch.texts)
    return Plan(tile=tile, longest=longest, exchange=Alone(), **_gradients(batch, scalars))


def _gradients(batch: _Batch, scalars: dict[str, Tensor]) -> dict[str, bool]:
    """Which gradients will be asked for."""
    enabled = torch.is_grad_enabled()
    images, texts = batch.images.requires_grad, batch.texts.requires_grad
    scalar = any(one.requires_grad for one in scalars.values())
    return {
        "image_gradient": enabled and images,
        "text_gradient": enabled and texts,
        "gradient": enabled and (images or texts or scalar),
    }


def _longest(embeddings: Tensor) -> float:
    if not len(embeddings):
        return 0.0
    return float(torch.linalg.vector_norm(embeddings.detach(), dim=1).max())
