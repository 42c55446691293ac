"""Passes of a decoder over the rows of many texts, with their keys and values in one pool."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.kernels.crew import Crew, empty_pool
from chiasm.generation.engine.kernels.network import Precision, packed
from chiasm.generation.engine.kernels.step import Rows
from chiasm.generation.engine.passes import Pace, Piece, embedded
from chiasm.models.decoder import Decoder

MOST_ROWS = 256
"""Rows of one pass: more would gain nothing, and hold up others."""
MOST_TEXTS = 16
"""Texts of one pass whose logits may be wanted."""
_POOL_BYTES = 512 * 1024 * 1024


class KernelPasses:
    """See `chiasm.generation.engine.passes.Passes`."""

    rows = MOST_ROWS

    def __init__(
        self, decoder: Decoder, *, precision: Precision, pool_bytes: int | None, texts: int
    ) -> None:
        """pool_bytes: for keys and values; None is 512 MiB. texts: 0 is `MOST_TEXTS`."""
        self._decoder = decoder
        self.texts = texts or MOST_TEXTS
        config = decoder.config
        self._network = packed(decoder, precision)
        self._vocabulary = config.vocab_size
        self.block_bytes = (
            2 * 4 * BLOCK_TOKENS * config.num_hidden_layers
            * config.num_key_value_heads * config.head_dim
        )  # fmt: skip
        # A text that is read alone must find room, and more than a context's worth is for others.
        whole = -(-config.max_position_embeddings // BLOCK_TOKENS)
        pool_bytes = _POOL_BYTES if pool_bytes is None else pool_bytes
        self.blocks = max(pool_bytes // self.block_bytes, 4)
        self.context = min(config.max_position_embeddings, self.blocks * BLOCK_TOKENS)
        self._table = min(whole, self.blocks)
        self._pool = empty_pool(self._network, self.blocks)
        # A little more than whole pages, else rows of it would compete for the same cache lines.
        width = self._network.head.weights.shape[1] * self._network.head.weights.shape[3]
        self._logits = np.zeros((self.texts, width + 16), np.float32)
        self._crew = Crew(
            torch.get_num_threads(), self._network, rows=MOST_ROWS, context=self.context
        )
        self.pace = Pace()

    def run(self, pieces: Sequence[Piece]) -> list[Tensor | None]:
        """See `Passes.run`."""
        lengths = [len(piece.ids) for piece in pieces]
        ends = np.cumsum(lengths)
        blocks = np.zeros((len(pieces), self._table), np.int32)
        positions = np.empty(int(ends[-1]), np.int32)
        for number, piece in enumerate(pieces):
            blocks[number, : len(piece.blocks)] = piece.blocks
            first = int(ends[number]) - lengths[number]
            positions[first : ends[number]] = range(piece.start, piece.start + lengths[number])
        wanted = [int(end) - 1 for end, piece in zip(ends, pieces, strict=True) if piece.wanted]
        if len(positions) > MOST_ROWS or len(wanted) > len(self._logits):  # no kernel would notice
            raise ValueError(f"{len(positions)} rows with {len(wanted)} logits are too many")
        logits = self._logits[: len(wanted)]
        rows = Rows(
            x=embedded(self._decoder, pieces).numpy(),
            positions=positions,
            text=np.repeat(np.arange(len(pieces), dtype=np.int32), lengths),
            blocks=blocks,
            wanted=np.array(wanted, np.int32),
            logits=logits,
        )
        self._crew.run(self._pool, rows)
        made = iter(torch.from_numpy(logits[:, : self._vocabulary]))
        return [next(made) if piece.wanted else None for piece in pieces]

    def copy_block(self, source: int, target: int) -> None:
        """Keys and values of one block into another."""
        self._pool.keys[:, target] = self._pool.keys[:, source]
        self._pool.values[:, target] = self._pool.values[:, source]

    def warm_up(self) -> None:
        """Compile, touch all weights, and measure how long passes take.

        Takes some ten seconds when the kernels are compiled for the first time on a machine.
        """

        def seconds(rows: int) -> float:
            block = list(range(-(-rows // BLOCK_TOKENS)))
            begun = time.perf_counter()
            self.run([Piece([0] * rows, 0, block, wanted=True)])
            return time.perf_counter() - begun

        self.pace = Pace.measured(seconds, min(64, self.context))

    def close(self) -> None:
        """End the threads."""
        self._crew.close()
