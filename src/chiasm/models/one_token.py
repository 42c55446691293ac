"""One more token of one text on the CPU: the decoder's own arithmetic in as few steps as it takes.

Decoding one stream reads every weight once a token, and that alone should set its pace. Two things
keep it from that. A library's product of one row with a matrix stays on one thread, which cannot
use all of the memory's bandwidth; a batch of such products is shared out. So a row is cut into as
many pieces as there are threads, each meets its rows of the matrix, [in, out], and what they make
is added. And every step between two products costs, the more as the weights that stream past have
driven all else out of the processor's caches. So what can be known before is: a `Lane` holds a
layer's matrices, cut and joined, and nothing is looked up, masked or reshaped that need not be.

`Decoder.fuse` makes the lanes. The modules' parameters stay what they were: views of the
rearranged memory, to be used, trained and saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from chiasm.models.cache import KeyValueCache
    from chiasm.models.decoder import BeforeLayer, Decoder, DecoderLayer

_WORTH_SHARING = 1 << 17  # numbers in a matrix; fewer are read sooner than threads are woken


# How weights lie --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """Linear layers that read the same row, as one matrix: [pieces, in / pieces, all outs]."""

    pieces: Tensor
    bias: Tensor | None

    def __call__(self, row: Tensor) -> Tensor:
        """[1, in] → [1, all outs]."""
        made = _shared_out(row, self.pieces)
        return made if self.bias is None else made.add_(self.bias)


@dataclass(frozen=True, slots=True)
class Lane:
    """All that a layer's token meets.

    norm1, norm2: their weights, [1, width], and epsilon. linears: the layer's, of which the
    matrices are made; addresses: where their weights lay then.
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    norm1: tuple[Tensor, float]
    norm2: tuple[Tensor, float]
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    activation: Callable[[Tensor], Tensor]
    linears: tuple[nn.Module, ...]
    addresses: list[int]

    def holds(self, layer: DecoderLayer) -> bool:
        """Whether the layer is still as it was: no adapter in it, nothing moved."""
        now = _linears(layer)
        return now == self.linears and _addresses(now) == self.addresses


@torch.no_grad()
def lanes_of(decoder: Decoder) -> list[Lane | None]:
    """Rearrange the weights and give each layer its lane; None where it is no plain one.

    A layer is plain that computes in single precision on the CPU, without adapters.
    """
    lanes = [_lane(cast("DecoderLayer", layer)) for layer in decoder.layers]
    head = (decoder.head or decoder.embedding).weight
    if head.device.type == "cpu":
        head.data = head.t().contiguous().t()
    return lanes


def _lane(layer: DecoderLayer) -> Lane | None:
    linears = _linears(layer)
    if not all(type(linear) is nn.Linear and _is_single(linear.weight) for linear in linears):
        return None
    q, k, v, out, gate, up, down = cast("tuple[nn.Linear, ...]", linears)
    attention = layer.attention
    return Lane(
        qkv=_side_by_side((q, k, v)),
        out=_side_by_side((out,)),
        gate_up=_side_by_side((gate, up)),
        down=_side_by_side((down,)),
        norm1=(layer.norm1.weight.detach()[None], layer.norm1.eps),
        norm2=(layer.norm2.weight.detach()[None], layer.norm2.eps),
        q_norm=attention.q_norm,
        k_norm=attention.k_norm,
        activation=layer.mlp.activation,
        linears=linears,
        addresses=_addresses(linears),
    )


def _linears(layer: DecoderLayer) -> tuple[nn.Module, ...]:
    """A layer's linear modules, without the detour that attributes of modules take."""
    attention, mlp = layer._modules["attention"], layer._modules["mlp"]
    a, m = attention._modules, mlp._modules  # type: ignore[union-attr]
    return a["q"], a["k"], a["v"], a["o"], m["gate"], m["up"], m["down"]  # type: ignore[return-value]


def _addresses(linears: tuple[nn.Module, ...]) -> list[int]:
    return [linear._parameters["weight"].data_ptr() for linear in linears]  # type: ignore[union-attr]


def _is_single(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _side_by_side(group: Sequence[nn.Linear]) -> Matrix:
    """Lay weights [out, in] as the columns of one matrix [in, all outs]."""
    joined = torch.cat([linear.weight for linear in group]).t().contiguous()
    start = 0
    for linear in group:
        end = start + linear.out_features
        linear.weight.data = joined[:, start:end].t()
        start = end
    biases = [linear.bias.detach() for linear in group if linear.bias is not None]
    return Matrix(_cut(joined), torch.cat(biases) if biases else None)


def _cut(matrix: Tensor) -> Tensor:
    """[in, out] → [pieces, in / pieces, out], a piece a thread where that is worth it."""
    rows, threads = len(matrix), torch.get_num_threads()
    pieces = 1
    if matrix.numel() >= _WORTH_SHARING:
        pieces = max(n for n in range(1, threads + 1) if rows % n == 0)
    return matrix.view(pieces, rows // pieces, -1)


def product(row: Tensor, matrix: Tensor) -> Tensor:
    """A row [1, in] times a matrix [in, out] that is contiguous: [1, out]."""
    return _shared_out(row, _cut(matrix))


def _shared_out(row: Tensor, pieces: Tensor) -> Tensor:
    """A row [1, in] times [pieces, in / pieces, out], a piece a thread: [1, out]."""
    return torch.bmm(row.view(len(pieces), 1, -1), pieces).sum(0)


# One token --------------------------------------------------------------------------------------


def is_one_token(embeddings: Tensor) -> bool:
    """Whether `advance` can be used: one token of one text, on the CPU, nothing to be learned."""
    return embeddings.shape[:2] == (1, 1) and _is_single(embeddings) and not torch.is_grad_enabled()


def advance(
    decoder: Decoder,
    lanes: Sequence[Lane | None],
    embedding: Tensor,
    turn: tuple[Tensor, Tensor],
    cache: KeyValueCache,
    before_layer: BeforeLayer | None,
) -> Tensor:
    """What `Decoder.forward` gives for [1, 1, width] without a mask.

    lanes: of `lanes_of`; a layer that has changed since goes its own way. turn: cos and sin, of the
    token's position alone. cache: of one text.
    """
    x = embedding[0]  # [1, width]
    rotation = _rotation(*turn)
    for index, (each, lane) in enumerate(zip(decoder.layers, lanes, strict=True)):
        layer = cast("DecoderLayer", each)
        if before_layer is not None:
            x = before_layer(index, x[None])[0]
        if lane is not None and lane.holds(layer):
            x = _through(lane, index, x, rotation, cache)
        else:
            x = layer(x[None], turn, None, False, cache)[0]
    return decoder.norm(x)[None]


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary turn of one position as a matrix [head width, head width], to be multiplied by.

    It is made once a token, and turns the heads of a layer in one product.
    """
    cos, sin = cos.reshape(-1), sin.reshape(-1)  # [head width]
    half = len(sin) // 2
    rotation = torch.diag(cos)
    rotation[half:, :half] -= torch.diag(sin[:half])
    rotation[:half, half:] += torch.diag(sin[half:])
    return rotation


def _through(lane: Lane, index: int, x: Tensor, rotation: Tensor, cache: KeyValueCache) -> Tensor:
    """A row [1, width] after a layer."""
    shared, width = cache.keys.shape[2], len(rotation)
    heads = lane.qkv(_normed(x, *lane.norm1)).view(-1, width)  # [heads + 2 · shared, head width]
    turning = heads[:-shared]
    if lane.q_norm is not None and lane.k_norm is not None:
        turning = torch.cat((lane.q_norm(turning[:-shared]), lane.k_norm(turning[-shared:])))
    turned = turning @ rotation
    keys, values = cache.append_one(index, turned[-shared:], heads[-shared:])
    # Heads that share keys are the queries of one head: [1, shared, group, head width].
    queries = turned[:-shared].view(1, shared, -1, width)
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    x = lane.out(mixed.view(1, -1)).add_(x)
    gate, up = lane.gate_up(_normed(x, *lane.norm2)).chunk(2, dim=1)
    return lane.down(lane.activation(gate) * up).add_(x)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of one row, whose scale is a plain number."""
    row = x[0]
    mean = torch.dot(row, row).item() / len(row)
    return (x * weight).mul_((mean + eps) ** -0.5)
