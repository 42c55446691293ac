"""Inner loops for the compiler: products of rows, as explicit operations on vectors.

numba compiles loops of scalars and leaves it to LLVM to find vectors in them, in an order of
summation that LLVM chooses. Where speed and order matter, the loops are therefore built here from
LLVM's own vector operations. They are no machine's in particular: LLVM makes AVX2, AVX-512 or NEON
of them, as the processor has it.

A weight matrix lies in tiles of `ROWS` of its rows, so that what is needed together lies together:
[rows / ROWS, steps, ROWS, numbers a step], a stream that is read from one end to the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4
"""Rows of a weight matrix that are multiplied at once: one store of four numbers an activation."""
COLUMNS = {"float32": 3, "int8": 2}
"""Activations that meet a tile at once, at most: their sums, and what feeds them, must fit the 16
vector registers of AVX2."""
SINGLE_STEP = 8
"""Float32 numbers of a row that are multiplied at once."""
INTEGER_STEP = 16
"""Int8 numbers of a row that are multiplied at once."""

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, SINGLE_STEP)
_INTS = ir.VectorType(_INT, SINGLE_STEP)


def _vector(kind: ir.Type, length: int) -> ir.VectorType:
    return ir.VectorType(kind, length)


def _load(builder: Any, address: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _offset(builder: Any, address: Any, distance: Any) -> Any:
    if isinstance(distance, int):
        distance = ir.Constant(_LONG, distance)
    return builder.add(address, distance)


def _pick(builder: Any, a: Any, b: Any, places: Sequence[int]) -> Any:
    """A vector of the numbers at `places` of a and, behind them, b."""
    return builder.shuffle_vector(a, b, ir.Constant(_vector(_INT, len(places)), list(places)))


def _spread(builder: Any, number: Any, length: int) -> Any:
    """A vector of `length` times the same number."""
    kind = _vector(number.type, length)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(_INT, 0))
    return _pick(builder, one, one, [0] * length)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """A · b + c, rounded once."""
    lanes = a.type.count
    kind = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.v{lanes}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


class _Loop:
    """for step in range(steps), with values that each round hands to the next."""

    def __init__(self, builder: Any, steps: Any, first: Sequence[Any]) -> None:
        self._builder = builder
        self._steps = steps
        before = builder.block
        self._body = builder.append_basic_block("round")
        self._end = builder.append_basic_block("rounds_end")
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.step = builder.phi(_LONG)
        self.step.add_incoming(ir.Constant(_LONG, 0), before)
        self.values = []
        for value in first:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            self.values.append(phi)

    def close(self, last: Sequence[Any]) -> None:
        """End the round; afterwards the code is behind the loop, and `last` its result."""
        builder = self._builder
        following = builder.add(self.step, ir.Constant(_LONG, 1))
        self.step.add_incoming(following, self._body)
        for phi, value in zip(self.values, last, strict=True):
            phi.add_incoming(value, self._body)
        more = builder.icmp_signed("<", following, self._steps)
        builder.cbranch(more, self._body, self._end)
        builder.position_at_end(self._end)


def _four_sums(builder: Any, sums: Sequence[Any]) -> Any:
    """Four vectors of eight → the sums of each, as one float vector of four, in a fixed order.

    Of integers four numbers must fit 32 bits together; all eight need not.
    """
    even, odd = [0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]
    integers = sums[0].type == _INTS
    add = builder.add if integers else builder.fadd

    def paired(a: Any, b: Any) -> Any:
        return add(_pick(builder, a, b, even), _pick(builder, a, b, odd))

    # [a01 a23 a45 a67 b01 …], then [a0123 a4567 b0123 …], then [a b c d].
    all_four = paired(paired(sums[0], sums[1]), paired(sums[2], sums[3]))
    if integers:
        all_four = builder.sitofp(all_four, _FLOATS)
    return builder.fadd(
        _pick(builder, all_four, all_four, even[:4]), _pick(builder, all_four, all_four, odd[:4])
    )


def _made_product(columns: int, *, integers: bool) -> Any:
    """The intrinsic `tile(weights, scales, x, x_stride, x_scales, steps, out, out_stride, adds)`.

    All but `steps` and `adds` are addresses and distances in bytes. It multiplies one tile of ROWS
    weight rows with `columns` activations and stores, or where `adds` is true adds, ROWS numbers
    for each.
    scales: float32, one a weight row; x_scales: one an activation. Neither is read for float32.
    """
    step = INTEGER_STEP if integers else SINGLE_STEP
    size, x_size = (1, 2) if integers else (4, 4)

    @intrinsic
    def tile(
        typing: Any, weights: Any, scales: Any, x: Any, x_stride: Any, x_scales: Any, steps: Any,
        out: Any, out_stride: Any, adds: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(*[types.intp] * 8, types.boolean)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            weights, scales, x, x_stride, x_scales, steps, out, out_stride, adds = arguments
            starts = [
                _offset(builder, x, builder.mul(x_stride, ir.Constant(_LONG, column)))
                for column in range(columns)
            ]
            kind = _INTS if integers else _FLOATS
            zero = ir.Constant(kind, [0 if integers else 0.0] * SINGLE_STEP)
            loop = _Loop(builder, steps, [zero] * (ROWS * columns))
            here = _offset(
                builder, weights, builder.mul(loop.step, ir.Constant(_LONG, ROWS * step * size))
            )
            along = builder.mul(loop.step, ir.Constant(_LONG, step * x_size))
            x_kind = _vector(_SHORT if integers else _FLOAT, step)
            across = [_load(builder, _offset(builder, s, along), x_kind, x_size) for s in starts]
            sums = list(loop.values)
            for row in range(ROWS):
                w_kind = _vector(_BYTE if integers else _FLOAT, step)
                w = _load(builder, _offset(builder, here, row * step * size), w_kind, size)
                if integers:
                    w = builder.sext(w, x_kind)
                for column in range(columns):
                    at = row * columns + column
                    if integers:
                        sums[at] = builder.add(sums[at], _pair_products(builder, w, across[column]))
                    else:
                        sums[at] = _multiply_add(builder, w, across[column], sums[at])
            loop.close(sums)
            for column in range(columns):
                four = [sums[row * columns + column] for row in range(ROWS)]
                made = _four_sums(builder, four)
                if integers:
                    at = _offset(builder, x_scales, 4 * column)
                    each = _spread(builder, _load(builder, at, _FLOAT, 4), ROWS)
                    made = builder.fmul(made, _load(builder, scales, made.type, 4))
                    made = builder.fmul(made, each)
                place = _offset(builder, out, builder.mul(out_stride, ir.Constant(_LONG, column)))
                both = builder.fadd(_load(builder, place, made.type, 4), made)
                _store(builder, builder.select(adds, both, made), place, 4)

        return signature, generate

    return tile


def _pair_products(builder: Any, a: Any, b: Any) -> Any:
    """int16 [16], int16 [16] → int32 [8]: products of neighbours added, one instruction of many
    processors (`pmaddwd`), which LLVM recognises.
    """
    wide = _vector(_INT, INTEGER_STEP)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even = _pick(builder, products, products, range(0, INTEGER_STEP, 2))
    odd = _pick(builder, products, products, range(1, INTEGER_STEP, 2))
    return builder.add(even, odd)


single_1, single_2, single_3 = (_made_product(n, integers=False) for n in (1, 2, 3))
integer_1, integer_2 = (_made_product(n, integers=True) for n in (1, 2))


# Attention --------------------------------------------------------------------------------------


@intrinsic
def four_scores(typing: Any, keys: Any, stride: Any, query: Any, steps: Any, out: Any) -> Any:
    """Store the products of a query with four keys. Addresses and a distance in bytes.

    steps: the width of both / SINGLE_STEP.
    """
    signature = types.void(*[types.intp] * 5)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        keys, stride, query, steps, out = arguments
        starts = [
            _offset(builder, keys, builder.mul(stride, ir.Constant(_LONG, key))) for key in range(4)
        ]
        zero = ir.Constant(_FLOATS, [0.0] * SINGLE_STEP)
        loop = _Loop(builder, steps, [zero] * 4)
        along = builder.mul(loop.step, ir.Constant(_LONG, 4 * SINGLE_STEP))
        q = _load(builder, _offset(builder, query, along), _FLOATS, 4)
        sums = [
            _multiply_add(builder, _load(builder, _offset(builder, s, along), _FLOATS, 4), q, total)
            for s, total in zip(starts, loop.values, strict=True)
        ]
        loop.close(sums)
        _store(builder, _four_sums(builder, sums), out, 4)

    return signature, generate


def _made_mixture(vectors: int) -> Any:
    """The intrinsic `mix(weights, values, stride, count, out)`: out += Σ weight · value.

    For `vectors` · SINGLE_STEP numbers of each of `count` values, `stride` bytes apart.
    """

    @intrinsic
    def mix(typing: Any, weights: Any, values: Any, stride: Any, count: Any, out: Any) -> Any:
        signature = types.void(*[types.intp] * 5)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            weights, values, stride, count, out = arguments
            places = [_offset(builder, out, 4 * SINGLE_STEP * n) for n in range(vectors)]
            first = [_load(builder, place, _FLOATS, 4) for place in places]
            loop = _Loop(builder, count, first)
            at = _offset(builder, weights, builder.mul(loop.step, ir.Constant(_LONG, 4)))
            weight = _spread(builder, _load(builder, at, _FLOAT, 4), SINGLE_STEP)
            value = _offset(builder, values, builder.mul(loop.step, stride))
            sums = []
            for n, total in enumerate(loop.values):
                place = _offset(builder, value, 4 * SINGLE_STEP * n)
                sums.append(
                    _multiply_add(builder, weight, _load(builder, place, _FLOATS, 4), total)
                )
            loop.close(sums)
            for total, place in zip(sums, places, strict=True):
                _store(builder, total, place, 4)

        return signature, generate

    return mix


mix_8 = _made_mixture(8)
mix_1 = _made_mixture(1)


# Small things -----------------------------------------------------------------------------------


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number, a float32 between −126 and 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], _INT)
        biased = builder.add(whole, ir.Constant(_INT, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INT, 23)), _FLOAT)

    return types.float32(types.float32), generate


@intrinsic
def arrive(typing: Any, counter: Any) -> Any:
    """Add one to the int64 at an address, as seen by all threads; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_LONG, 1), "acq_rel")

    return types.int64(types.intp), generate


@intrinsic
def look(typing: Any, counter: Any) -> Any:
    """The int64 at an address, as other threads have left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.intp), generate


@intrinsic
def let_others_run(typing: Any) -> Any:
    """Give the processor to another thread, if one waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "win32":
            kind = ir.FunctionType(_INT, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate
