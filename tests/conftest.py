"""What the tests share: the error bound of the house, and inputs."""

from __future__ import annotations

import numpy as np
import pytest

import rnnpar
from rnnpar.reference import relative_error

BOUND = 1e-5  # relative to the float64 oracle, for float32 methods


def random_input(net: rnnpar.RNN, T: int, B: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((T, B, net.input_size)).astype(np.float32)


def assert_matches_oracle(run, x: np.ndarray, h0: np.ndarray | None = None, bound: float = BOUND) -> None:
    """y and h of a runner are within `bound` of the oracle's, relative, in norm."""
    y, h = run(x, h0)
    wanted_y, wanted_h = rnnpar.reference(run.net, x, h0)
    assert y.dtype == h.dtype == np.float32
    assert y.shape == wanted_y.shape
    assert h.shape == wanted_h.shape
    assert relative_error(y, wanted_y) < bound
    assert relative_error(h, wanted_h) < bound


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
