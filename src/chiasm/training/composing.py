"""Which samples of a block make a batch: captions of a length together, damaged pictures replaced.

Everything is planned before a picture is decoded. When one turns out to be damaged, its place is
taken by a sample that had none, or else by one of the block's last batch. So batches are always
full, and which samples are in them depends on the data alone, not on how far decoding was ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np


class Composer:
    """The batches of one block, as numbers of its entries."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        bucket_batches: int,
        chance: np.random.Generator | None,
    ) -> None:
        """Plan.

        lengths: tokens of each entry's longest text; entries come in the order in which they are
            to be used. bucket_batches: batches that are sorted by length together. chance: draws
            the order of the batches of such a bucket; None leaves everything as it lies.
        """
        self._batch_size = batch_size
        self._queue: deque[list[int]] = deque()
        whole = len(lengths) - len(lengths) % batch_size
        pool = batch_size * (bucket_batches if chance is not None else 1)
        for start in range(0, whole, pool):
            bucket = np.arange(start, min(start + pool, whole))
            if chance is not None:
                bucket = bucket[np.argsort(np.asarray(lengths)[bucket], kind="stable")]
            rows = bucket.reshape(-1, batch_size)
            if chance is not None:
                rows = rows[chance.permutation(len(rows))]
            self._queue.extend(row.tolist() for row in rows)
        self.leftover = list(range(whole, len(lengths)))

    def planned(self) -> Iterator[int]:
        """Entries in the order in which they will be wanted, if none is damaged."""
        return chain.from_iterable(list(self._queue))

    def next(self, good: Callable[[int], bool]) -> list[int] | None:
        """The entries of the next batch, or None: `leftover` then holds those without a place.

        good: whether an entry's picture can be read; asked once for each.
        """
        if not self._queue:
            return None
        kept: list[int] = []
        wanted = self._queue.popleft()
        while True:
            kept += [entry for entry in wanted if good(entry)]
            missing = self._batch_size - len(kept)
            if not missing:
                return kept
            while len(self.leftover) < missing and self._queue:
                self.leftover += self._queue.pop()
            if not self.leftover:
                self.leftover = kept
                return None
            wanted, self.leftover = self.leftover[:missing], self.leftover[missing:]
