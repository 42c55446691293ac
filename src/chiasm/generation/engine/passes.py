"""What the engine asks of whatever computes: passes of a decoder over pieces of many texts.

Two things answer to it: compiled kernels on a CPU (`kernels`), and torch for all else
(`torch_passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from chiasm.errors import ConfigurationError
from chiasm.models.decoder import Decoder

Precision = Literal["int8", "float32", "bfloat16"]


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one text. blocks: of the whole text up to their end.

    wanted: whether the logits after the last are. features: of image tokens among them, as pairs
    of their places in `ids` and [places, width].
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    wanted: bool
    features: Sequence[tuple[Sequence[int], Tensor]] = ()


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over one row, and what each further row adds."""

    one: float = 0.02
    a_row: float = 0.002

    @classmethod
    def measured(cls, seconds: Callable[[int], float], most: int) -> Pace:
        """From passes over one row and over `most`. seconds: that a pass over so many took."""
        for rows in (1, most):
            seconds(rows)
        one, many = (min(seconds(rows) for _ in range(3)) for rows in (1, most))
        return cls(one, max(many - one, 0.1 * one) / max(most - 1, 1))

    def of(self, rows: int) -> float:
        """About how long a pass over so many rows takes."""
        return self.one + self.a_row * max(rows - 1, 0)


class Passes(Protocol):
    """A decoder with memory for keys and values. Not safe to use from several threads at once.

    rows: of a pass at most. texts: whose logits may be wanted in one pass. blocks: of memory.
    context: tokens that a text may have. pace: measured by `warm_up`.
    """

    rows: int
    texts: int
    blocks: int
    context: int
    pace: Pace

    def run(self, pieces: Sequence[Piece]) -> list[Tensor | None]:
        """Read them all: logits [vocabulary] where they are wanted, to be used before the next run.

        At most `rows` rows in all, and one piece of each text. Logits are float32, on the CPU.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Keys and values of one block into another."""
        ...

    def warm_up(self) -> None:
        """Do once what would make the first pass wait, and measure how long passes take."""
        ...

    def close(self) -> None:
        """Let go of threads and memory."""
        ...


def precision_of(wanted: str, decoder: Decoder, device: torch.device) -> Precision:
    """The precision of the weights on a device, by the setting `engine.precision`.

    `auto`: int8 where the kernels can, bfloat16 where a GPU computes in it, else float32.
    Raises ConfigurationError for one that is not known, or cannot be had there.
    """
    if wanted not in ("auto", "int8", "float32", "bfloat16"):
        raise ConfigurationError(
            f"engine.precision is {wanted!r}, which is not known.",
            hint="Use auto, int8, float32 or bfloat16.",
            param="engine.precision",
        )
    compiled = device.type == "cpu" and _kernels_can(decoder)
    if wanted == "int8" and not compiled:
        raise ConfigurationError(
            f"engine.precision is int8, which is there for usual networks on a CPU, "
            f"and not for this one on {device.type}.",
            hint="Use auto, float32 or bfloat16.",
            param="engine.precision",
        )
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if compiled:
        return "int8"
    # Cards before Ampere compute in it by way of float32.
    real = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if real else "float32"


def open_passes(
    decoder: Decoder,
    precision: str,
    *,
    pool_bytes: int | None = None,
    texts: int = 0,
    compiled: bool = False,
) -> Passes:
    """The kernels where they can, torch elsewhere; the latter converts the decoder in its place.

    pool_bytes: for keys and values; None is what suits the device. texts: see `Passes`; 0 is as
    many as are worth it. compiled: let torch compile a layer, on CUDA.
    Raises what `precision_of` raises.
    """
    chosen = precision_of(precision, decoder, decoder.embedding.weight.device)
    if chosen != "bfloat16" and _kernels_can(decoder):
        from chiasm.generation.engine.kernels.passes import KernelPasses

        return KernelPasses(decoder, precision=chosen, pool_bytes=pool_bytes, texts=texts)
    from chiasm.generation.engine.torch_passes import TorchPasses

    return TorchPasses(
        decoder,
        precision=chosen,
        pool_bytes=pool_bytes,
        texts=texts,
        # Elsewhere there are no graphs, for which shapes are compiled before the first question.
        compiled=compiled and decoder.embedding.weight.device.type == "cuda",
    )


def _kernels_can(decoder: Decoder) -> bool:
    """Whether the compiled kernels know all that this decoder does."""
    if decoder.embedding.weight.device.type != "cpu":
        return False  # and numba need not be imported
    from chiasm.generation.engine.kernels.network import can_run

    return can_run(decoder)


@torch.no_grad()
def embedded(decoder: Decoder, pieces: Iterable[Piece]) -> Tensor:
    """The rows of all pieces, one after another, [rows, width], on the decoder's device."""
    pieces = list(pieces)
    ids = [each for piece in pieces for each in piece.ids]
    rows = decoder.embed(torch.tensor(ids, device=decoder.embedding.weight.device))
    put_features(rows, pieces, 0)
    return rows


def put_features(rows: Tensor, pieces: Iterable[Piece], first: int) -> None:
    """Pictures' features in the places of their tokens. first: the row where the pieces begin."""
    for piece in pieces:
        for places, features in piece.features:
            at = torch.tensor(places, device=rows.device) + first
            rows[at] = features.to(rows.device, rows.dtype)
        first += len(piece.ids)
