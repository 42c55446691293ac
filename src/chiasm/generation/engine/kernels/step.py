"""One forward pass over the rows of a batch, as every thread of a crew runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.kernels import tiles
from chiasm.generation.engine.kernels.arithmetic import (
    attend,
    compiled,
    gated,
    narrow,
    normalise,
    product,
    turn,
)

_PATIENCE = 20_000  # looks at a counter before the processor is offered to others


class Matrices(NamedTuple):
    """The same linear layer of every decoder layer.

    weights: [layers, tiles, steps, ROWS, numbers a step]. scales: float32 [layers, tiles · ROWS].
    bias: float32 [layers, outs], or [layers, 0].
    """

    weights: Any
    scales: Any
    bias: Any


class Network(NamedTuple):
    """A decoder's weights and measures.

    norm1, norm2: float32 [layers, width]. q_norm, k_norm: [layers, head width], or [layers, 0].
    norm: [width]. head: of one layer. cos, sin: [positions, head width].
    limits: the largest whole number that a rounded row may hold, where it meets qkv, gate_up or
    the head; out; down.
    """

    qkv: Matrices
    out: Matrices
    gate_up: Matrices
    down: Matrices
    head: Matrices
    norm1: Any
    norm2: Any
    q_norm: Any
    k_norm: Any
    norm: Any
    cos: Any
    sin: Any
    eps: Any
    heads: int
    key_heads: int
    inner: int
    limits: Any


class Pool(NamedTuple):
    """Keys and values: float32 [layers, blocks, key heads, BLOCK_TOKENS, head width]."""

    keys: Any
    values: Any


class Rows(NamedTuple):
    """What a pass works on: one row a token.

    x: float32 [rows, width], embeddings, which are overwritten. positions: int32 [rows].
    text: int32 [rows], which text's a row is. blocks: int32 [texts, most blocks], where its keys
    lie. wanted: int32 [n], the rows whose logits are asked for. logits: float32 [n, vocabulary,
    to whole tiles].
    """

    x: Any
    positions: Any
    text: Any
    blocks: Any
    wanted: Any
    logits: Any

    def none(self) -> Rows:
        """The same without a row."""
        x, positions, text, blocks, wanted, logits = self
        return Rows(x[:0], positions[:0], text[:0], blocks, wanted[:0], logits[:0])


class Bench(NamedTuple):
    """Memory to work in, for so many rows.

    narrow: [rows, widest input], float32 or int16; scales: float32 [rows].
    wide: float32 [rows, widest output]; mixed: [rows, heads · head width].
    scores: [threads, context]. meeting: int64 [1], see `_meet`.
    """

    narrow: Any
    scales: Any
    wide: Any
    mixed: Any
    scores: Any
    meeting: Any


@compiled
def _meet(bench: Any, threads: Any, before: Any) -> Any:
    """Wait until every thread is here; how many have arrived, for the next time."""
    counter = bench.meeting.ctypes.data
    after = before + threads
    tiles.arrive(counter)
    looks = 0
    while tiles.look(counter) < after:
        looks += 1
        if looks > _PATIENCE:
            tiles.let_others_run()
    return after


@compiled
def _multiply(matrices: Any, layer: Any, bench: Any, rows: Any, out: Any, adds: Any, rank: Any,
              threads: Any) -> None:  # fmt: skip
    """A thread's share of a linear layer, from the bench's narrow rows."""
    count = matrices.weights.shape[1]
    start, end = rank * count // threads, (rank + 1) * count // threads
    product(
        matrices.weights, matrices.scales, layer, bench.narrow, bench.scales, rows,
        start, end, out, adds,
    )  # fmt: skip
    biased = matrices.bias.shape[1]
    if biased:
        for row in range(rows):
            for i in range(start * tiles.ROWS, min(end * tiles.ROWS, biased)):
                out[row, i] += matrices.bias[layer, i]


@compiled
def _normalised(x: Any, weights: Any, layer: Any, eps: Any, limit: Any, bench: Any, rows: Any,
                rank: Any, threads: Any) -> None:  # fmt: skip
    """A thread's share of the rows, through a norm and ready for a product."""
    for row in range(rank, rows, threads):
        normalise(x, row, np.int64(0), weights, layer, eps, bench.wide, row)
        narrow(bench.wide, row, x.shape[1], limit, bench.narrow, bench.scales)


@compiled
def _place(network: Any, layer: Any, pool: Any, batch: Any, bench: Any, rank: Any,
           threads: Any) -> None:  # fmt: skip
    """Turn this thread's rows by their positions; put keys and values into the pool."""
    size, width = pool.keys.shape[3], pool.keys.shape[4]
    heads, key_heads = network.heads, network.key_heads
    wide, cos, sin = bench.wide, network.cos, network.sin
    one = np.float32(1)
    scale = one / np.sqrt(np.float32(width))
    normed = network.q_norm.shape[1] > 0
    for row in range(rank, len(batch.x), threads):
        position = batch.positions[row]
        block, place = batch.blocks[batch.text[row], position // size], position % size
        for head in range(heads):
            at = head * width
            if normed:
                normalise(wide, row, at, network.q_norm, layer, network.eps, wide, row)
            turn(wide, row, at, cos, sin, position, scale)
        for head in range(key_heads):
            at = (heads + head) * width
            if normed:
                normalise(wide, row, at, network.k_norm, layer, network.eps, wide, row)
            turn(wide, row, at, cos, sin, position, one)
            value = at + key_heads * width
            for i in range(width):
                pool.keys[layer, block, head, place, i] = wide[row, at + i]
                pool.values[layer, block, head, place, i] = wide[row, value + i]


@compiled
def _attend(heads: Any, group: Any, layer: Any, pool: Any, batch: Any, bench: Any, rank: Any,
            threads: Any) -> None:  # fmt: skip
    """A thread's share of the rows' heads, of which a group has the same keys."""
    width = pool.keys.shape[4]
    keys = pool.keys.ctypes.data + layer * pool.keys.strides[0]
    values = pool.values.ctypes.data + layer * pool.values.strides[0]
    stride, head_stride = pool.keys.strides[1], pool.keys.strides[2]
    queries, row_stride = bench.wide.ctypes.data, bench.wide.strides[0]
    scores = bench.scores.ctypes.data + rank * bench.scores.strides[0]
    for item in range(rank, len(batch.x) * heads, threads):
        row, head = item // heads, item % heads
        aside = (head // group) * head_stride
        attend(
            queries + row * row_stride + 4 * head * width, keys + aside, values + aside, stride,
            batch.blocks, batch.text[row], batch.positions[row] + 1,
            bench.scores, rank, scores, bench.mixed, row, head * width, width,
        )  # fmt: skip


# All of it --------------------------------------------------------------------------------------


def sources() -> int:
    """A digest of all that `forward` is compiled from, in 63 bits."""
    hashed = hashlib.sha256(b"%d" % BLOCK_TOKENS)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(path.read_bytes())
    return int.from_bytes(hashed.digest()[:8], "little") >> 1


def _way_in(made_from: int) -> Any:
    """Compiled when it is first called, and kept on disk for the next process.

    numba would take what it finds there as long as this file is the same. It also looks at what a
    function encloses: with the digest of all files a change in any of them is seen.
    """

    def forward(rank: int, threads: int, network: Any, pool: Any, batch: Any, bench: Any) -> int:
        """All layers and the head over a batch; every thread of a crew calls it with its rank.

        `bench.meeting` is 0 before. A row attends to what its text holds up to its own position:
        keys and values of earlier positions must be in the pool, or be rows of this batch.
        The digest of the sources that it was compiled from.
        """
        x, wide, limits, eps = batch.x, bench.wide, network.limits, network.eps
        rows, inner, mixed = len(x), network.inner, bench.mixed.shape[1]
        group = network.heads // network.key_heads
        # Not as literals: for each of those numba would compile what they are given to once more.
        first, sets, adds = np.int64(0), np.bool_(False), np.bool_(True)
        met = first
        for layer in range(network.norm1.shape[0]):
            _normalised(x, network.norm1, layer, eps, limits[0], bench, rows, rank, threads)
            met = _meet(bench, threads, met)
            _multiply(network.qkv, layer, bench, rows, wide, sets, rank, threads)
            met = _meet(bench, threads, met)
            _place(network, layer, pool, batch, bench, rank, threads)
            met = _meet(bench, threads, met)
            _attend(network.heads, group, layer, pool, batch, bench, rank, threads)
            met = _meet(bench, threads, met)
            for row in range(rank, rows, threads):
                narrow(bench.mixed, row, mixed, limits[1], bench.narrow, bench.scales)
            met = _meet(bench, threads, met)
            _multiply(network.out, layer, bench, rows, x, adds, rank, threads)
            met = _meet(bench, threads, met)
            _normalised(x, network.norm2, layer, eps, limits[0], bench, rows, rank, threads)
            met = _meet(bench, threads, met)
            _multiply(network.gate_up, layer, bench, rows, wide, sets, rank, threads)
            met = _meet(bench, threads, met)
            for row in range(rank, rows, threads):
                gated(wide, row, inner)
                narrow(wide, row, inner, limits[2], bench.narrow, bench.scales)
            met = _meet(bench, threads, met)
            _multiply(network.down, layer, bench, rows, x, adds, rank, threads)
            met = _meet(bench, threads, met)
        for n in range(rank, len(batch.wanted), threads):
            normalise(x, np.int64(batch.wanted[n]), first, network.norm, first, eps, wide, n)
            narrow(wide, n, x.shape[1], limits[0], bench.narrow, bench.scales)
        _meet(bench, threads, met)
        _multiply(network.head, first, bench, len(batch.wanted), batch.logits, sets, rank, threads)
        return made_from

    try:
        return njit(nogil=True, _nrt=False, cache=True)(forward)
    except RuntimeError:  # there is no folder that may be written to
        return njit(nogil=True, _nrt=False)(forward)


forward = _way_in(sources())
