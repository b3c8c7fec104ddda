"""The register tile, its choice for a processor, and the packing."""

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from rnnpar.kernels import tile
from rnnpar.kernels.forward import accumulate
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at
from rnnpar.network import RNN


@jit()
def product(a, lda, rows, K, panels, q1, c, ldc, o, ldo):
    for q in range(q1):
        p, n = q * K * tile.WIDTH, q * tile.WIDTH
        tile.multiply(a, 0, lda, rows, K, panels, p, c, n, ldc, o, n, ldo)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 37])
@pytest.mark.parametrize("rows", [*range(1, 10), 17])
def test_product_equals_float64(rng, rows, K, dtype):
    N = 33
    ld = tile.round_up(N, tile.WIDTH)
    a = rng.standard_normal((rows, K)).astype(np.float32)
    w = rng.standard_normal((N, K)).astype(np.float32)
    if dtype == "bfloat16":  # weights that bfloat16 holds exactly: the arithmetic is then float32's
        w = (tile.to_bfloat16(w).astype(np.uint32) << 16).view(np.float32)
    c = np.zeros((rows, ld), np.float32)
    c[:, :N] = rng.standard_normal((rows, N))
    o = np.full((rows + 1, ld), np.nan, np.float32)
    product(a.ravel(), K, rows, K, tile.pack(w, dtype), ld // tile.WIDTH, c.ravel(), ld, o.ravel(), ld)
    assert np.allclose(o[:rows, :N], c[:, :N] + a.astype(np.float64) @ w.T, rtol=1e-5, atol=1e-5)
    assert np.isnan(o[rows]).all(), "a row beyond the last was written"


@jit()
def wide_product(a, K, panels, c, o):
    tile.tile_1_wide(at(a, 0), at(panels, 0), K * tile.WIDTH, K, at(c, 0), at(o, 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("K", [1, 2, 3, 37, 64])
def test_two_panels_at_once_are_what_each_is_by_itself(rng, K, dtype):
    """But for the order of the sums: with twice the columns there are half as many sums side by side."""
    N = 2 * tile.WIDTH
    a = rng.standard_normal(K).astype(np.float32)
    w = rng.standard_normal((N, K)).astype(np.float32)
    if dtype == "bfloat16":
        w = (tile.to_bfloat16(w).astype(np.uint32) << 16).view(np.float32)
    c = rng.standard_normal(N).astype(np.float32)
    o = np.full(N + 1, np.nan, np.float32)
    wide_product(a, K, tile.pack(w, dtype), c, o)
    assert np.allclose(o[:N], c + w.astype(np.float64) @ a, rtol=1e-5, atol=1e-5)
    assert np.isnan(o[N]), "an element beyond the last was written"


@jit()
def accumulated(h, lda, count, H, k0, k1, panels, states, ld, q0, q1, backwards, unit):
    accumulate(at(h, 0), lda, count, H, k0, k1, at(panels, 0), at(states, 0), ld, q0, q1, backwards, unit)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(("count", "unit"), [(1, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("H", [1, tile.WIDTH, 2 * tile.WIDTH + 3, 5 * tile.WIDTH])
def test_a_step_may_be_summed_up_in_parts(rng, H, count, unit, backwards):
    """Some columns of W for some of its rows, then the others, in any order: in the end all of W h is there."""
    Q = tile.round_up(H, tile.WIDTH) // tile.WIDTH
    ld = Q * tile.WIDTH
    W = rng.standard_normal((H, H)).astype(np.float32)
    h = rng.standard_normal((count, H)).astype(np.float32)
    start = rng.standard_normal((count, ld)).astype(np.float32)
    states, panels = start.ravel().copy(), tile.pack(W)
    k0, k1, q = H // 3, 2 * H // 3, Q // 2
    for part in ((k0, k1, q, Q), (0, k0, q, Q), (k1, H, q, Q), (k1, k1, 0, Q), (0, H, 0, q)):
        accumulated(h.ravel(), H, count, H, part[0], part[1], panels, states, ld, part[2], part[3], backwards, unit)
    wanted = start[:, :H] + h.astype(np.float64) @ W.T
    assert np.allclose(states.reshape(count, ld)[:, :H], wanted, rtol=1e-5, atol=1e-4)


def test_bfloat16_rounds_to_nearest_even():
    def nearest(value):
        return (tile.to_bfloat16(np.float32([value])).astype(np.uint32) << 16).view(np.float32)[0]

    assert nearest(1.0) == 1.0
    assert nearest(1 + 2**-8) == 1.0  # half way: to the even neighbour
    assert nearest(1 + 3 * 2**-8) == 1 + 2**-6
    assert nearest(1 + 2**-8 + 2**-20) == 1 + 2**-7
    assert nearest(-3.14159) == -3.140625


def test_packed_network_holds_every_weight():
    net = RNN.random(5, tile.WIDTH + 3, 7, num_layers=2)
    packed = tile.Packed.of(net)
    u, w, b = packed.table[1]
    n, k = tile.WIDTH + 1, 4
    H = net.hidden_size
    assert packed.panels[u + (n // tile.WIDTH * H + k) * tile.WIDTH + n % tile.WIDTH] == net.layers[1].U[n, k]
    assert packed.panels[w + (n // tile.WIDTH * H + k) * tile.WIDTH + n % tile.WIDTH] == net.layers[1].W[n, k]
    assert np.array_equal(packed.bias[b : b + H], net.layers[1].b)
    assert packed.panels.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="float16"):
        tile.Packed.of(net, "float16")


TARGETS = {
    "avx512": ("x86_64-unknown-linux-gnu", "skylake-avx512", {"avx512f": True}, "zmm"),
    "avx2": ("x86_64-unknown-linux-gnu", "haswell", {"avx2": True, "fma": True}, "ymm"),
    "neon": ("aarch64-unknown-linux-gnu", "neoverse-n1", {}, "fmla"),
}


def assembly_of(name: str, rows: int | None = None, wide: bool = False) -> tuple[tile.TileShape, list[str]]:
    """The tile of a processor that need not be here, and its assembly for that many rows (all that it has)."""
    triple, cpu, features, _ = TARGETS[name]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    shape = tile.choose_tile(features, triple.split("-")[0])
    module = ir.Module()
    module.triple = triple
    pointer, i64 = ir.FloatType().as_pointer(), ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [pointer, i64, pointer, i64, pointer, i64, pointer, i64])
    function = ir.Function(module, kind, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    arguments = list(function.args)  # of a wide tile, of one row, the stride of the rows is free for the panels'
    tile.tile_builder(builder, rows or shape.rows, shape, False, arguments, arguments[1] if wide else None)
    builder.ret_void()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return shape, machine.emit_assembly(parsed).splitlines()


@pytest.mark.parametrize("name", TARGETS)
def test_tile_of_each_processor_compiles_without_spilling(name):
    """The largest tile: vector code, and no sum on the stack."""
    shape, assembly = assembly_of(name)
    multiply_adds = [line for line in assembly if "fmadd" in line or "fmla" in line]
    assert len(multiply_adds) >= shape.rows * shape.vectors
    assert any(TARGETS[name][3] in line for line in multiply_adds)
    start = next(i for i, line in enumerate(assembly) if line in map(str, multiply_adds))
    inner = assembly[start : start + len(multiply_adds)]
    assert not [line for line in inner if "sp)" in line or "[sp" in line], "a sum was spilled to the stack"


@pytest.mark.parametrize("name", TARGETS)
def test_two_panels_at_once_keep_their_sums_in_registers(name):
    """At least as many sums as hide the latency of a multiply-add, each weight loaded once, nothing on the stack."""
    _, assembly = assembly_of(name, 1, wide=True)
    multiply_adds = [i for i, line in enumerate(assembly) if "fmadd" in line or "fmla" in line]
    assert len(multiply_adds) >= tile.CHAINS
    inner = assembly[multiply_adds[0] : multiply_adds[0] + tile.CHAINS]
    assert not [line for line in inner if "sp)" in line or "[sp" in line], "a sum was spilled to the stack"


@pytest.mark.parametrize("name", TARGETS)
def test_tiles_of_four_rows_and_more_ask_for_weights_ahead(name):
    """One prefetch for each line of a panel's row, and none where a prefetch costs more than it brings."""
    for rows in (1, tile.PREFETCHED - 1, tile.PREFETCHED, None):
        shape, assembly = assembly_of(name, rows)
        asked = sum("prefetch" in line or "prfm" in line for line in assembly)
        lines = shape.lanes * shape.vectors * 4 // tile.LINE_BYTES
        if rows and rows < tile.PREFETCHED:
            assert asked == 0
        else:  # the compiler may have unrolled the loop
            assert asked >= lines
            assert asked % lines == 0


def test_other_processors_get_a_tile_too():
    assert tile.choose_tile({}, "riscv64").lanes == 4


def test_calm_is_a_bound_that_no_input_can_break():
    """Every logit of a network that is called calm stays small for the worst hidden state there is, h = sign(V)."""
    for scale, calm in ((1.0, True), (30.0, True), (59.0, True), (61.0, False), (1e4, False)):
        V = np.full((3, 4), scale / 8)
        V[1] *= -1
        layer = dict(W=np.zeros((4, 4)), U=np.zeros((4, 1)), b=np.zeros(4))
        net = RNN.from_arrays([layer], V, np.full(3, scale / 2))
        assert tile.Packed.of(net).calm == calm
        assert np.abs(net.V).sum(axis=1).max() + np.abs(net.c).max() == pytest.approx(scale)
