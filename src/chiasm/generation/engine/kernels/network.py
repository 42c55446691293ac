"""A decoder's weights as the kernels want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from chiasm.generation.engine.kernels.step import Matrices, Network
from chiasm.generation.engine.kernels.tiles import INTEGER_STEP, ROWS, SINGLE_STEP
from chiasm.models.decoder import Decoder, DecoderLayer

Precision = Literal["float32", "int8"]


def can_run(decoder: Decoder) -> bool:
    """Whether the kernels know all that this decoder does."""
    config = decoder.config
    plain = all(type(linear) is nn.Linear for layer in decoder.layers for linear in _linears(layer))
    return (
        plain
        and decoder.embedding.weight.device.type == "cpu"
        and decoder.embedding.weight.dtype == torch.float32
        and config.hidden_act in ("silu", "swish")
        and config.head_dim % SINGLE_STEP == 0
        and config.hidden_size % ROWS == 0
        and config.flops_between_layers == 0
    )


@torch.no_grad()
def packed(decoder: Decoder, precision: Precision) -> Network:
    """Copy the weights into tiles; int8 rounds each row of a matrix with a scale of its own."""
    config = decoder.config
    layers = [cast("DecoderLayer", layer) for layer in decoder.layers]
    integers = precision == "int8"

    def group(*names: str) -> Matrices:
        chosen = [[dict(_named(layer))[name] for name in names] for layer in layers]
        return _matrices(chosen, integers)

    head = decoder.head or decoder.embedding
    turns = decoder.rotary.at(range(config.max_position_embeddings), torch.empty(0))
    cos, sin = (_array(each.squeeze(1)) for each in turns)
    inputs = (config.hidden_size, config.num_attention_heads * config.head_dim)
    return Network(
        qkv=group("q", "k", "v"),
        out=group("o"),
        gate_up=group("gate", "up"),
        down=group("down"),
        head=_matrices([[head]], integers),
        norm1=_stack([layer.norm1.weight for layer in layers]),
        norm2=_stack([layer.norm2.weight for layer in layers]),
        q_norm=_norms([layer.attention.q_norm for layer in layers]),
        k_norm=_norms([layer.attention.k_norm for layer in layers]),
        norm=_stack([decoder.norm.weight]),
        cos=cos,
        sin=sin,
        eps=np.float32(config.rms_norm_eps),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        inner=config.intermediate_size,
        limits=np.array([_limit(n) for n in (*inputs, config.intermediate_size)], np.float32),
    )


def _limit(width: int) -> float:
    """The largest number to round to: 32 bits must hold each half of a sum over `width` products.

    16 bits with their sign up to a width of 1,000, then fewer; 13 at 8,000.
    """
    return float(min(32767, 2 * (2**31 - 1) // (127 * (width + INTEGER_STEP))))


def _named(layer: DecoderLayer) -> list[tuple[str, nn.Module]]:
    attention, mlp = layer.attention, layer.mlp
    return [
        *((name, getattr(attention, name)) for name in ("q", "k", "v", "o")),
        *((name, getattr(mlp, name)) for name in ("gate", "up", "down")),
    ]


def _linears(layer: Any) -> list[nn.Module]:
    return [module for _, module in _named(layer)]


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _stack(tensors: Sequence[Tensor]) -> npt.NDArray[np.float32]:
    return np.stack([_array(tensor) for tensor in tensors])


def _norms(norms: Sequence[Any]) -> npt.NDArray[np.float32]:
    if norms[0] is None:
        return np.zeros((len(norms), 0), np.float32)
    return _stack([norm.weight for norm in norms])


def _matrices(layers: Sequence[Sequence[Any]], integers: bool) -> Matrices:
    first = layers[0]
    outs, ins = sum(len(linear.weight) for linear in first), first[0].weight.shape[1]
    step = INTEGER_STEP if integers else SINGLE_STEP
    tiles, steps = -(-outs // ROWS), -(-ins // step)
    kind = np.int8 if integers else np.float32
    weights = np.empty((len(layers), tiles, steps, ROWS, step), kind)
    scales = np.zeros((len(layers), tiles * ROWS), np.float32)
    for number, linears in enumerate(layers):
        rows = torch.cat([linear.weight for linear in linears])  # [outs, ins]
        if integers:
            scale = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30) / 127
            rows = (rows / scale).round_().to(torch.int8)
            scales[number, :outs] = scale.flatten().numpy()
        whole = torch.zeros(tiles * ROWS, steps * step, dtype=rows.dtype)
        whole[:outs, :ins] = rows
        parted = whole.view(tiles, ROWS, steps, step).transpose(1, 2)
        torch.from_numpy(weights[number]).copy_(parted)
    return Matrices(weights, scales, _biases(layers))


def _biases(layers: Sequence[Sequence[Any]]) -> npt.NDArray[np.float32]:
    """[layers, outs], with zeros for a linear layer without one; [layers, 0] if none has any."""

    def of(linear: Any) -> Tensor:
        bias = getattr(linear, "bias", None)
        return torch.zeros(len(linear.weight)) if bias is None else bias

    if all(getattr(linear, "bias", None) is None for linears in layers for linear in linears):
        return np.zeros((len(layers), 0), np.float32)
    return _stack([torch.cat([of(linear) for linear in linears]) for linears in layers])
