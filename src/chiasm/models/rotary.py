"""Rotary position embeddings (Su et al., arXiv 2104.09864), and how they are stretched.

A head's width is cut into two halves, and the pair (x[i], x[i + half]) is turned by an angle of
position · frequency[i]. Checkpoints for longer contexts than they were trained on change the
frequencies; `RopeParameters` says how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint

_KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """The entries of `rope_parameters` in a `config.json`, or of `rope_scaling` in an older one.

    rope_type: `default`; `linear` (Chen et al., arXiv 2306.15595); `llama3` (Llama 3.1's); or
        `yarn` (Peng et al., arXiv 2309.00071).
    Raises UnsupportedCheckpoint for another kind, or for one whose numbers are missing.
    """

    renamed: ClassVar[dict[str, str]] = {"type": "rope_type"}

    rope_type: str = "default"
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.rope_type not in _KINDS:
            raise UnsupportedCheckpoint(
                f"rope_type is {self.rope_type!r}, which is not known here.",
                hint=f"Known are {', '.join(_KINDS)}.",
            )
        for name in _KINDS[self.rope_type]:
            if not (getattr(self, name) or 0) > 0:
                raise UnsupportedCheckpoint(
                    f"rope_type {self.rope_type!r} needs a {name}, which is {getattr(self, name)}."
                )
        if self.partial_rotary_factor != 1:
            raise UnsupportedCheckpoint(
                f"partial_rotary_factor is {self.partial_rotary_factor}; only whole heads are "
                "turned here."
            )

    def as_entries(self) -> dict[str, Any]:
        """What `config.json` holds of it: only what differs from what is assumed."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name == "rope_type"
        }


def frequencies(
    parameters: RopeParameters, width: int, *, theta: float, longest: int
) -> tuple[Tensor, float]:
    """Radians a position for each pair of a head: float32 [width / 2], and a scale for cos and sin.

    theta: base of the longest wavelength. longest: `max_position_embeddings`.
    """
    base = torch.tensor(theta, dtype=torch.float32)
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    original = parameters.original_max_position_embeddings or longest
    factor = parameters.factor or 1.0
    if parameters.rope_type == "linear":
        return plain / factor, 1.0
    if parameters.rope_type == "llama3":
        return _llama3(plain, parameters, factor, original), 1.0
    if parameters.rope_type == "yarn":
        return _yarn(plain, parameters, theta, factor, original), _yarn_scale(parameters, factor)
    return plain, 1.0


def _llama3(plain: Tensor, parameters: RopeParameters, factor: float, original: int) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between are mixed smoothly."""
    low, high = parameters.low_freq_factor or 1.0, parameters.high_freq_factor or 1.0
    turns = original * plain / (2 * math.pi)  # over the context of the training
    smooth = ((turns - low) / (high - low)).clamp(0, 1) if high != low else (turns >= low).float()
    return (1 - smooth) * plain / factor + smooth * plain


def _yarn(
    plain: Tensor, parameters: RopeParameters, theta: float, factor: float, original: int
) -> Tensor:
    """A ramp over the pairs, from frequencies that are kept to frequencies that are stretched."""
    width = 2 * len(plain)

    def pair(turns: float) -> float:
        """The pair that makes so many turns over the original context (section 3.2)."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(parameters.beta_fast or 32), pair(parameters.beta_slow or 1)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    stretched = ((torch.arange(len(plain)) - low) / (high - low)).clamp(0, 1)
    return plain / factor * stretched + plain * (1 - stretched)


def _yarn_scale(parameters: RopeParameters, factor: float) -> float:
    """What cos and sin are multiplied by, to sharpen attention over a longer context."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.attention_factor is not None:
        return parameters.attention_factor
    if parameters.mscale and parameters.mscale_all_dim:
        return scale(parameters.mscale) / scale(parameters.mscale_all_dim)
    return scale(1.0)


class RotaryTable:
    """cos and sin for every position so far, computed once and kept.

    Not a module: the tables follow from the configuration and are in no checkpoint.
    """

    def __init__(
        self, parameters: RopeParameters, width: int, *, theta: float, longest: int
    ) -> None:
        self._arguments = (parameters, width, theta, longest)
        self._tables: tuple[Tensor, Tensor] | None = None

    def at(self, positions: Tensor | range, like: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and sines [..., 1, head width] on `like`'s device and in its type.

        positions: int64 of any shape, or consecutive ones as a range.
        """
        end = positions.stop if isinstance(positions, range) else int(positions.max()) + 1
        cos, sin = self._until(end, like)
        if isinstance(positions, range):
            rows = slice(positions.start, positions.stop)
            return cos[rows], sin[rows]
        return cos[positions], sin[positions]

    def _until(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        tables = self._tables
        if (
            tables is None
            or len(tables[0]) < end
            or tables[0].device != like.device
            or tables[0].dtype != like.dtype
        ):
            tables = self._made(max(256, 1 << (end - 1).bit_length()), like)
            self._tables = tables
        return tables

    def _made(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        parameters, width, theta, longest = self._arguments
        # On the CPU whatever the context: a network may be under construction on the meta device.
        with torch.device("cpu"), torch.inference_mode(False):
            each, scale = frequencies(parameters, width, theta=theta, longest=longest)
            angles = torch.arange(length, dtype=torch.float32)[:, None] * each  # [length, width/2]
            angles = torch.cat((angles, angles), dim=-1)[:, None]  # [length, 1, width]
            cos, sin = angles.cos() * scale, angles.sin() * scale
            return cos.to(like.device, like.dtype), sin.to(like.device, like.dtype)


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., tokens, heads, width] turned by cos and sin [..., tokens, 1, width]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
