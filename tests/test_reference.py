"""The oracle: what it refuses; that it is right, the methods' tests and the equations say."""

from __future__ import annotations

import numpy as np
import pytest

import rnnpar
from rnnpar.reference import relative_error

NET = rnnpar.RNN.random(3, 5, 4, num_layers=2)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: rnnpar.reference("net", np.zeros((2, 1, 3))), TypeError, "net is a str; it must be an rnnpar.RNN"),
        (lambda: rnnpar.reference(NET, np.zeros((2, 3))), ValueError, r"x has shape \(2, 3\); it must be \(T, B, 3\)"),
        (lambda: rnnpar.reference(NET, np.zeros((2, 1, 4))), ValueError, r"x has shape \(2, 1, 4\)"),
        (lambda: rnnpar.reference(NET, np.zeros((2, 1, 3)), np.zeros((1, 1, 5))), ValueError, r"h0 has .*\(2, 1, 5\)"),
    ],
)
def test_refuses(call, error, said):
    with pytest.raises(error, match=said):
        call()


def masked(*shape):
    return np.ma.masked_array(np.zeros(shape), np.arange(np.prod(shape)).reshape(shape) == 1)


@pytest.mark.parametrize(
    ("x", "h0", "name"),
    [
        (masked(2, 1, 3), None, "x"),
        (list(masked(2, 1, 3)), None, "x"),
        (np.zeros((2, 1, 3)), masked(2, 1, 5), "h0"),
    ],
)
def test_masked_arrays_are_refused(x, h0, name):
    with pytest.raises(TypeError, match=rf"{name} is a masked array, .* give {name}.filled\(value\)"):
        rnnpar.reference(NET, x, h0)


@pytest.mark.filterwarnings("error")
def test_the_answer_does_not_depend_on_the_callers_error_handling():
    x = np.random.default_rng(0).standard_normal((3, 2, 3)) * 1e-160  # products of it underflow
    x[0, 0], x[1, 1, 0] = 1e300, np.inf
    layers = [dict(W=layer.W * 1e30, U=layer.U * 1e30, b=layer.b) for layer in NET.layers]
    net = rnnpar.RNN.from_arrays(layers, NET.V * 1e30, NET.c)  # exp underflows in the softmax, 1e300 * U overflows
    wanted = rnnpar.reference(net, x)
    with np.errstate(all="raise"):
        for one, other in zip(rnnpar.reference(net, x), wanted, strict=True):
            assert np.array_equal(one, other, equal_nan=True)
        assert np.isnan(relative_error(np.array([np.inf]), np.array([np.inf])))
        assert relative_error(np.array([1e-200]), np.array([1.0])) == 1


def test_takes_lists_and_nothing():
    y, h = rnnpar.reference(NET, np.zeros((2, 1, 3)).tolist())
    assert (y.shape, h.shape) == ((2, 1, 4), (2, 1, 5))
    assert rnnpar.reference(NET, np.zeros((0, 1, 3)))[0].shape == (0, 1, 4)
