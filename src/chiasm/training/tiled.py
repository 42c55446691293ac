"""Contrastive losses in tiles: the matrix of all similarities is never held.

The logits of n images and m texts are made one square tile at a time, used, and overwritten, so the
memory is that of a tile and of a few vectors of length n and m, beside the gradients themselves.

*Softmax.* A first pass sums exp(logit) along rows and columns; the backward pass makes the logits a
second time and multiplies them into the gradients (the recomputation of Rabe and Staats, arXiv
2112.05682, and of FlashAttention, arXiv 2205.14135, for both directions at once). With

    Rᵢ = Σⱼ exp(sᵢⱼ)    Cⱼ = Σᵢ exp(sᵢⱼ)

the gradient at one logit is exp(sᵢⱼ)·(1/Rᵢ + 1/Cⱼ) less the targets: one exponential serves both
directions. It is taken at a shift common to all logits, chosen from the longest embeddings so that
nothing overflows. If some row or column lies so far below the shift that its sum would be
imprecise, the sums are made again with a maximum of their own for each row and each column.

*Sigmoid.* There is no normaliser, so gradients are made along with the loss, in one pass.

Embeddings are of one process or of many: an `Exchange` brings the texts of the other processes one
shard after the other, and takes what was summed for them back to where they came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

Tensors = Sequence[Tensor]

DEFAULT_TILE = 1024

# exp(70) times a hundred million rows still fits single precision; a sum of exp(-50) is so far
# above the smallest number (exp(-87)) that what is lost below it does not matter.
_HIGHEST = 70.0
_LOWEST_SUM = math.exp(-50.0)

# The columns of what is summed for each image and each text: the exponentials of its positive
# logits and of all others, the positive logits themselves, their number, and the maximum (or shift)
# under which exponentials are taken. Two sums of exponentials, because the loss of a pair that is
# well told apart, log(1 + others/own), and its gradient would drown in the rounding of one.
_OWN, _OTHERS, _TARGET, _COUNT, _MAXIMUM = range(5)


class Exchange(Protocol):
    """How the texts of all processes come by."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def visits(self, texts: Tensors, sums: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        """Each process's texts, and the sums to add to in place.

        texts, sums: tensors [m, …] of this process. When the iterator is exhausted, `sums` holds
        what all processes have added for this process's texts.
        """

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""

    def least(self, value: Tensor) -> Tensor:
        """The least over all processes."""


class Alone:
    """One process: its texts are all there are."""

    size = 1

    def visits(self, texts: Tensors, sums: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        yield texts, sums

    def total(self, values: Tensor) -> Tensor:
        return values

    def least(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Plan:
    """What a tiled loss must know beside its tensors; the same on every process."""

    tile: int
    longest: float  # the longest image times the longest text: the largest inner product
    image_gradient: bool
    text_gradient: bool
    gradient: bool  # any at all, be it the scale's alone
    exchange: Exchange
    before: int = 0  # the images of the processes before this one


class Tiles:
    """Images [n, d] against texts [m, d], tile by tile, in two buffers that are used throughout."""

    def __init__(self, images: Tensor, image_groups: Tensor, tile: int) -> None:
        self.images = images
        self.image_groups = image_groups
        self.tile = tile
        self.logits = images.new_empty(0)
        self.spare = images.new_empty(0)

    def against(
        self, texts: Tensor, text_groups: Tensor, scale: float
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor | None]]:
        """Rows, columns, scale · images · textsᵀ there, a buffer as large, and the positive pairs.

        The positives are bool like the tile, or None where the tile has none.
        """
        self._grow(min(self.tile, len(self.images)) * min(self.tile, len(texts)))
        columns = list(spans(len(texts), self.tile))
        if not columns:
            return
        for row in spans(len(self.images), self.tile):
            images, groups = self.images[row], self.image_groups[row]
            related = torch.isin(text_groups, groups)
            touched = torch.stack([related[column].any() for column in columns]).tolist()
            for column, some in zip(columns, touched, strict=True):
                text = texts[column]
                shape = (len(images), len(text))
                logits = self.logits[: shape[0] * shape[1]].view(shape)
                spare = self.spare[: shape[0] * shape[1]].view(shape)
                logits.addmm_(images, text.T, beta=0, alpha=scale)
                positive = groups[:, None] == text_groups[None, column] if some else None
                yield row, column, logits, spare, positive

    def _grow(self, numbers: int) -> None:
        if self.logits.numel() < numbers:
            self.logits = self.images.new_empty(numbers)
            self.spare = self.images.new_empty(numbers)


def spans(count: int, step: int) -> Iterator[slice]:
    """0…count in slices of `step`, the last one shorter."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def wide(tensor: Tensor) -> torch.dtype:
    """The type in which long sums are kept: double precision, where the device knows it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


# Softmax ----------------------------------------------------------------------------------------


class TiledSoftmax(Function):
    """The loss of `losses.softmax_loss`, and its gradients by recomputation."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        image_groups: Tensor,
        text_groups: Tensor,
        plan: Plan,
    ) -> Tensor:
        factor = float(scale)
        tiles = Tiles(images, image_groups, plan.tile)
        shift: float | None = max(0.0, factor * plan.longest - _HIGHEST)
        rows, columns = _sums(tiles, texts, text_groups, factor, shift, plan.exchange)
        lowest = torch.cat([_all(rows), _all(columns)]).min()
        if not bool(plan.exchange.least(lowest) >= _LOWEST_SUM):  # NaN goes this way too
            shift = None
            rows, columns = _sums(tiles, texts, text_groups, factor, shift, plan.exchange)

        parts = torch.stack([*_loss_and_count(rows), *_loss_and_count(columns)])
        row_loss, row_count, column_loss, column_count = plan.exchange.total(parts)
        row_count, column_count = row_count.clamp(min=1), column_count.clamp(min=1)
        loss = (row_loss / row_count + column_loss / column_count) / 2

        row_weights = _weights(rows).to(images.dtype)
        column_weights = _weights(columns, row_count / column_count).to(images.dtype)
        share = (1 / (2 * row_count)).to(scale.dtype)
        ctx.save_for_backward(
            images, texts, scale, image_groups, text_groups, row_weights, column_weights, share
        )
        ctx.shift = shift
        ctx.plan = plan
        return loss.to(scale.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, image_groups, text_groups, rows, columns, share = ctx.saved_tensors
        plan: Plan = ctx.plan
        # The scale's gradient comes out of either side's; without both, the images' is made for it.
        for_images = plan.image_gradient or not plan.text_gradient
        to_images = torch.zeros_like(images) if for_images else None
        to_texts = torch.zeros_like(texts) if plan.text_gradient else None
        tiles = Tiles(images, image_groups, plan.tile)
        travelling = [] if to_texts is None else [to_texts]
        for (text, groups, weights), sums in plan.exchange.visits(
            (texts, text_groups, columns), travelling
        ):
            to_text = sums[0] if sums else None
            for row, column, tile, spare, positive in tiles.against(text, groups, float(scale)):
                _softmax_gradient(tile, spare, positive, rows[row], weights[column], ctx.shift)
                if to_images is not None:
                    to_images[row].addmm_(tile, text[column])
                if to_text is not None:
                    to_text[column].addmm_(tile.T, images[row])
        gradient = gradient * share
        return *_scaled(images, texts, scale, to_images, to_texts, gradient, plan), None, None, None


def _sums(
    tiles: Tiles,
    texts: Tensor,
    text_groups: Tensor,
    scale: float,
    shift: float | None,
    exchange: Exchange,
) -> tuple[Tensor, Tensor]:
    """What is summed for each image [n, 5] and each text [m, 5] of this process."""
    both = []
    for count in (len(tiles.images), len(texts)):
        sums = torch.zeros((count, 5), dtype=wide(texts), device=texts.device)
        sums[:, _MAXIMUM] = -math.inf if shift is None else shift
        both.append(sums)
    rows, columns = both
    for (text, groups), (column_sums,) in exchange.visits((texts, text_groups), (columns,)):
        for row, column, logits, spare, positive in tiles.against(text, groups, scale):
            here, there = rows[row], column_sums[column]
            if positive is not None:
                torch.mul(logits, positive, out=spare)
                for part, dim in ((here, 1), (there, 0)):
                    part[:, _TARGET] += spare.sum(dim)
                    part[:, _COUNT] += positive.sum(dim)
            if shift is None:
                _add_with_maximum(here, logits, spare, positive, 1)
                _add_with_maximum(there, logits, spare, positive, 0)
                continue
            if shift:
                logits.sub_(shift)
            logits.exp_()
            if positive is not None:
                logits.sub_(torch.mul(logits, positive, out=spare))
            for part, dim in ((here, 1), (there, 0)):
                part[:, _OTHERS] += logits.sum(dim)
                if positive is not None:
                    part[:, _OWN] += spare.sum(dim)
    return rows, columns


def _add_with_maximum(
    sums: Tensor, logits: Tensor, spare: Tensor, positive: Tensor | None, dim: int
) -> None:
    """Add one tile's exponentials along `dim`, under a maximum that grows as larger ones come."""
    before = sums[:, _MAXIMUM].clone()
    largest = torch.maximum(before, logits.amax(dim).to(sums.dtype))
    sums[:, _MAXIMUM] = largest
    shrunk = (before - largest).exp()
    sums[:, _OWN] *= shrunk
    sums[:, _OTHERS] *= shrunk
    torch.sub(logits, largest.to(logits.dtype).unsqueeze(dim), out=spare).exp_()
    if positive is not None:
        own = spare * positive
        sums[:, _OWN] += own.sum(dim)
        spare.sub_(own)
    sums[:, _OTHERS] += spare.sum(dim)


def _all(sums: Tensor) -> Tensor:
    """The denominators of the softmax, under the maximum."""
    return sums[:, _OWN] + sums[:, _OTHERS]


def _loss_and_count(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of the rows that have a positive, and their number."""
    own, others, target, count, maximum = sums.unbind(1)
    losses = _all(sums).log() + maximum - target / count.clamp(min=1)
    losses = torch.where((count == 1) & (own > 0), (others / own).log1p(), losses)
    return torch.where(count > 0, losses, 0.0).sum(), (count > 0).sum().to(losses.dtype)


def _weights(sums: Tensor, each: Tensor | float = 1.0) -> Tensor:
    """What the gradient needs of `_sums`, [n, 4] or [m, 4].

    By what to multiply an exponential, that of a positive pair, what to take off at a positive
    pair, and the maximum. Where there is one positive, its gradient, own/all − 1, is −others/all.
    All are zero for rows without a positive: they have no loss of their own. `each` is the weight
    of a row; the small share of a row in the mean comes at the very end, lest 1/all underflow.
    """
    _, others, _, count, maximum = sums.unbind(1)
    each = torch.where(count > 0, each, 0.0)
    factor = each / _all(sums)
    single = count == 1
    own_factor = torch.where(single, 0.0, factor)
    target = torch.where(single, factor * others, each / count.clamp(min=1))
    return torch.stack([factor, own_factor, target, maximum], dim=1)


def _softmax_gradient(
    tile: Tensor,
    spare: Tensor,
    positive: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    shift: float | None,
) -> None:
    """Turn a tile of logits into the loss's gradient at them, in place."""
    factor, own, target, maximum = rows.T.unsqueeze(2)  # each [rows, 1]
    column_factor, column_own, column_target, column_maximum = columns.T
    if shift is None:
        torch.sub(tile, maximum, out=spare).exp_().mul_(_either(positive, own, factor))
        tile.sub_(column_maximum).exp_().mul_(_either(positive, column_own, column_factor))
        tile.add_(spare)
    else:
        if shift:
            tile.sub_(shift)
        torch.add(factor, column_factor, out=spare)
        if positive is not None:
            spare = torch.where(positive, own + column_own, spare)
        tile.exp_().mul_(spare)
    if positive is not None:
        torch.add(target, column_target, out=spare)
        tile.sub_(spare.mul_(positive))


def _either(positive: Tensor | None, own: Tensor, other: Tensor) -> Tensor:
    return other if positive is None else torch.where(positive, own, other)


# Sigmoid ----------------------------------------------------------------------------------------


class TiledSigmoid(Function):
    """The loss of `losses.sigmoid_loss`, and its gradients in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        image_groups: Tensor,
        text_groups: Tensor,
        plan: Plan,
    ) -> Tensor:
        factor, offset = float(scale), float(bias)
        for_images = plan.gradient and (plan.image_gradient or not plan.text_gradient)
        to_images = torch.zeros_like(images) if for_images else None
        to_texts = torch.zeros_like(texts) if plan.text_gradient else None
        tiles = Tiles(images, image_groups, plan.tile)
        # The loss, the gradient at the bias, and the number of images.
        parts = torch.zeros(3, dtype=wide(images), device=images.device)
        parts[2] = len(images)
        travelling = [] if to_texts is None else [to_texts]
        for (text, groups), sums in plan.exchange.visits((texts, text_groups), travelling):
            to_text = sums[0] if sums else None
            for row, column, tile, spare, positive in tiles.against(text, groups, factor):
                tile.add_(offset)
                parts[0] += _sigmoid_loss(tile, spare, positive)
                if not plan.gradient:
                    continue
                _sigmoid_gradient(tile, positive)
                parts[1] += tile.sum()
                if to_images is not None:
                    to_images[row].addmm_(tile, text[column])
                if to_text is not None:
                    to_text[column].addmm_(tile.T, images[row])
        loss, _, count = plan.exchange.total(parts.clone())
        if plan.gradient:
            share = (1 / count).to(scale.dtype)
            to_bias = parts[1].to(scale.dtype) * share * plan.exchange.size
            made = _scaled(images, texts, scale, to_images, to_texts, share, plan)
            ctx.present = [one is not None for one in made]
            ctx.save_for_backward(*(one for one in made if one is not None), to_bias)
        return (loss / count).to(scale.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *saved, to_bias = ctx.saved_tensors
        made = iter(saved)
        embeddings = [next(made) * gradient if present else None for present in ctx.present]
        return *embeddings, to_bias * gradient, None, None, None


def _sigmoid_loss(tile: Tensor, spare: Tensor, positive: Tensor | None) -> Tensor:
    """Σ softplus(−z·logit); the tile becomes −z·logit (z is +1 for a positive, else −1)."""
    if positive is not None:
        tile.mul_(torch.where(positive, -1.0, 1.0))
    # softplus(x) = max(x, 0) + log1p(exp(−|x|)), which is faster in pieces than F.softplus
    upper = torch.clamp(tile, min=0, out=spare).sum()
    return upper + torch.abs(tile, out=spare).neg_().exp_().log1p_().sum()


def _sigmoid_gradient(tile: Tensor, positive: Tensor | None) -> None:
    tile.sigmoid_()
    if positive is not None:
        tile.mul_(torch.where(positive, -1.0, 1.0))


# Both -------------------------------------------------------------------------------------------


def _scaled(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    to_images: Tensor | None,
    to_texts: Tensor | None,
    gradient: Tensor,
    plan: Plan,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The gradients at images, texts and scale from (gradient at the logits) · embeddings.

    Σᵢⱼ gᵢⱼ xᵢ·yⱼ, the scale's, is Σᵢ xᵢ·(Σⱼ gᵢⱼ yⱼ). Across processes each gives `size` times its
    own part, so that averaging over processes, as DDP does, gives the gradient of one process.
    """
    gradient = gradient * plan.exchange.size
    embeddings, made_for = (texts, to_texts) if to_images is None else (images, to_images)
    assert made_for is not None
    products = torch.linalg.vecdot(embeddings, made_for)
    to_scale = products.sum(dtype=wide(products)).to(scale.dtype)
    factor = gradient * scale
    for made in (to_images, to_texts):
        if made is not None:
            made.mul_(factor)
    return to_images, to_texts, to_scale * gradient
