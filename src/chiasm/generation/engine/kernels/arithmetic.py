"""What a decoder layer does to rows, compiled by numba.

A row is one token's state. Weights are float32 or int8; with int8 a row that meets them is rounded
to 16 bits first, with a scale of its own, so that their product is a sum of whole numbers: exact,
and twice as many of them fit a vector. What the 16 bits lose is a hundredth of what the 8 bits of
the weights have lost already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.kernels import tiles
from chiasm.generation.engine.kernels.tiles import (
    ROWS,
    four_scores,
    mix_1,
    mix_8,
    power_of_two,
)

# Parts of `step.forward`, which alone is called from Python: they need no way in from there, and to
# compile those ways takes longer than all that is behind them.
compiled = njit(nogil=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# In the order that is written, but a product and a sum may be rounded once.
fused = njit(
    nogil=True,
    _nrt=False,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    fastmath={"contract"},
)
# Sums may be taken in the order that suits the machine: always the same one for the same length.
reordered = njit(
    nogil=True,
    _nrt=False,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    fastmath={"reassoc", "nsz", "contract", "arcp"},
)

_ROWS_AT_ONCE = 48  # activations that stay in a core's own cache while weights stream past them
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_HALF, _ONE = np.float32(0.5), np.float32(1)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
# Of the Taylor series, enough for the last bit but one between −ln 2 / 2 and ln 2 / 2.
_E2, _E3, _E4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_E5, _E6, _E7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@fused
def exp(x: Any) -> Any:
    """E to a float32, within 2 units in the last place; in plain steps, so that loops of it become
    vectors. Not reordered: the parts of ln 2 would be added up first, and what they are for lost.
    """
    x = min(max(x, _LOWEST), _HIGHEST)
    whole = np.floor(x * _LOG2_E + _HALF)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    series = ((((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _ONE) * r + _ONE
    return series * power_of_two(whole)


# Rows -------------------------------------------------------------------------------------------
#
# Functions take a whole array and where in it to work: a slice would be counted as a user of the
# array, by every thread, and the counting costs more than the work.


@reordered
def _mean_square(x: Any, row: Any, start: Any, width: Any) -> Any:
    total = np.float32(0)
    for i in range(width):
        total += x[row, start + i] * x[row, start + i]
    return total / np.float32(width)


@reordered
def _largest(x: Any, row: Any, width: Any) -> Any:
    largest = np.float32(0)
    for i in range(width):
        largest = max(largest, abs(x[row, i]))
    return largest


@compiled
def normalise(x: Any, row: Any, start: Any, weights: Any, layer: Any, eps: Any, out: Any,
              to: Any) -> None:  # fmt: skip
    """RMSNorm: x / √(mean of x² + ε) · weight, from row `row` of x into row `to` of out."""
    width = weights.shape[1]
    factor = _ONE / np.sqrt(_mean_square(x, row, start, width) + eps)
    for i in range(width):
        out[to, start + i] = x[row, start + i] * factor * weights[layer, i]


def narrow(x: Any, row: Any, width: Any, limit: Any, out: Any, scales: Any) -> None:
    """Write the beginning of a row as products read it, and the scale that restores it."""
    raise NotImplementedError("only numba calls it")


@overload(narrow, jit_options={"nogil": True, "_nrt": False})
def _narrow(x: Any, row: Any, width: Any, limit: Any, out: Any, scales: Any) -> Any:
    if out.dtype == types.float32:

        def copied(x: Any, row: Any, width: Any, limit: Any, out: Any, scales: Any) -> None:
            for i in range(width):
                out[row, i] = x[row, i]

        return copied

    def rounded(x: Any, row: Any, width: Any, limit: Any, out: Any, scales: Any) -> None:
        largest = _largest(x, row, width)
        factor = limit / largest if largest > 0 else _ONE
        for i in range(width):
            out[row, i] = np.int16(np.floor(x[row, i] * factor + _HALF))
        scales[row] = _ONE / factor

    return rounded


@compiled
def turn(x: Any, row: Any, start: Any, cos: Any, sin: Any, position: Any, factor: Any) -> None:
    """Rotary positions for one head, in place; then times `factor`."""
    half = cos.shape[1] // 2
    for i in range(half):
        a, b = x[row, start + i], x[row, start + half + i]
        x[row, start + i] = (a * cos[position, i] - b * sin[position, i]) * factor
        x[row, start + half + i] = (
            b * cos[position, half + i] + a * sin[position, half + i]
        ) * factor


@reordered
def gated(x: Any, row: Any, width: Any) -> None:
    """SiLU(gate) · up, where a row holds first one, then the other; in the gate's place."""
    for i in range(width):
        gate = x[row, i]
        x[row, i] = gate / (_ONE + exp(-gate)) * x[row, width + i]


# Products ---------------------------------------------------------------------------------------


def product(
    weights: Any, scales: Any, layer: Any, x: Any, x_scales: Any, rows: Any, start: Any, end: Any,
    out: Any, adds: Any,
) -> None:  # fmt: skip
    """A layer's tiles from `start` to before `end`, times the first `rows` of x.

    weights: [layers, tiles, steps, ROWS, numbers a step]. scales: float32 [layers, tiles · ROWS].
    x: [rows, width], as `narrow` writes it, with its scales. out: float32 [rows, at least tiles ·
    ROWS], which is set, or added to.
    """
    raise NotImplementedError("only numba calls it")


@overload(product, jit_options={"nogil": True, "_nrt": False})
def _product(
    weights: Any, scales: Any, layer: Any, x: Any, x_scales: Any, rows: Any, start: Any, end: Any,
    out: Any, adds: Any,
) -> Any:  # fmt: skip
    if weights.dtype == types.float32:
        most = tiles.COLUMNS["float32"]
        tile_1, tile_2, tile_most = tiles.single_1, tiles.single_2, tiles.single_3
    else:
        most = tiles.COLUMNS["int8"]
        tile_1, tile_2, tile_most = tiles.integer_1, tiles.integer_2, tiles.integer_2

    def multiplied(
        weights: Any, scales: Any, layer: Any, x: Any, x_scales: Any, rows: Any, start: Any,
        end: Any, out: Any, adds: Any,
    ) -> None:  # fmt: skip
        steps = weights.shape[2]
        w0, w_stride = weights.ctypes.data + layer * weights.strides[0], weights.strides[1]
        s0, xs0 = scales.ctypes.data + layer * scales.strides[0], x_scales.ctypes.data
        x0, xd = x.ctypes.data, x.strides[0]
        o0, od = out.ctypes.data, out.strides[0]
        for first in range(0, rows, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, rows)
            for tile in range(start, end):
                w, s = w0 + tile * w_stride, s0 + tile * ROWS * 4
                for row in range(first, last, most):
                    xr, xs = x0 + row * xd, xs0 + 4 * row
                    o = o0 + row * od + tile * ROWS * 4
                    left = last - row
                    if left >= most:
                        tile_most(w, s, xr, xd, xs, steps, o, od, adds)
                    elif left == 2:
                        tile_2(w, s, xr, xd, xs, steps, o, od, adds)
                    else:
                        tile_1(w, s, xr, xd, xs, steps, o, od, adds)

    return multiplied


# Attention --------------------------------------------------------------------------------------


@reordered
def _softmaxed(scores: Any, rank: Any, length: Any) -> Any:
    """exp(score − the largest), in place; their sum."""
    largest = scores[rank, 0]
    for i in range(length):
        largest = max(largest, scores[rank, i])
    total = np.float32(0)
    for i in range(length):
        scores[rank, i] = exp(scores[rank, i] - largest)
        total += scores[rank, i]
    return total


@compiled
def attend(
    query: Any, keys: Any, values: Any, stride: Any, blocks: Any, text: Any, length: Any,
    scores: Any, rank: Any, of: Any, out: Any, row: Any, start: Any, width: Any,
) -> None:  # fmt: skip
    """One head's attention to the first `length` tokens of a text.

    query, keys, values, of: addresses: of the query, of the head in the first block, and of this
    thread's `scores`. stride: bytes from a block to the next. The mixture of values goes into row
    `row` of out, from `start`.
    """
    steps, token = width // tiles.SINGLE_STEP, width * 4
    number = (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    for block in range(number):
        lies = keys + blocks[text, block] * stride
        for four in range(0, BLOCK_TOKENS, 4):
            at = of + 4 * (block * BLOCK_TOKENS + four)
            four_scores(lies + four * token, token, query, steps, at)
    total = _softmaxed(scores, rank, length)
    for i in range(width):
        out[row, start + i] = 0
    into = out.ctypes.data + row * out.strides[0] + 4 * start
    for block in range(number):
        lies = values + blocks[text, block] * stride
        weights = of + 4 * block * BLOCK_TOKENS
        count = min(BLOCK_TOKENS, length - block * BLOCK_TOKENS)
        column = 0
        while column + 64 <= width:
            mix_8(weights, lies + 4 * column, token, count, into + 4 * column)
            column += 64
        while column < width:
            mix_1(weights, lies + 4 * column, token, count, into + 4 * column)
            column += 8
    factor = _ONE / total
    for i in range(width):
        out[row, start + i] *= factor
