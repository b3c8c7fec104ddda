"""The parallel scans, on threads and on arrays, against the recurrence run step by step in float64."""

import numpy as np
import pytest

from rnnpar.kernels import scan, scan_arrays
from rnnpar.kernels.scan import Scan

SHAPES = [(1, 1, 1), (2, 3, 1), (17, 1, 5), (64, 2, 33), (131, 1, 40)]  # T, B, H


def problem(shape, radius=0.8, size=0.01, seed=0):
    """W, g and r of a recurrence whose d stays within [-1, 1]."""
    H = shape[2]
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((H, H)) * radius / np.sqrt(H)
    g, r = rng.uniform(0.5, 1, shape), size * rng.standard_normal(shape)
    return (a.astype(np.float32) for a in (W, g, r))


def by_steps(J_of, r):
    d, state = np.empty(r.shape), np.zeros(r.shape[1:])
    for t in range(len(r)):
        state = J_of(t, state) + r[t]
        d[t] = state
    return d


def dense_by_steps(W, g, r):
    W = W.astype(np.float64)
    return by_steps(lambda t, state: g[t] * (state @ W.T), r)


def diagonal_by_steps(W, g, r):
    return by_steps(lambda t, state: g[t] * W.diagonal().astype(np.float64) * state, r)


@pytest.mark.parametrize("faded", [0.0, scan.FADED])
@pytest.mark.parametrize(("threads", "S"), [(1, 1), (1, 5), (2, 2), (2, 16)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_scan_equals_the_recurrence(shape, threads, S, faded):
    W, g, r = problem(shape)
    found = Scan(W, g, r, threads, min(S, shape[0]), faded=faded)
    found.run()
    assert np.allclose(found.d, dense_by_steps(W, g, r), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("threads", "S"), [(1, 1), (2, 2), (2, 7)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_diagonal_scan_equals_the_recurrence(shape, threads, S):
    W, g, r = problem(shape)
    found = Scan(W, g, r, threads, min(S, shape[0]), dense=False)
    found.run()
    assert np.allclose(found.d, diagonal_by_steps(W, g, r), rtol=0, atol=1e-6)


def test_a_map_that_does_not_fade_is_carried_through_every_segment():
    """One step that matters at t = 0, then only its echo through a rotation: all of it comes by the maps."""
    T, H = 96, 4
    W = np.roll(np.eye(H, dtype=np.float32), 1, axis=0)
    g, r = np.ones((T, 1, H), np.float32), np.zeros((T, 1, H), np.float32)
    r[0, 0] = [0.5, 0.25, 0.125, 0.0]
    found = Scan(W, g, r, 2, 12)
    found.run()
    for t in range(T):
        assert np.array_equal(found.d[t, 0], np.roll(r[0, 0], t))


def test_a_map_that_fades_is_dropped_at_its_segment(monkeypatch):
    W, g, r = problem((512, 1, 8), radius=0.3)
    found = Scan(W, g, r, 2, 8)
    found.run()
    alive = found.region.job._arrays["alive"]
    assert not alive.any(), "64 steps of 0.3 leave nothing of a segment's start"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("S", [1, 3, 8, 10**6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scans_on_arrays_equal_the_recurrence(shape, S, dtype):
    W, g, r = (a.astype(dtype) for a in problem(shape))
    S = min(S, shape[0])
    atol = 1e-6 if dtype == np.float32 else 1e-14
    assert np.allclose(scan_arrays.dense_scan(np, W, g, r, S), dense_by_steps(W, g, r), rtol=0, atol=atol)
    diagonal = scan_arrays.diagonal_scan(np, g * W.diagonal(), r, S)
    assert diagonal.dtype == dtype
    assert np.allclose(diagonal, diagonal_by_steps(W, g, r), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(10, 2, 3), (7, 1, 1)])
@pytest.mark.parametrize("S", [1, 2, 5])
def test_segments_and_back(shape, S):
    a = np.arange(np.prod(shape)).reshape(shape)
    n = -(-shape[0] // S)
    cut = scan_arrays.segments_of(np, a, -(-shape[0] // n), n)
    assert np.array_equal(cut[n - 1, 0], a[n - 1])
    assert np.array_equal(scan_arrays.whole_of(np, cut, shape[0]), a)
