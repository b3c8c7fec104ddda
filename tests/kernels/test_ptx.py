"""The twins: what each instruction means, by hand, and warp sums over all sizes."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda, float32

from rnnpar.kernels import ptx
from rnnpar.kernels.gpu import weights_of
from tests.executor import launch

T = {name: twin.function for name, twin in ptx.TWINS.items()}
F = np.float32


def test_every_instruction_has_a_twin_and_an_order():
    intrinsics = {name for name in dir(ptx) if type(getattr(ptx, name)).__name__ == "_Intrinsic"} - {"intrinsic"}
    assert set(ptx.TWINS) == intrinsics
    assert {twin.order for twin in ptx.TWINS.values()} == {"weak", "relaxed", "acquire", "release"}


def test_tiles():
    array = np.arange(64, dtype=F)
    tile = T["tile_load"](array, 4, 32, 16, 2, 2)  # two rows 32 apart, two groups 16 apart
    assert tile == (4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39, 52, 53, 54, 55)
    h = tuple(F(v) for v in (1, 0, 0, 0, 0, 0, 0, 2))
    assert T["tile_times"](tile, h, (F(10), F(0))) == (4 + 46 + 10, 36 + 110)
    assert T["zeros"](3) == (0, 0, 0)
    assert T["outer"]((F(2), F(3)), (F(5), F(7)), T["zeros"](4)) == (10, 14, 15, 21)


def test_bfloat16_tiles():
    W = np.array([[1.0, -2.5, 3.140625, 0.0], [2.0**-10, -(2.0**20), 7.0, 1e-3]], F)
    words = weights_of(W, 2, 4, "bfloat16")
    assert words.dtype == np.int32
    tile = T["tile_load_bf16"](words.ravel(), 0, 2, 2, 2, 1)
    wide = T["unpack_bf16"](tile)
    assert wide[:7] == tuple(W.ravel()[:7])
    assert wide[7] == pytest.approx(1e-3, rel=2**-9)
    h = (F(1), F(1), F(2), F(0))
    assert T["tile_times_bf16"](tile, h, (F(0), F(0))) == T["tile_times"](wide, h, (F(0), F(0)))


def test_bfloat16_rounds_to_the_nearest_even():
    halfway = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 0]], F)
    wide = T["unpack_bf16"](tuple(weights_of(halfway, 1, 4, "bfloat16").ravel()))
    assert wide == (1, 1 + 2.0**-6, 1 + 2.0**-7, 0)


def test_values_with_their_number():
    words = np.zeros(16, np.int32)
    states = (0.5, -1.0, -0.0, 1e-30)
    for number in (1, 2):  # a place that nobody has written is older than the first number of each place
        assert not T["ld_tagged"](words, 0, 8, 1, number)[1]
    for number in (1, 3, 5, 2, 4, 6, 2**30 - 1):
        for i, value in enumerate(states):
            T["st_tagged"](words, i, F(value), number)
        values, ready = T["ld_tagged"](words, 0, 8, 1, number)
        assert ready
        assert values == tuple(map(F, states))
        assert np.signbit(values[2])
        assert not T["ld_tagged"](words, 0, 8, 1, number + 2)[1]  # what comes to the same place next
        T["st_tagged"](words, 3, F(states[3]), number + 2)
        assert not T["ld_tagged"](words, 0, 8, 1, number)[1]  # one of the four is of another number
    T["st_tagged"](words, 3, F(np.nan), 7)
    assert np.isnan(T["ld_tagged"](words, 0, 8, 1, 7)[0][3])


def test_copies_and_stores():
    a, b = np.arange(12, dtype=F), np.zeros(12, F)
    T["copy4"](b, 4, a, 8)
    assert b.tolist() == [0] * 4 + [8, 9, 10, 11] + [0] * 4
    T["store4s"](b, 0, 8, tuple(F(i) for i in range(8)))
    assert b.tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]
    C = np.zeros(16, F)
    T["tile_store"](C, 1, 5, 1, 3, 3, 5, 64, tuple(F(i + 1) for i in range(16)))
    assert C.reshape(-1)[1:].reshape(3, 5)[1:, 3:].tolist() == [[1, 2], [5, 6]]
    assert np.count_nonzero(C) == 4


@pytest.mark.parametrize("name", ["copy4", "copy4_async", "tile_load"])
def test_wide_accesses_must_be_aligned(name):
    a = np.zeros(32, F)
    arguments = (a, 2, 8, 8, 1, 1) if name == "tile_load" else (a, 0, a, 2)
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        T[name](*arguments)


@pytest.mark.parametrize("rows", range(1, 33))
def test_each_row_has_exactly_one_lane(rows):
    owners = [ptx._lane_row(lane, rows) for lane in range(32)]
    assert sorted(row for row in owners if row < rows) == list(range(rows))
    assert all(row == rows for row in owners if row >= rows)


def test_no_rows_have_no_lane():
    assert all(ptx._lane_row(lane, 0) >= 0 for lane in range(32))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 11, 16, 20, 31, 32])
def test_warp_sums(rows):
    """Small whole numbers: exact in any order."""

    @cuda.jit
    def kernel(values, totals):
        lane = cuda.threadIdx.x
        tile = ptx.tile_load(values, 4 * lane, 128, 0, rows, 1)
        one = ptx.tile_load(values, 0, 0, 0, 1, 1)
        sums = ptx.tile_times(tile, one, ptx.zeros(rows))
        total = ptx.warp_sums(sums, lane)
        if ptx.lane_row(lane, rows) < rows:
            totals[ptx.lane_row(lane, rows)] = total

    values = np.random.default_rng(rows).integers(-9, 9, (rows, 32, 4)).astype(F)
    totals = np.full(rows, np.nan, F)
    launch(kernel, 1, 32, values.ravel(), totals, schedule="random")
    np.testing.assert_array_equal(totals, values.sum(1) @ values[0, 0])
    assert float32.bitwidth == 32
