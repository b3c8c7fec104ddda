"""The oracle: what it refuses; that it is right, the methods' tests and the equations say."""

from __future__ import annotations

import numpy as np
import pytest

import rnnpar

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


def test_takes_lists_and_nothing():
    y, h = rnnpar.reference(NET, np.zeros((2, 1, 3)).tolist())
    assert (y.shape, h.shape) == ((2, 1, 4), (2, 1, 5))
    assert rnnpar.reference(NET, np.zeros((0, 1, 3)))[0].shape == (0, 1, 4)
