"""tanh, exp and softmax against float64, over the whole of float32."""

import numpy as np
import pytest
from numba import njit

from rnnpar.kernels import activations


@njit(error_model="numpy")
def exp_inplace(a):
    for i in range(a.size):
        a[i] = activations.exp_element(a[i])


def every_float32(stride: int) -> np.ndarray:
    """Finite float32 values of every exponent and both signs: each `stride`-th bit pattern, and the neighbours of 0."""
    bits = np.arange(0, 2**32, stride, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0.0, -0.0, 1e-45, -1e-45])])
    return values[np.isfinite(values)]


def ulps(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(np.float64) - wanted) / np.spacing(np.abs(wanted.astype(np.float32))).astype(np.float64)


def test_tanh_is_within_6_ulp_everywhere():
    x = every_float32(1021)
    got = x.copy()
    activations.tanh_inplace(got)
    assert ulps(got, np.tanh(x.astype(np.float64))).max() <= 6
    assert np.abs(got).max() <= 1
    mirrored = -x
    activations.tanh_inplace(mirrored)
    assert np.array_equal(mirrored, -got)


def test_exp_is_within_2_ulp_where_it_is_a_normal_number():
    x = every_float32(1021)
    x = x[(x >= -86.9) & (x <= 88.7)]
    got = x.copy()
    exp_inplace(got)
    assert ulps(got, np.exp(x.astype(np.float64))).max() <= 2


def test_exp_beyond_is_0_or_next_to_it_and_infinity():
    x = every_float32(1021)
    below, above = x[x < -86.9], x[x > 88.7]
    exp_inplace(below)
    assert below.min() >= 0
    assert below.max() < 2e-38
    exp_inplace(above)
    assert above.min() > 3e38


@pytest.mark.parametrize(
    ("function", "x", "wanted"),
    [
        (activations.tanh_inplace, np.nan, np.nan),
        (activations.tanh_inplace, np.inf, 1),
        (activations.tanh_inplace, -np.inf, -1),
        (exp_inplace, np.nan, np.nan),
        (exp_inplace, np.inf, np.inf),
        (exp_inplace, 89, np.inf),
        (exp_inplace, -np.inf, 0),
        (exp_inplace, -88, 0),
        (exp_inplace, 0, 1),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 64, 100])
def test_special_values_in_the_vector_and_in_the_remainder(function, x, wanted, size):
    got = np.full(size, x, np.float32)
    function(got)
    assert np.allclose(got, wanted, rtol=5e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 1000, 10007])
@pytest.mark.parametrize(
    ("scale", "calm"), [(1e-3, True), (1e-3, False), (1, True), (1, False), (50, False), (1e4, False)]
)
def test_softmax(rng, size, scale, calm):
    o = (rng.standard_normal(size) * scale).astype(np.float32)
    wanted = np.exp(o.astype(np.float64) - o.max())
    wanted /= wanted.sum()
    y = np.empty_like(o)
    activations.softmax_row(o.copy(), y, calm)
    assert np.abs(y - wanted).max() < 1e-6 * wanted.max()
    assert y.sum() == pytest.approx(1, abs=1e-5)


def test_softmax_of_extremes():
    def softmax(*o):
        y = np.empty(len(o), np.float32)
        activations.softmax_row(np.array(o, np.float32), y, False)
        return y

    assert softmax(-np.inf, 0, 0).tolist() == [0, 0.5, 0.5]
    assert softmax(3e38, -3e38).tolist() == [1, 0]
    assert np.isnan(softmax(1, np.nan, 2)).all()
    assert np.isnan(softmax(np.inf, 1)).all()  # inf - inf, as in NumPy


@pytest.mark.parametrize("values", [[-1.5], [-0.0, 0.0], [-3, -2, -9], [5, -np.inf], [1, np.inf], [-2e-45, -1e-45]])
def test_largest(values):
    assert activations.largest(np.array(values, np.float32)) == np.max(np.array(values, np.float32))


def test_softmax_gives_padding_nothing():
    y = np.empty(3, np.float32)
    activations.softmax_row(np.array([1, 1, 1, -np.inf, -np.inf], np.float32), y, True)
    assert np.allclose(y, 1 / 3)
