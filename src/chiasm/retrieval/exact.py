"""Exact nearest neighbours in memory, as fast as memory can be read.

One query against n vectors reads all of them once and computes almost nothing, so the time is
n × dimension × bytes a number ÷ memory bandwidth. Half-precision storage halves it. Rounding a
unit vector to half precision moves a cosine by about 1e-5; the *sums* of a half-precision product
are rounded more coarsely (5e-4 near 1), so they only choose candidates, four times as many as asked
for and some, and these are summed again in single precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from chiasm.retrieval.filters import Mask
from chiasm.retrieval.store import Vectors

Rows = npt.NDArray[np.int64]

BYTES_PER_NUMBER = 2
_BLOCK_ROWS = 65_536
_PIECE_ROWS = 8192
_THREADS = min(4, os.cpu_count() or 1)
_SPARE_CANDIDATES = 128
# Below this share of the rows it is cheaper to gather the wanted ones than to read all.
_GATHER_SHARE = 0.05


class ExactVectors:
    """Vectors in blocks of fixed size: appending never copies what is already there."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._blocks: list[torch.Tensor] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, vectors: Vectors) -> None:
        """Add rows. vectors: float32 [n, dimension], unit length."""
        start = 0
        while start < len(vectors):
            used = self._count % _BLOCK_ROWS
            if used == 0:
                self._blocks.append(torch.empty((_BLOCK_ROWS, self.dimension), dtype=torch.float16))
            taken = min(_BLOCK_ROWS - used, len(vectors) - start)
            half = vectors[start : start + taken].astype(np.float16)
            self._blocks[-1][used : used + taken] = torch.from_numpy(half)
            self._count += taken
            start += taken

    def view(self) -> VectorView:
        """What is there now; appending later does not disturb it."""
        return VectorView(tuple(self._blocks), self._count, self.dimension)


@dataclass(frozen=True)
class VectorView:
    """A fixed number of rows that can be searched while others are appended."""

    blocks: tuple[torch.Tensor, ...]
    count: int
    dimension: int

    def search(self, query: Vectors, limit: int, mask: Mask | None = None) -> tuple[Rows, Vectors]:
        """The `limit` rows with the largest inner product among those in the mask, best first.

        query: float32 [dimension]. mask: bool [count] or None for all.
        Returns rows int64 [≤ limit] and scores float32 [≤ limit]. Equal scores: lower row first.
        """
        if self.count == 0 or limit <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        candidates: Rows | None = None
        if mask is not None:
            wanted = int(np.count_nonzero(mask))
            if wanted == 0:
                return np.empty(0, np.int64), np.empty(0, np.float32)
            if wanted <= max(self.count * _GATHER_SHARE, 4 * limit + _SPARE_CANDIDATES):
                candidates = np.flatnonzero(mask)
        if candidates is None:
            candidates = self._candidates(query, 4 * limit + _SPARE_CANDIDATES, mask)
        scores = _scanners().submit(self._scores, candidates, query).result()
        best = np.lexsort((candidates, -scores))[:limit]
        return candidates[best], scores[best]

    def gather(self, rows: Rows) -> Vectors:
        """float32 [len(rows), dimension], in that order."""
        gathered: Vectors = _scanners().submit(self._gather, rows).result().numpy()
        return gathered

    def _gather(self, rows: Rows) -> torch.Tensor:
        gathered = torch.empty((len(rows), self.dimension), dtype=torch.float32)
        block_of = rows // _BLOCK_ROWS
        for number in np.unique(block_of):
            here = torch.from_numpy(np.flatnonzero(block_of == number))
            inside = torch.from_numpy(rows)[here] - int(number) * _BLOCK_ROWS
            gathered[here] = self.blocks[number].index_select(0, inside).float()
        return gathered

    def _scores(self, rows: Rows, query: Vectors) -> Vectors:
        scores: Vectors = torch.mv(self._gather(rows), torch.from_numpy(query)).numpy()
        return scores

    def _candidates(self, query: Vectors, limit: int, mask: Mask | None) -> Rows:
        half = torch.from_numpy(query).to(torch.float16)
        scores = np.empty(self.count, np.float32)

        def score(rows: range) -> None:
            block, inside = self.blocks[rows.start // _BLOCK_ROWS], rows.start % _BLOCK_ROWS
            products = torch.mv(block[inside : inside + len(rows)], half)  # [rows]
            scores[rows.start : rows.stop] = products.float().numpy()

        list(_scanners().map(score, self._pieces()))
        if mask is not None:
            np.copyto(scores, -np.inf, where=~mask)
        top = torch.topk(torch.from_numpy(scores), min(limit, self.count), sorted=False)
        best: Rows = top.indices.numpy()
        return best if mask is None else best[mask[best]]

    def _pieces(self) -> Iterator[range]:
        """Ranges of rows that lie in one block each, enough of them for every thread."""
        step = min(_BLOCK_ROWS, max(_PIECE_ROWS, -(-self.count // _THREADS)))
        for start in range(0, self.count, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, self.count)
            for first in range(start, stop, step):
                yield range(first, min(first + step, stop))


@cache
def _scanners() -> ThreadPoolExecutor:
    """Threads that read vectors, each by itself.

    Torch's own would do it too, but between two operations they wait by spinning: beside a model
    that is embedding, a search then takes several times as long. A few threads saturate the memory.
    """
    return ThreadPoolExecutor(
        _THREADS,
        thread_name_prefix="scan",
        initializer=lambda: torch.set_num_threads(1),  # of these threads, not of the process
    )
