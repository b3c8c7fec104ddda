"""Instructions that Python has no words for: ordered loads and stores, 128-bit accesses, tiles held in registers.

Each is an `Instruction`: what it becomes on a GPU (LLVM IR or inline PTX, built here), and its twin, a plain Python
function that means the same. Kernels call `ptx.name(...)`; Numba sees the first, an executor on a CPU takes the second
from `TWINS` (the tests do so: tests/executor.py). `order` says what the memory model makes of it:

    weak      an ordinary access: may be kept back, or be served from a cache, until an acquire, release or barrier
    relaxed   goes to the L2 cache, which all blocks share, in one piece; orders nothing else
    acquire   relaxed, and what this thread, and its block after the next barrier, reads later is not older
    release   relaxed, and all that this thread has written or seen before is there for who acquires it

Arrays are one-dimensional, an index counts elements, 128-bit accesses must begin at a multiple of four float32.
Sizes named `rows`, `groups` and `count` are compile-time constants. Source: PTX ISA, "Memory Consistency Model".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

I1, I16, I32, I64, F32 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
VOID = ir.VoidType()
FOUR = 4  # float32 of a 128-bit access
WARP = 32
ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class Twin:
    """What an instruction means, in Python, and how an executor is to treat it.

    `order` as above. `kind` is "load" or "store" for a single ordered access; "warp" where all 32 lanes take part: the
    executor passes `exchange(value, bit)`, which swaps values with the lane whose number differs in that bit; "copy"
    for a copy that is under way until a "wait".
    """

    function: Callable[..., Any]
    order: str
    kind: str


TWINS: dict[str, Twin] = {}


def instruction(twin: Callable[..., Any], order: str = "weak", kind: str = "") -> Callable[[Callable], Any]:
    """Makes an intrinsic of a typing function and files its twin under the same name."""

    def define(typing: Callable) -> Any:
        TWINS[typing.__name__] = Twin(twin, order, kind)
        return intrinsic(typing)

    return define


# --- how the IR is put together ----------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, index_type: Any) -> Any:
    """The address of array[index]."""
    index = context.cast(builder, index, index_type, types.int64)
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, index_type: Any) -> Any:
    """The same as a 64-bit number, which is what inline PTX takes."""
    return builder.ptrtoint(_pointer(context, builder, kind, array, index, index_type), I64)


def _asm(builder: Any, result: Any, text: str, constraints: str, arguments: list[Any], volatile: bool = True) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    if volatile:  # not moved over other accesses by the compiler
        constraints = ",".join(filter(None, (constraints, "~{memory}")))
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=volatile), arguments)


def _split(builder: Any, aggregate: Any, count: int) -> list[Any]:
    return [builder.extract_value(aggregate, index) for index in range(count)]


def _tuple(context: Any, builder: Any, kind: Any, values: list[Any]) -> Any:
    return context.make_tuple(builder, kind, values)


def _flat(array: Any, dtype: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.dtype == dtype


# --- flags: ordered 32-bit words in global memory ----------------------------------------------------------------


def _word_load(order: str, text: str) -> Callable:
    def typing(typingctx, words, index):
        def codegen(context, builder, sig, args):
            address = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
            return _asm(builder, I32, f"{text}.b32 $0, [$1];", "=r,l", [address])

        return (signature(types.int32, words, index), codegen) if _flat(words, types.int32) else None

    typing.__name__ = f"ld_{order}"
    typing.__doc__ = f"words[index], an int32 in global memory: {text}"
    return instruction(lambda words, index: words[index], order, "load")(typing)


def _word_store(name: str, text: str, order: str, twin: Callable) -> Callable:
    def typing(typingctx, words, index, value):
        def codegen(context, builder, sig, args):
            address = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
            _asm(builder, VOID, f"{text} [$0], $1;", "l,r", [address, args[2]])
            return context.get_dummy_value()

        return (signature(types.void, words, index, types.int32), codegen) if _flat(words, types.int32) else None

    typing.__name__ = name
    typing.__doc__ = f"words[index] with value, an int32 in global memory: {text}"
    return instruction(twin, order, "store")(typing)


def _put(array: Any, index: int, value: Any) -> None:
    array[index] = value


def _add(array: Any, index: int, value: Any) -> None:
    array[index] = array[index] + value


ld_acquire = _word_load("acquire", "ld.acquire.gpu.global")
ld_relaxed = _word_load("relaxed", "ld.relaxed.gpu.global")
st_release = _word_store("st_release", "st.release.gpu.global.b32", "release", _put)
st_relaxed = _word_store("st_relaxed", "st.relaxed.gpu.global.b32", "relaxed", _put)
red_release_add = _word_store("red_release_add", "red.release.gpu.global.add.s32", "release", _add)


# --- values that carry their own step number ---------------------------------------------------------------------
# A state is within -1 and 1, or NaN. Such a float32 needs no bit 30, the upper one of its exponent: of what is larger,
# only NaN uses it, and NaN without it is a number between 1 and 2, which no state is. So bit 30 says whether a word is
# the new one or the one before: it is turned around each time that a place is written again. Whoever finds the bit that
# he waits for has the value too: no flag, no fence, and one trip through the L2 cache instead of two. Two places take
# turns, by even and odd numbers; a place that was never written (zero) is older than the numbers 1 and 2.

TAG = 1 << 30
ONE, NAN = 0x3F800000, 0x7FFFFFFF  # the float32 1, and a NaN


def _tag(number: int) -> int:
    return TAG if number + 1 >> 1 & 1 else 0


def _st_tagged(words: Any, index: int, value: Any, number: int) -> None:
    bits = int(np.float32(value).view(np.uint32)) & ~TAG | _tag(int(number))
    words[index] = np.uint32(bits).view(np.int32)


def _tag_of(builder: Any, number: Any) -> Any:
    """The same as _tag, of an int32: number + 1 >> 1 & 1, moved to bit 30."""
    shifted = builder.shl(builder.add(number, ir.Constant(I32, 1)), ir.Constant(I32, 29))
    return builder.and_(shifted, ir.Constant(I32, TAG))


@instruction(_st_tagged, "relaxed", "store")
def st_tagged(typingctx, words, index, value, number):
    """words[index] = value, -1 to 1 or NaN, marked as that of `number`: st.relaxed.gpu.global.b32. words: int32."""

    def codegen(context, builder, sig, args):
        address = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
        bits = builder.and_(builder.bitcast(args[2], I32), ir.Constant(I32, ALL ^ TAG))
        word = builder.or_(bits, _tag_of(builder, args[3]))
        _asm(builder, VOID, "st.relaxed.gpu.global.b32 [$0], $1;", "l,r", [address, word])
        return context.get_dummy_value()

    if _flat(words, types.int32):
        return signature(types.void, words, index, types.float32, types.int32), codegen


def _ld_tagged(words: Any, index: int, stride: int, count: int, number: int) -> tuple:
    _aligned(index, stride)
    found = [int(words[index + j * stride + i]) & ALL for j in range(count) for i in range(FOUR)]
    bits = [word & ~TAG for word in found]
    values = tuple(np.uint32(NAN if each & (TAG - 1) > ONE else each).view(np.float32) for each in bits)
    return values, all(word & TAG == _tag(int(number)) for word in found)


@instruction(_ld_tagged, "relaxed", "load")
def ld_tagged(typingctx, words, index, stride, count, number):
    """(values, ready): four values at each of index, index + stride, ..., `count` times; are all of that number?

    All loads, ld.relaxed.gpu.global.v4.b32, are under way together. words: int32; index and stride multiples of four.
    """
    if not (_flat(words, types.int32) and isinstance(count, types.IntegerLiteral)):
        return None
    size = FOUR * count.literal_value
    values_type = types.UniTuple(types.float32, size)
    result = types.Tuple((values_type, types.boolean))

    def codegen(context, builder, sig, args):
        index, stride, number = args[1], args[2], args[4]
        index = context.cast(builder, index, sig.args[1], types.int64)
        stride = context.cast(builder, stride, sig.args[2], types.int64)
        four = ir.LiteralStructType([I32] * FOUR)
        text = "ld.relaxed.gpu.global.v4.b32 {$0, $1, $2, $3}, [$4];"
        words = []
        for j in range(count.literal_value):
            at = builder.add(index, builder.mul(stride, ir.Constant(I64, j)))
            address = _address(context, builder, sig.args[0], args[0], at, types.int64)
            words += _split(builder, _asm(builder, four, text, "=r,=r,=r,=r,l", [address]), FOUR)
        wanted, older, values = _tag_of(builder, number), ir.Constant(I32, 0), []
        for word in words:
            older = builder.or_(older, builder.xor(word, wanted))
            far = builder.icmp_signed(">", builder.and_(word, ir.Constant(I32, TAG - 1)), ir.Constant(I32, ONE))
            bits = builder.select(far, ir.Constant(I32, NAN), builder.and_(word, ir.Constant(I32, ALL ^ TAG)))
            values.append(builder.bitcast(bits, F32))
        ready = builder.icmp_signed("==", builder.and_(older, ir.Constant(I32, TAG)), ir.Constant(I32, 0))
        inner = _tuple(context, builder, values_type, values)
        flag = context.cast(builder, ready, types.boolean, types.boolean)
        return _tuple(context, builder, result, [inner, flag])

    return signature(result, words, index, stride, count, types.int32), codegen


# --- 128 bits at a time ------------------------------------------------------------------------------------------


def _aligned(*indices: int, to: int = FOUR) -> None:
    """A GPU stops with an error where a wide access does not begin at a multiple of its width."""
    if any(index % to for index in indices):
        raise ValueError(f"a wide access begins at {indices}; each must be a multiple of {to}")


def _copy4(target: Any, index: int, source: Any, at: int) -> None:
    _aligned(index, at)
    for i in range(FOUR):
        target[index + i] = source[at + i]


@instruction(_copy4)
def copy4(typingctx, target, index, source, at):
    """target[index : index + 4] = source[at : at + 4], from global to shared memory: a load and a store of 128 bits."""

    def codegen(context, builder, sig, args):
        to = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
        source = _address(context, builder, sig.args[2], args[2], args[3], sig.args[3])
        text = (
            "{.reg .u64 s; .reg .f32 a, b, c, d; cvta.to.shared.u64 s, $0;"
            " ld.global.v4.f32 {a, b, c, d}, [$1]; st.shared.v4.f32 [s], {a, b, c, d};}"
        )  # fmt: skip
        _asm(builder, VOID, text, "l,l", [to, source])
        return context.get_dummy_value()

    if _flat(target, types.float32) and _flat(source, types.float32):
        return signature(types.void, target, index, source, at), codegen


@instruction(_copy4, kind="copy")
def copy4_async(typingctx, target, index, source, at):
    """target[index : index + 4] = source[at : at + 4], from global memory (past the L1 cache) to shared memory.

    Does not wait: many are under way at once, and take no registers; `copies_wait` waits. sm_80 and newer.
    """

    def codegen(context, builder, sig, args):
        to = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
        source = _address(context, builder, sig.args[2], args[2], args[3], sig.args[3])
        text = (
            "{.reg .u64 s; .reg .u32 t; cvta.to.shared.u64 s, $0; cvt.u32.u64 t, s;"
            " cp.async.cg.shared.global [t], [$1], 16;}"
        )  # fmt: skip
        _asm(builder, VOID, text, "l,l", [to, source])
        return context.get_dummy_value()

    if _flat(target, types.float32) and _flat(source, types.float32):
        return signature(types.void, target, index, source, at), codegen


@instruction(lambda: None, kind="wait")
def copies_wait(typingctx):
    """Waits for this thread's copy4_async: only then are the copies there, and for this thread alone."""

    def codegen(context, builder, sig, args):
        _asm(builder, VOID, "cp.async.wait_all;", "", [])
        return context.get_dummy_value()

    return signature(types.void), codegen


@cuda.jit(device=True)
def no_wait():
    """In the place of copies_wait where copies are loads and stores."""


def _store4s(target: Any, index: int, stride: int, values: tuple) -> None:
    _aligned(index, stride)
    for i, value in enumerate(values):
        target[index + i // FOUR * stride + i % FOUR] = value


@instruction(_store4s)
def store4s(typingctx, target, index, stride, values):
    """target[index + j * stride + i] = values[4 j + i], i < 4: a store of 128 bits for each four."""
    if not _flat(target, types.float32) or not isinstance(values, types.UniTuple):
        return None

    def codegen(context, builder, sig, args):
        parts = _split(builder, args[3], values.count)
        index = context.cast(builder, args[1], sig.args[1], types.int64)
        stride = context.cast(builder, args[2], sig.args[2], types.int64)
        for j in range(values.count // FOUR):
            at = builder.add(index, builder.mul(stride, ir.Constant(I64, j)))
            vector = ir.Constant(ir.VectorType(F32, FOUR), ir.Undefined)
            for i in range(FOUR):
                vector = builder.insert_element(vector, parts[FOUR * j + i], ir.Constant(I32, i))
            pointer = _pointer(context, builder, sig.args[0], args[0], at, types.int64)
            builder.store(
                vector,
                builder.bitcast(pointer, ir.VectorType(F32, FOUR).as_pointer(pointer.type.addrspace)),
                align=16,
            )
        return context.get_dummy_value()

    return signature(types.void, target, index, stride, values), codegen


# --- tiles: a block of a matrix in a thread's registers ----------------------------------------------------------
# A tile is a tuple, so that every element is a value of its own: the compiler cannot but keep it in a register. It
# has `rows` rows of `groups` times four columns. The columns of a group lie side by side, and groups `spread` apart,
# so that the threads of a warp read 512 bytes side by side.


def _tile_load(array: Any, index: int, pitch: int, spread: int, rows: int, groups: int) -> tuple:
    _aligned(index, pitch, spread)
    return tuple(
        array[index + r * pitch + g * spread + i] for r in range(rows) for g in range(groups) for i in range(FOUR)
    )


@instruction(_tile_load)
def tile_load(typingctx, array, index, pitch, spread, rows, groups):
    """The tile whose rows begin at array[index], array[index + pitch], ...; loads of 128 bits, float32."""
    return _tile_loader(array, index, pitch, spread, rows, groups, types.float32, F32, FOUR)


def _tile_load_bf16(array: Any, index: int, pitch: int, spread: int, rows: int, groups: int) -> tuple:
    _aligned(index, pitch, spread, to=FOUR // 2)
    return tuple(
        array[index + r * pitch + g * spread + i] for r in range(rows) for g in range(groups) for i in range(FOUR // 2)
    )


@instruction(_tile_load_bf16)
def tile_load_bf16(typingctx, array, index, pitch, spread, rows, groups):
    """The same of bfloat16: an int32 holds two columns, the left one in its lower half; loads of 64 bits."""
    return _tile_loader(array, index, pitch, spread, rows, groups, types.int32, I32, FOUR // 2)


def _tile_loader(array, index, pitch, spread, rows, groups, dtype, element, width):
    if not (_flat(array, dtype) and all(isinstance(size, types.IntegerLiteral) for size in (rows, groups))):
        return None
    shape = rows.literal_value, groups.literal_value
    tile = types.UniTuple(dtype, shape[0] * shape[1] * width)

    def codegen(context, builder, sig, args):
        index, pitch, spread = (
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(args[1:4], sig.args[1:4], strict=True)
        )
        values = []
        for r in range(shape[0]):
            for g in range(shape[1]):
                at = builder.add(index, builder.mul(pitch, ir.Constant(I64, r)))
                at = builder.add(at, builder.mul(spread, ir.Constant(I64, g)))
                pointer = _pointer(context, builder, sig.args[0], args[0], at, types.int64)
                kind = ir.VectorType(element, width).as_pointer(pointer.type.addrspace)
                loaded = builder.load(builder.bitcast(pointer, kind), align=4 * width)
                values += [builder.extract_element(loaded, ir.Constant(I32, i)) for i in range(width)]
        return _tuple(context, builder, tile, values)

    return signature(tile, array, index, pitch, spread, rows, groups), codegen


def _zeros(rows: int) -> tuple:
    return (np.float32(0),) * rows


@instruction(_zeros)
def zeros(typingctx, rows):
    """`rows` sums of nothing."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    sums = types.UniTuple(types.float32, rows.literal_value)

    def codegen(context, builder, sig, args):
        return _tuple(context, builder, sums, [ir.Constant(F32, 0)] * sums.count)

    return signature(sums, rows), codegen


def _tile_times(tile: tuple, h: tuple, sums: tuple) -> tuple:
    K = len(h)
    dot = (sum(float(tile[r * K + k]) * float(h[k]) for k in range(K)) for r in range(len(sums)))
    return tuple(np.float32(total + value) for total, value in zip(sums, dot, strict=True))


@instruction(_tile_times)
def tile_times(typingctx, tile, h, sums):
    """sums[row] + the sum of tile[row, k] h[k] over this thread's columns, for each row: fused multiply-adds."""
    if sums.count * h.count != tile.count:
        return None

    def codegen(context, builder, sig, args):
        weights, state, totals = (_split(builder, arg, kind.count) for arg, kind in zip(args, sig.args, strict=True))
        return _tuple(context, builder, sums, _products(builder, weights, state, totals))

    return signature(sums, tile, h, sums), codegen


def _products(builder: Any, weights: list[Any], state: list[Any], totals: list[Any]) -> list[Any]:
    K = len(state)
    for k in range(K):  # row after row, so that neighbours do not wait for each other
        totals = [builder.fma(weights[r * K + k], state[k], total) for r, total in enumerate(totals)]
    return totals


def _outer(a: tuple, b: tuple, sums: tuple) -> tuple:
    pairs = ((left, right) for left in a for right in b)
    return tuple(np.float32(total + float(x) * float(z)) for total, (x, z) in zip(sums, pairs, strict=True))


@instruction(_outer)
def outer(typingctx, a, b, sums):
    """sums[i, j] + a[i] b[j]: what a thread of a matrix product does with each column of its tile."""
    if sums.count != a.count * b.count:
        return None

    def codegen(context, builder, sig, args):
        left, right, totals = (_split(builder, arg, kind.count) for arg, kind in zip(args, sig.args, strict=True))
        pairs = [(x, z) for x in left for z in right]
        totals = [builder.fma(x, z, total) for (x, z), total in zip(pairs, totals, strict=True)]
        return _tuple(context, builder, sums, totals)

    return signature(sums, a, b, sums), codegen


def _halves(word: Any) -> tuple[np.float32, np.float32]:
    bits = int(word) & ALL
    return np.uint32(bits << 16 & ALL).view(np.float32), np.uint32(bits & 0xFFFF0000).view(np.float32)


def _unpack(tile: tuple) -> tuple:
    return tuple(half for word in tile for half in _halves(word))


@instruction(_unpack)
def unpack_bf16(typingctx, tile):
    """The float32 that a tile of bfloat16 stands for."""
    wide = types.UniTuple(types.float32, 2 * tile.count)

    def codegen(context, builder, sig, args):
        return _tuple(context, builder, wide, _widen(builder, _split(builder, args[0], tile.count)))

    return signature(wide, tile), codegen


@instruction(lambda tile, h, sums: _tile_times(_unpack(tile), h, sums))
def tile_times_bf16(typingctx, tile, h, sums):
    """tile_times of a tile of bfloat16, which is unpacked on the way: a shift and a mask a word."""
    if sums.count * h.count != 2 * tile.count:
        return None

    def codegen(context, builder, sig, args):
        words, state, totals = (_split(builder, arg, kind.count) for arg, kind in zip(args, sig.args, strict=True))
        return _tuple(context, builder, sums, _products(builder, _widen(builder, words), state, totals))

    return signature(sums, tile, h, sums), codegen


def _widen(builder: Any, words: list[Any]) -> list[Any]:
    """By inline PTX, so that the compiler does not do it once, before a loop, and keep twice the registers."""
    pair = ir.LiteralStructType([F32, F32])
    function = ir.FunctionType(pair, [I32])
    asm = ir.InlineAsm(function, "shl.b32 $0, $2, 16; and.b32 $1, $2, -65536;", "=f,=f,r", side_effect=True)
    return [half for word in words for half in _split(builder, builder.call(asm, [word]), 2)]


def _corner(part: int, spread: int) -> int:
    return part // FOUR * spread + part % FOUR


def _tile_store(C, c0, ldc, row, M, column, N, spread, sums):
    side = int(len(sums) ** 0.5)
    for at, value in enumerate(sums):
        r, n = row + _corner(at // side, spread), column + _corner(at % side, spread)
        if r < M and n < N:
            C[c0 + r * ldc + n] = value


@instruction(_tile_store)
def tile_store(typingctx, C, c0, ldc, row, M, column, N, spread, sums):
    """C[row + i, column + j] = sums[i, j], where that is inside of M x N.

    The square of sums consists of 4 x 4 pieces, `spread` rows and columns apart. C begins at c0 with `ldc` to a row.
    """
    side = round(sums.count**0.5)

    def codegen(context, builder, sig, args):
        def integer(which):
            return context.cast(builder, args[which], sig.args[which], types.int64)

        def corner(start, part):
            shift = builder.mul(integer(7), ir.Constant(I64, part // FOUR))
            return builder.add(start, builder.add(shift, ir.Constant(I64, part % FOUR)))

        values = _split(builder, args[8], sums.count)
        columns = [corner(integer(5), part) for part in range(side)]
        inside = [builder.icmp_signed("<", n, integer(6)) for n in columns]
        for i in range(side):
            r = corner(integer(3), i)
            start = builder.add(integer(1), builder.mul(r, integer(2)))
            with builder.if_then(builder.icmp_signed("<", r, integer(4))):
                for j in range(side):
                    with builder.if_then(inside[j]):
                        at = builder.add(start, columns[j])
                        pointer = _pointer(context, builder, sig.args[0], args[0], at, types.int64)
                        builder.store(values[i * side + j], pointer)
        return context.get_dummy_value()

    return signature(types.void, C, c0, ldc, row, M, column, N, spread, sums), codegen


# --- sums over a warp --------------------------------------------------------------------------------------------


def _lane_row(lane: int, rows: int) -> int:
    """Which row's sum `warp_sums` leaves in a lane; `rows` where it leaves none, or one that another lane has too."""
    start, stop, size, bit = 0, rows, rows, 16
    while bit > 0:
        if size > 1:
            size = (size + 1) // 2
            if lane & bit:
                start += size
            else:
                stop = min(stop, start + size)
        elif lane & bit:
            stop = start
        bit //= 2
    return start if start < stop else rows


lane_row = cuda.jit(device=True)(_lane_row)


def _warp_sums(sums: tuple, lane: int, exchange: Callable[[Any, int], Any]) -> Any:
    values, bit = list(sums), 16
    while bit:
        half = (len(values) + 1) // 2
        if len(values) > 1:
            low, high = values[:half], values[half:] + [np.float32(0)] * (2 * half - len(values))
            keep, give = (high, low) if lane & bit else (low, high)
            values = [mine + exchange(theirs, bit) for mine, theirs in zip(keep, give, strict=True)]
        else:
            values = [values[0] + exchange(values[0], bit)]
        bit //= 2
    return values[0]


def _two_warp_sums(sums: tuple, others: tuple, lane: int, exchange: Callable[[Any, int], Any]) -> tuple:
    return _warp_sums(sums, lane, exchange), _warp_sums(others, lane, exchange)


@instruction(_warp_sums, kind="warp")
def warp_sums(typingctx, sums, lane):
    """Adds up `sums` over the 32 lanes of a warp; lane l gets the total of row lane_row(l, rows). 32 rows at most.

    Lanes swap halves of what they have: 16 rows take 8 + 4 + 2 + 1 + 1 = 16 shuffles, and not 16 times 5.
    """
    if not isinstance(sums, types.UniTuple) or not 1 <= sums.count <= WARP:
        return None

    def codegen(context, builder, sig, args):
        lane = context.cast(builder, args[1], sig.args[1], types.int32)
        return _sums_over_lanes(builder, [_split(builder, args[0], sums.count)], lane)[0]

    return signature(types.float32, sums, lane), codegen


@instruction(_two_warp_sums, kind="warp")
def two_warp_sums(typingctx, sums, others, lane):
    """(warp_sums(sums, lane), warp_sums(others, lane)), as many of each: neither waits for the other's shuffles."""
    if not isinstance(sums, types.UniTuple) or not 1 <= sums.count <= WARP or sums != others:
        return None
    result = types.UniTuple(types.float32, 2)

    def codegen(context, builder, sig, args):
        lane = context.cast(builder, args[2], sig.args[2], types.int32)
        totals = _sums_over_lanes(builder, [_split(builder, arg, sums.count) for arg in args[:2]], lane)
        return _tuple(context, builder, result, totals)

    return signature(result, sums, others, lane), codegen


def _sums_over_lanes(builder: Any, groups: list[list[Any]], lane: Any) -> list[Any]:
    """What _warp_sums does, for groups of equally many values side by side: each swap of one and then of the next."""
    bit = 16
    while bit:
        upper = builder.icmp_signed("!=", builder.and_(lane, ir.Constant(I32, bit)), ir.Constant(I32, 0))
        groups = [_swapped(builder, values, bit, upper) for values in groups]
        bit //= 2
    return [values[0] for values in groups]


def _swapped(builder: Any, values: list[Any], bit: int, upper: Any) -> list[Any]:
    half = (len(values) + 1) // 2
    if len(values) > 1:
        high = values[half:] + [ir.Constant(F32, 0)] * (2 * half - len(values))
        pairs = list(zip(values[:half], high, strict=True))
        keep = [builder.select(upper, b, a) for a, b in pairs]
        give = [builder.select(upper, a, b) for a, b in pairs]
    else:
        keep = give = values
    return [builder.fadd(mine, _butterfly(builder, theirs, bit)) for mine, theirs in zip(keep, give, strict=True)]


def _butterfly(builder: Any, value: Any, bit: int) -> Any:
    text = f"shfl.sync.bfly.b32 $0, $1, {bit}, 31, -1;"
    return _asm(builder, F32, text, "=f,f", [value])


# --- tanh --------------------------------------------------------------------------------------------------------


@instruction(lambda x: np.float32(np.tanh(np.float64(x))))
def tanh_approx(typingctx, x):
    """tanh in one instruction (sm_75 and newer), to about 5e-4: tanh.approx.f32. The twin is exact.

    No method uses it: 5e-4 is over the bound of every float32 method. `make check-gpu` measures it beside libdevice's
    tanh, which they use (study/gpu_checks.py).
    """

    def codegen(context, builder, sig, args):
        return _asm(builder, F32, "tanh.approx.f32 $0, $1;", "=f,f", [args[0]], volatile=False)

    return signature(types.float32, types.float32), codegen
