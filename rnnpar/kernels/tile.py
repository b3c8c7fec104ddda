"""The product that everything rests on: a register tile over weights packed into panels.

A weight matrix (N,K) is packed once into panels of WIDTH output columns, each stored k by k: the tile then reads
its weights as one contiguous stream, whichever the shape. One call of a tile computes

    o[m, 0:WIDTH] = c[m, 0:WIDTH] + sum over k of a[m, k] * panel[k, 0:WIDTH]        for m < ROWS

with all sums in registers. N is padded to whole panels with zeros, K and the rows of `a` are taken as they are.
Panels may hold bfloat16 (the upper half of a float32, as uint16): half the bytes, expanded by a shift on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at
from rnnpar.network import RNN

CALM = 60.0  # exp of it, and of minus it, times any number of outputs, is an ordinary float32
LINE_BYTES = 64  # of a cache line
AHEAD = 128  # steps of k between a weight's prefetch and its use: the time that a line takes from the shared cache
# Fewer rows use a line faster than a prefetch can be issued without being felt: at one row it costs 15% in L2. From
# four on it is free there, and gains 10 to 25% where the weights come from L3.
PREFETCHED = 4
CHAINS = 8  # independent sums that keep two multiply-add units busy for the four cycles that each sum takes


@dataclass(frozen=True)
class TileShape:
    """float32 lanes of a vector register, vectors in a panel's width, rows of a full tile."""

    lanes: int
    vectors: int
    rows: int


def choose_tile(features: dict[str, bool], machine: str) -> TileShape:
    """The tile for a processor: as many sums as its registers hold beside the weights and one broadcast value.

    AVX-512: 32 registers of 16 lanes, 8 x 2 sums. AVX2: 16 registers of 8, 6 x 2 sums. NEON: 32 registers of 4,
    6 x 4 sums. Anything else: 4 x 2 sums of 4 lanes, which 16 registers hold.
    """
    if features.get("avx512f"):
        return TileShape(lanes=16, vectors=2, rows=8)
    if features.get("avx2") and features.get("fma"):
        return TileShape(lanes=8, vectors=2, rows=6)
    if machine in ("aarch64", "arm64"):
        return TileShape(lanes=4, vectors=4, rows=6)
    return TileShape(lanes=4, vectors=2, rows=4)


def processor_features() -> dict[str, bool]:
    """The features that Numba compiles for: this processor's, or those of the one that NUMBA_CPU_NAME or _FEATURES say.

    What a name stands for only LLVM knows: it shows by the registers and instructions of a product that it compiles.
    """
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    if name is None and features is None:
        return dict(llvm.get_host_cpu_features())
    vector, product = "<16 x float>", "@llvm.fmuladd.v16f32"
    text = f"declare {vector} {product}({vector}, {vector}, {vector})\ndefine {vector} @f({vector} %a) {{\n" \
           f"%b = call {vector} {product}({vector} %a, {vector} %a, {vector} %a)\nret {vector} %b\n}}"  # fmt: skip
    compiler = llvm.Target.from_default_triple().create_target_machine(
        cpu=name or llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten() if features is None else features,
    )
    code = compiler.emit_assembly(llvm.parse_assembly(text))
    return {"avx512f": "%zmm" in code, "avx2": "%ymm" in code, "fma": "vfmadd" in code}


TILE = choose_tile(processor_features(), llvm.get_process_triple().split("-")[0])
WIDTH = TILE.lanes * TILE.vectors
ROWS = TILE.rows


def tile_builder(
    builder: ir.IRBuilder, rows: int, shape: TileShape, half: bool, args: list, next_panel: Any = None
) -> None:
    """Emit one tile at the builder's place. args: a, lda, panel, K, c, ldc, o, ldo; `half` for bfloat16 panels.

    With `next_panel`, elements from one panel to the next, the tile is two panels wide.
    """
    a, lda, panel, K, c, ldc, o, ldo = args
    i32, i64 = ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(ir.FloatType(), shape.lanes)
    fma = cgutils.get_or_insert_function(  # fused if the processor can; llvm.fma would call a library if not
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{shape.lanes}f32"
    )
    vectors = shape.vectors if next_panel is None else 2 * shape.vectors
    grid = [(m, v) for m in range(rows) for v in range(vectors)]
    width = shape.lanes * shape.vectors
    splits = max(1, min(4, CHAINS // len(grid)))  # few rows: split the sum over k until there are enough chains
    zero = ir.Constant(vector, None)

    def load(base, offset):
        value = builder.load(builder.bitcast(builder.gep(base, [offset]), vector.as_pointer()))
        value.align = 4
        return value

    def load_weights(offset):
        if not half:
            return load(panel, offset)
        short = ir.VectorType(ir.IntType(16), shape.lanes)
        value = builder.load(builder.bitcast(builder.gep(panel, [offset]), short.as_pointer()))
        value.align = 2
        wide = ir.VectorType(i32, shape.lanes)
        shifted = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * shape.lanes))
        return builder.bitcast(shifted, vector)

    def prefetch(row):
        """Ask for the lines of the panel that come AHEAD steps later. Past the panel's end that is the next panel."""
        byte = ir.IntType(8).as_pointer()
        call = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0"
        )
        for first in range(0, width, LINE_BYTES // (2 if half else 4)):
            address = builder.gep(panel, [builder.add(row, i64(AHEAD * width + first))])
            builder.call(call, [builder.bitcast(address, byte), i32(0), i32(3), i32(1)])  # to be read, kept, data

    def broadcast(m, k):
        value = builder.load(builder.gep(a, [builder.add(builder.mul(lda, i64(m)), k)]))
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, value, i32(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(i32, shape.lanes), [0] * shape.lanes))

    def place(stride, m, v):
        return builder.add(builder.mul(stride, i64(m)), i64(v * shape.lanes))

    def add_products(sums, k, steps):
        """The sums after `steps` values of k, the s-th of them going to the s-th split."""
        sums = dict(sums)
        for s in range(steps):
            at_k = builder.add(k, i64(s))
            row = builder.mul(at_k, i64(width))
            if rows >= PREFETCHED:
                prefetch(row)
            beside = row if next_panel is None else builder.add(row, next_panel)
            weights = [
                load_weights(builder.add(row if v < shape.vectors else beside, i64(v % shape.vectors * shape.lanes)))
                for v in range(vectors)
            ]
            for m in range(rows):
                value = broadcast(m, at_k)
                for v in range(vectors):
                    sums[s, m, v] = builder.call(fma, [value, weights[v], sums[s, m, v]])
        return sums

    def loop(name, sums, start, stop, steps):
        """for k in range(start, stop, steps): sums = add_products(sums, k, steps); returns the sums after it."""
        before = builder.block
        body, end = builder.append_basic_block(name), builder.append_basic_block(name + "_end")
        builder.cbranch(builder.icmp_signed("<", start, stop), body, end)
        builder.position_at_end(body)
        k = builder.phi(i64)
        k.add_incoming(start, before)
        carried = {g: builder.phi(vector) for g in sums}
        for g, phi in carried.items():
            phi.add_incoming(sums[g], before)
        new = add_products(carried, k, steps)
        following = builder.add(k, i64(steps))
        k.add_incoming(following, body)
        for g, phi in carried.items():
            phi.add_incoming(new[g], body)
        builder.cbranch(builder.icmp_signed("<", following, stop), body, end)
        builder.position_at_end(end)
        after = {g: builder.phi(vector) for g in sums}
        for g, phi in after.items():
            phi.add_incoming(sums[g], before)
            phi.add_incoming(new[g], body)
        return after

    sums = {(s, m, v): load(c, place(ldc, m, v)) if s == 0 else zero for s in range(splits) for m, v in grid}
    whole = builder.sub(K, builder.srem(K, i64(splits)))
    sums = loop("k", sums, i64(0), whole, splits)
    if splits > 1:
        sums = loop("rest", sums, whole, K, 1)
    for m, v in grid:
        parts = [sums[s, m, v] for s in range(splits)]
        while len(parts) > 1:  # pairwise: a shorter chain than one after another
            parts = [builder.fadd(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)] + parts[len(parts) & ~1 :]
        store = builder.store(parts[0], builder.bitcast(builder.gep(o, [place(ldo, m, v)]), vector.as_pointer()))
        store.align = 4


def make_tile(rows: int):
    """The tile of that many rows as a Numba intrinsic: tile(a, lda, panel, K, c, ldc, o, ldo), all by pointer."""

    @intrinsic
    def tile(typing, a, lda, panel, K, c, ldc, o, ldo):
        signature = types.void(a, types.intp, panel, types.intp, c, types.intp, o, types.intp)

        def codegen(context, builder, signature, args):
            tile_builder(builder, rows, TILE, signature.args[2].dtype == types.uint16, args)
            return context.get_dummy_value()

        return signature, codegen

    return tile


@intrinsic
def tile_1_wide(typing, a, panel, next_panel, K, c, o):
    """One row by two panels: a[k] is fetched once for both, which in the nearest cache is what the time goes to."""
    signature = types.void(a, panel, types.intp, types.intp, c, o)

    def codegen(context, builder, signature, args):
        a, panel, next_panel, K, c, o = args
        no = ir.Constant(ir.IntType(64), 0)
        tile_builder(
            builder, 1, TILE, signature.args[1].dtype == types.uint16, [a, no, panel, K, c, no, o, no], next_panel
        )
        return context.get_dummy_value()

    return signature, codegen


# A Numba function cannot index a list of functions, hence the names. More rows than ROWS are never asked for.
tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8 = (make_tile(min(rows, ROWS)) for rows in range(1, 9))


@jit(inline="always")
def multiply(a, a0, lda, rows, K, panels, p0, c, c0, ldc, o, o0, ldo):
    """o[m, :WIDTH] = c[m, :WIDTH] + a[m, :K] @ panel for m < rows; a0, p0, c0, o0 say where in the flat arrays.

    lda, ldc, ldo: elements from one row to the next; ldc = 0 adds the same row (a bias) everywhere; c may be o.
    """
    tiles(at(a, a0), lda, rows, at(panels, p0), K, at(c, c0), ldc, at(o, o0), ldo)


@jit()
def tiles(a, lda, rows, panel, K, c, ldc, o, ldo):
    """`multiply`, by pointer: a call with four arrays would move their 28 fields, which one row would feel."""
    m = 0
    while m + ROWS <= rows:
        tile_8(at(a, m * lda), lda, panel, K, at(c, m * ldc), ldc, at(o, m * ldo), ldo)
        m += ROWS
    rest = rows - m
    if rest > 0:
        a, c, o = at(a, m * lda), at(c, m * ldc), at(o, m * ldo)
        if rest == 1:
            tile_1(a, lda, panel, K, c, ldc, o, ldo)
        elif rest == 2:
            tile_2(a, lda, panel, K, c, ldc, o, ldo)
        elif rest == 3:
            tile_3(a, lda, panel, K, c, ldc, o, ldo)
        elif rest == 4:
            tile_4(a, lda, panel, K, c, ldc, o, ldo)
        elif rest == 5:
            tile_5(a, lda, panel, K, c, ldc, o, ldo)
        elif rest == 6:
            tile_6(a, lda, panel, K, c, ldc, o, ldo)
        else:
            tile_7(a, lda, panel, K, c, ldc, o, ldo)


def round_up(n: int, step: int) -> int:
    """The smallest multiple of `step` that is at least n."""
    return -(-n // step) * step


def aligned(size: int, dtype: type = np.float32) -> np.ndarray:
    """Zeros, one-dimensional, that begin at a cache line: a vector load then never touches two."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.zeros(size * itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * itemsize].view(dtype)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16 (ties to even), as uint16; finite values only."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack(weights: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Weights (N,K) as panels, flat: element (n, k) at panel n // WIDTH, then k, then n % WIDTH; N padded by zeros."""
    N, K = weights.shape
    padded = np.zeros((round_up(N, WIDTH), K), np.float32)
    padded[:N] = weights
    panels = padded.reshape(-1, WIDTH, K).transpose(0, 2, 1).ravel()
    return to_bfloat16(panels) if dtype == "bfloat16" else panels


@dataclass(frozen=True)
class Packed:
    """A network's weights, packed once. Two flat arrays and a table of where each matrix begins in them.

    panels: every U, W and V as panels (float32, or bfloat16 as uint16); bias: every b and c, padded to whole panels,
    c by minus infinity, so that softmax gives the padding nothing.
    table: int64, a row a layer (U, W, b) and a last row (V, unused, c): offsets into panels, panels and bias.
    calm: whether no logit can ever be large, since |h| <= 1 and so |o| <= |c| + the sum of |V| over a row.
    """

    panels: np.ndarray
    bias: np.ndarray
    table: np.ndarray
    calm: bool

    @classmethod
    def of(cls, net: RNN, dtype: str = "float32") -> Packed:
        """Pack `net`. ValueError for a dtype that is neither "float32" nor "bfloat16"."""
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {dtype!r}; it must be 'float32' or 'bfloat16'")
        rows = [(layer.U, layer.W, layer.b) for layer in net.layers] + [(net.V, net.V[:0], net.c)]
        matrices = [[pack(U, dtype), pack(W, dtype)] for U, W, _ in rows]
        fill = [0.0] * net.num_layers + [-np.inf]
        biases = [
            np.pad(b, (0, round_up(len(b), WIDTH) - len(b)), constant_values=value)
            for (_, _, b), value in zip(rows, fill, strict=True)
        ]
        table = np.zeros((len(rows), 3), np.int64)
        panel_offset = bias_offset = 0
        for index, (pair, b) in enumerate(zip(matrices, biases, strict=True)):
            table[index] = panel_offset, panel_offset + pair[0].size, bias_offset
            panel_offset += pair[0].size + pair[1].size
            bias_offset += b.size
        panels = aligned(panel_offset, matrices[0][0].dtype)
        np.concatenate([matrix for pair in matrices for matrix in pair], out=panels)
        bias = aligned(bias_offset)
        np.concatenate(biases, out=bias)
        largest = (np.abs(net.c) + np.abs(net.V).sum(axis=1)).max()
        return cls(panels, bias, table, bool(largest < CALM))
