"""Threads that run a pass together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.kernels.step import Bench, Network, Pool, Rows, forward


class Crew:
    """As many threads as are told, the caller's among them. One pass at a time."""

    def __init__(self, threads: int, network: Network, *, rows: int, context: int) -> None:
        """rows: of a pass, at most. context: tokens of a text, at most."""
        self.threads = threads
        self.rows = rows
        self._network = network
        self._bench = _bench(network, threads, rows, context)
        self._pass: tuple[Pool, Rows] | None = None
        self._compiled = False
        self._begin = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._ended = threading.Semaphore(0)
        self._others = [
            threading.Thread(target=self._work, args=(n + 1,), name=f"kernels-{n + 1}", daemon=True)
            for n in range(threads - 1)
        ]
        for thread in self._others:
            thread.start()

    def run(self, pool: Pool, batch: Rows) -> None:
        """The pass; its results are in `pool` and `batch.logits`. Blocks."""
        if not self._compiled:  # alone: if that fails, nobody waits for the others for ever
            forward(0, 1, self._network, pool, batch.none(), self._bench)
            self._compiled = True
        self._bench.meeting[0] = 0
        self._pass = (pool, batch)
        for begin in self._begin:
            begin.release()
        forward(0, self.threads, self._network, pool, batch, self._bench)
        for _ in self._others:
            self._ended.acquire()
        self._pass = None

    def close(self) -> None:
        """End the threads."""
        self._pass = None
        for begin in self._begin:
            begin.release()
        for thread in self._others:
            thread.join()

    def _work(self, rank: int) -> None:
        while True:
            self._begin[rank - 1].acquire()
            if self._pass is None:
                return
            pool, batch = self._pass
            forward(rank, self.threads, self._network, pool, batch, self._bench)
            self._ended.release()


def _bench(network: Network, threads: int, rows: int, context: int) -> Bench:
    matrices = (network.qkv, network.out, network.gate_up, network.down)
    _, _, steps, _, each = zip(*(m.weights.shape for m in matrices), strict=True)
    width = max(s * n for s, n in zip(steps, each, strict=True))
    wide = max(m.weights.shape[1] * m.weights.shape[3] for m in matrices)
    kind = np.int16 if network.qkv.weights.dtype == np.int8 else np.float32
    mixed = network.heads * network.cos.shape[1]
    return Bench(
        narrow=np.zeros((rows, width + 32), kind),
        scales=np.ones(rows, np.float32),
        wide=np.zeros((rows, max(wide, network.norm1.shape[1]) + 16), np.float32),
        mixed=np.zeros((rows, mixed), np.float32),
        scores=np.zeros((threads, context + 16), np.float32),
        meeting=np.zeros(1, np.int64),
    )


def empty_pool(network: Any, blocks: int) -> Pool:
    """Memory for the keys and values of so many blocks."""
    layers, width = network.norm1.shape[0], network.cos.shape[1]
    shape = (layers, blocks, network.key_heads, BLOCK_TOKENS, width)
    return Pool(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
