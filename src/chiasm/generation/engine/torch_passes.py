"""Passes of a decoder in torch: on GPUs, and on a CPU for decoders that the kernels do not know.

The network's own modules compute; here is where keys and values lie and who attends to what. All
texts that decode are one batch (`paged`), on CUDA one graph that is launched at once
(`cuda_graphs`); pieces of prompts attend one after the other, each to its own text.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, cast

import torch
from torch import Tensor

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.cuda_graphs import Recorder, StepGraphs
from chiasm.generation.engine.paged import (
    BlockPool,
    Kept,
    Part,
    Segments,
    Step,
    attend_to_part,
    attend_to_segments,
    keep,
    laid_out,
    shape_of,
)
from chiasm.generation.engine.passes import Pace, Piece, Precision, put_features
from chiasm.models.decoder import Decoder, DecoderConfig, DecoderLayer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_POOL_BYTES = 512 * 1024 * 1024
_SHARE = 0.75
"""Of a GPU's free memory, at most, for keys and values."""

log = logging.getLogger("chiasm.generation")


class TorchPasses:
    """See `chiasm.generation.engine.passes.Passes`."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        precision: Precision,
        pool_bytes: int | None = None,
        texts: int = 0,
        compiled: bool = False,
    ) -> None:
        """The decoder is converted in its place, and stays where it is.

        pool_bytes: for keys and values; None is 512 MiB, and on CUDA three quarters of what is
        free, but no more than twice what `texts` whole contexts take.
        """
        dtype, config = _DTYPES[precision], decoder.config
        self._decoder = decoder.to(dtype)
        self._device = decoder.embedding.weight.device
        cuda = self._device.type == "cuda"
        self.rows = 2048 if cuda else 256
        self.texts = texts or (64 if cuda else 16)
        each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        self.block_bytes = each * dtype.itemsize * BLOCK_TOKENS
        if pool_bytes is None:
            pool_bytes = self._pool_bytes(config)
        self.blocks = max(pool_bytes // self.block_bytes, 4)
        self.context = min(config.max_position_embeddings, self.blocks * BLOCK_TOKENS)
        self._pool = BlockPool(config, self.blocks, dtype=dtype, device=self._device)
        self._cos, self._sin = (
            turn.clone() for turn in decoder.rotary.at(range(self.context), decoder.norm.weight)
        )
        self._compiled: Any = torch.compile(_through, dynamic=True) if compiled else None
        self._logits = torch.empty(self.texts, config.vocab_size, pin_memory=cuda)
        self._graphs: StepGraphs | None = None
        self.pace = Pace()

    def _pool_bytes(self, config: DecoderConfig) -> int:
        most = _POOL_BYTES
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            most = int(_SHARE * free)
        whole = -(-config.max_position_embeddings // BLOCK_TOKENS) * self.block_bytes
        return min(most, 2 * self.texts * whole)

    # A pass -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> list[Tensor | None]:
        """See `Passes.run`."""
        rows, wanted = sum(len(piece.ids) for piece in pieces), sum(p.wanted for p in pieces)
        if rows > self.rows or wanted > self.texts:
            raise ValueError(f"{rows} rows with {wanted} logits are too many")
        # A token of an answer each, which are read as one; and pieces of prompts behind them.
        steps = [piece for piece in pieces if len(piece.ids) == 1 and not piece.features]
        parts = [piece for piece in pieces if len(piece.ids) > 1 or piece.features]
        shape = shape_of(steps) if steps else (0, 0)
        flat = laid_out(steps, *shape, self._pool.spare)
        behind = accumulate((len(part.ids) for part in parts), initial=shape[0])
        ends = [*range(len(steps)), *(row - 1 for row in islice(behind, 1, None))]
        asked = [(p, end) for p, end in zip([*steps, *parts], ends, strict=True) if p.wanted]
        logits = None
        if self._graphs is not None and not parts and len(steps) <= self.texts:
            logits = self._graphs.run(flat, *shape)
        if logits is None:
            step = Step.over(torch.from_numpy(flat).to(self._device), *shape)
            logits = self._read(step, parts, [end for _, end in asked])
            found = self._brought(logits)
        else:
            found = self._brought(logits[: len(steps)])[[end for _, end in asked]]
        made = {id(piece): row for (piece, _), row in zip(asked, found, strict=True)}
        return [made.get(id(piece)) for piece in pieces]

    def _read(
        self, step: Step, parts: Sequence[Piece] = (), ends: Sequence[int] | None = None
    ) -> Tensor:
        """The logits after some rows, [ends, vocabulary]; of all of the step's texts if None.

        step: of tensors on the device. Rows are the step's texts and the parts' tokens behind.
        """
        decoder, pool, texts = self._decoder, self._pool, len(step.ids)
        numbers = torch.stack((step.ids, step.positions, step.slots))  # [3, rows]
        placed: list[Part] = []
        if parts:
            behind = torch.tensor(_numbers(parts), device=self._device)
            numbers = torch.cat((numbers, behind), dim=1)
            for piece in parts:
                placed.append(Part.of(piece, placed[-1].end if placed else texts, pool))
        ids, positions, slots = numbers
        x = decoder.embed(ids)  # [rows, width]
        put_features(x, parts, texts)
        turn = self._cos[positions], self._sin[positions]
        places = pool.places_of(slots)
        segments = Segments.of(step, pool) if texts else None
        for layer, kept in zip(decoder.layers, pool.layers(), strict=True):
            x = self._layer(cast("DecoderLayer", layer), x, turn, kept, places, segments, placed)
        if ends is not None:
            x = x[torch.tensor(ends, dtype=torch.int64, device=self._device)]
        return decoder.logits(decoder.norm(x))

    def _layer(self, *args: Any) -> Tensor:
        """`_through`, compiled if that is wanted and possible and there is no part."""
        if self._compiled is not None and not args[-1]:
            try:
                after: Tensor = self._compiled(*args)
            except Exception:  # whatever a compiler stumbles over: the plain way is there
                log.warning("torch.compile failed; going on without it", exc_info=True)
                self._compiled = None
            else:
                return after
        return _through(*args)

    def _brought(self, logits: Tensor) -> Tensor:
        """Logits as float32 on the CPU, in memory that the next pass writes over."""
        found = self._logits[: len(logits)]
        cuda = self._device.type == "cuda"
        found.copy_(logits, non_blocking=cuda)
        if cuda:  # also where nothing is copied: what comes next is measured
            torch.cuda.synchronize(self._device)
        return found

    def copy_block(self, source: int, target: int) -> None:
        """Keys and values of one block into another."""
        self._pool.copy(source, target)

    # Beginning and end --------------------------------------------------------------------------

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Load the libraries, capture the graphs, and measure how long passes take.

        On CUDA it takes some seconds, and minutes if torch compiles.
        """
        cuda = self._device.type == "cuda"

        def seconds(rows: int) -> float:
            blocks = list(range(-(-rows // BLOCK_TOKENS)))
            begun = time.perf_counter()
            self.run([Piece([0] * rows, 0, blocks, wanted=True)])
            return time.perf_counter() - begun

        seconds(1)
        if cuda and self._graphs is None:
            self._graphs = StepGraphs.captured(
                self._read,
                self._pool.spare,
                texts=self.texts,
                context=self.context,
                recorder=Recorder(self._device),
            )
        self.pace = Pace.measured(seconds, min(1024 if cuda else 64, self.rows, self.context))

    def close(self) -> None:
        """Let go of graphs and memory."""
        self._graphs = None


def _through(
    layer: DecoderLayer,
    x: Tensor,
    turn: tuple[Tensor, Tensor],
    kept: Kept,
    places: Tensor,
    segments: Segments | None,
    parts: Sequence[Part],
) -> Tensor:
    """Rows [rows, width] after a layer: the step's texts first, the parts behind them."""
    q, k, v = layer.attention.project(layer.norm1(x), turn)
    keep(kept, places, k, v)
    mixed = []  # [its rows, heads, head width] each
    if segments is not None:
        mixed.append(attend_to_segments(q[: len(segments.mine)], kept, segments))
    mixed += [attend_to_part(q[part.first : part.end], kept, part) for part in parts]
    x = x + layer.attention.o(torch.cat(mixed).flatten(1))
    after: Tensor = x + layer.mlp(layer.norm2(x))
    return after


def _numbers(parts: Sequence[Piece]) -> list[list[int]]:
    """Ids, positions and slots of all rows."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for piece in parts:
        ids += piece.ids
        for position in range(piece.start, piece.start + len(piece.ids)):
            positions.append(position)
            block, place = divmod(position, BLOCK_TOKENS)
            slots.append(piece.blocks[block] * BLOCK_TOKENS + place)
    return [ids, positions, slots]
