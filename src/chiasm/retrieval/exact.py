"""Exact nearest neighbours in memory, as fast as memory can be read.

One query against n vectors reads all of them once and computes almost nothing, so the time is
n × dimension × bytes a number ÷ memory bandwidth. Half-precision storage halves it. Rounding a
unit vector to half precision moves a cosine by about 1e-5; the *sums* of a half-precision product
are rounded more coarsely (5e-4 near 1), so they only choose candidates, four times as many as asked
for and some, and these are summed again in single precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from chiasm.retrieval.filters import Mask
from chiasm.retrieval.store import Vectors

Rows = npt.NDArray[np.int64]

BYTES_PER_NUMBER = 2
_BLOCK_ROWS = 65_536
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
        scores = self.gather(candidates) @ query
        best = np.lexsort((candidates, -scores))[:limit]
        return candidates[best], scores[best]

    def gather(self, rows: Rows) -> Vectors:
        """float32 [len(rows), dimension], in that order."""
        gathered = np.empty((len(rows), self.dimension), np.float32)
        block_of = rows // _BLOCK_ROWS
        for number in np.unique(block_of):
            here = np.flatnonzero(block_of == number)
            inside = torch.from_numpy(rows[here] - number * _BLOCK_ROWS)
            gathered[here] = self.blocks[number].index_select(0, inside).float().numpy()
        return gathered

    def _candidates(self, query: Vectors, limit: int, mask: Mask | None) -> Rows:
        half = torch.from_numpy(query).to(torch.float16)
        scores = torch.empty(self.count, dtype=torch.float32)
        for number, block in enumerate(self.blocks):
            start = number * _BLOCK_ROWS
            rows = min(_BLOCK_ROWS, self.count - start)
            if rows > 0:
                scores[start : start + rows] = torch.mv(block[:rows], half)  # [rows]
        if mask is not None:
            scores[torch.from_numpy(~mask)] = -torch.inf
        best: Rows = torch.topk(scores, min(limit, self.count), sorted=False).indices.numpy()
        return best if mask is None else best[mask[best]]
