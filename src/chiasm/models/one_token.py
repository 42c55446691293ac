"""One more token of one text on the CPU: the decoder's own arithmetic in as few steps as it takes.

Decoding one stream reads every weight once a token, and that alone should set its pace. So here a
token is a plain row, and nothing is masked, repeated or reshaped that need not be. A small network
is run by one thread: one row's products are too short to be shared out, and threads that are woken
and waited for hundreds of times a token cost more than they bring, on a busy machine many times
more.

How fast weights are read depends on how they lie. A matrix that makes more numbers of fewer is
read in long runs only when its longer side is the contiguous one, and queries, keys and values, or
gate and up, in still longer ones when they lie side by side. `arrange` puts them so. The modules'
parameters stay what they were: views of the rearranged memory, to be used, trained and saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from chiasm.models.cache import KeyValueCache
    from chiasm.models.decoder import BeforeLayer, Decoder, DecoderLayer, RMSNorm

_WORTH_A_THREAD = 1 << 22  # numbers in a matrix; of two threads' gain nothing was seen below that


# How weights lie --------------------------------------------------------------------------------


@torch.no_grad()
def arrange(decoder: Decoder) -> None:
    """Rearrange the decoder's weights in memory for decoding on a CPU; they stay equal."""
    for each in decoder.layers:
        layer = cast("DecoderLayer", each)
        attention, mlp = layer.attention, layer.mlp
        for group in ((attention.q, attention.k, attention.v), (mlp.gate, mlp.up)):
            if all(type(module) is nn.Linear for module in group):
                _side_by_side(group)
    head = decoder.head or decoder.embedding
    head.weight.data = head.weight.t().contiguous().t()


def _side_by_side(group: Sequence[nn.Linear]) -> None:
    """Lay weights [out, in] as the columns of one matrix [in, all outs]."""
    joined = torch.cat([linear.weight for linear in group]).t().contiguous()
    start = 0
    for linear in group:
        end = start + linear.out_features
        linear.weight.data = joined[:, start:end].t()
        start = end


def _joined(*weights: Tensor) -> Tensor | None:
    """The matrix [in, all outs] that the weights are the columns of; None if they are not."""
    first = weights[0]
    total = sum(len(weight) for weight in weights)
    expected = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != expected or weight.stride() != (1, total):
            return None
        expected += len(weight) * weight.element_size()
    return first.as_strided((first.shape[1], total), (total, 1))


# One token --------------------------------------------------------------------------------------


def is_one_token(embeddings: Tensor) -> bool:
    """Whether `advance` can be used: one token of one text, on the CPU, nothing to be learned."""
    return (
        embeddings.shape[0] == 1
        and embeddings.shape[1] == 1
        and embeddings.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def advance(
    decoder: Decoder,
    embedding: Tensor,
    turn: tuple[Tensor, Tensor],
    cache: KeyValueCache,
    before_layer: BeforeLayer | None,
) -> Tensor:
    """What `Decoder.forward` gives for [1, 1, width] without a mask.

    turn: cos and sin, of the token's position alone. cache: of one text.
    """
    x = embedding[0]  # [1, width]
    cos, sin = (each.reshape(-1) for each in turn)  # [head width]
    half = len(sin) // 2
    sin = torch.cat((-sin[:half], sin[half:]))
    config = decoder.config
    with _threads_for(config.hidden_size * config.intermediate_size):
        for index, each in enumerate(decoder.layers):
            layer = cast("DecoderLayer", each)
            if before_layer is not None:
                x = before_layer(index, x[None])[0]
            if _is_plain(layer):
                x = _layer(layer, x, cos, sin, cache)
            else:  # adapters stand where a linear layer was
                x = layer(x[None], turn, None, False, cache)[0]
        return _normed(decoder.norm, x)[None]


@contextmanager
def _threads_for(largest: int) -> Iterator[None]:
    """One thread, where a layer's largest matrix has too few numbers to be worth a second one."""
    before = torch.get_num_threads()
    if largest > _WORTH_A_THREAD or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_plain(layer: DecoderLayer) -> bool:
    attention, mlp = layer.attention, layer.mlp
    modules = (attention.q, attention.k, attention.v, attention.o, mlp.gate, mlp.up, mlp.down)
    return all(type(module) is nn.Linear for module in modules)


def _layer(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache
) -> Tensor:
    attention, mlp = layer.attention, layer.mlp
    width = attention.head_dim
    qkv = _products((attention.q, attention.k, attention.v), _normed(layer.norm1, x))
    heads = qkv.view(-1, width)  # [heads + 2 · key heads, head width]
    shared = attention.k.out_features // width
    turning, v = heads[:-shared], heads[-shared:]
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = attention.q_norm(turning[:-shared]), attention.k_norm(turning[-shared:])
        turning = torch.cat((q, k))
    turning = _turned(turning, cos, sin)
    q, k = turning[:-shared], turning[-shared:]
    keys, values = cache.append(attention.layer, k[None, :, None], v[None, :, None])
    # Heads that share keys are the queries of one head: [1, key heads, group, head width].
    mixed = F.scaled_dot_product_attention(q.view(1, shared, -1, width), keys, values)
    x = _added(x, attention.o, mixed.view(1, -1))
    inner = _products((mlp.gate, mlp.up), _normed(layer.norm2, x))  # [1, 2 · inner]
    gate, up = inner.split(mlp.gate.out_features, dim=1)
    return _added(x, mlp.down, mlp.activation(gate) * up)


def _normed(norm: RMSNorm, x: Tensor) -> Tensor:
    """The norm of one row, [1, width], whose scale is a plain number."""
    if x.dtype != torch.float32:
        return norm(x)
    mean = torch.dot(x[0], x[0]).item() / x.shape[1]
    return (x * norm.weight).mul_((mean + norm.eps) ** -0.5)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[heads, head width], turned; the first half of `sin` is negative."""
    swapped = heads.roll(heads.shape[1] // 2, dims=1)
    return torch.addcmul(heads * cos, swapped, sin)


def _products(linears: tuple[Any, ...], x: Tensor) -> Tensor:
    """What several linear layers make of a row [1, in], one after the other: [1, all outs]."""
    joined = _joined(*(linear.weight for linear in linears))
    if joined is None:
        return torch.cat([linear(x) for linear in linears], dim=1)
    made = x @ joined
    if linears[0].bias is not None:
        made += torch.cat([linear.bias for linear in linears])
    return made


def _added(x: Tensor, linear: Any, inner: Tensor) -> Tensor:
    """The row x, plus linear(inner)."""
    if linear.bias is not None:
        x = x + linear.bias
    return torch.addmm(x, inner, linear.weight.t())
