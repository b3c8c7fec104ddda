"""Every method that can run here, against the oracle and against itself. A new method is picked up by its row."""

from contextlib import nullcontext

import numpy as np
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.kernels.tile import to_bfloat16
from rnnpar.reference import relative_error
from tests.conftest import BOUND, CPU, assert_matches_oracle, random_input

# T, B, I, H, O, L: ones, primes, sizes around a panel's width and a tile's rows, the origin's, several layers.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 1, 3, 2, 5, 1),
    (17, 5, 31, 50, 29, 1),
    (13, 9, 5, 33, 64, 1),
    (7, 3, 11, 97, 13, 3),
    (15, 1, 50, 50, 8000, 1),
    (130, 1, 16, 128, 10, 1),
    (5, 37, 8, 64, 7, 2),
    (3, 2, 4, 600, 3, 1),
]


def settings(name: str) -> list[dict]:
    return [{"threads": n} for n in (1, 2)] if "threads" in registry.find(name).options() else [{}]


EVERY = [pytest.param(name, options, id=f"{name}{options or ''}") for name in CPU for options in settings(name)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_method_equals_oracle(name, options, shape):
    T, B, I, H, O, L = shape
    net = rnnpar.RNN.random(I, H, O, L)
    h0 = np.random.default_rng(1).uniform(-1, 1, (L, B, H)).astype(np.float32)
    run = rnnpar.prepare(net, name, **options)
    assert_matches_oracle(run, random_input(net, T, B))
    assert_matches_oracle(run, random_input(net, T, B, seed=2), h0)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_sequence_in_pieces_equals_the_whole(name, options):
    net = rnnpar.RNN.random(7, 70, 11, 2)
    x = random_input(net, 60, 3)
    run = rnnpar.prepare(net, name, **options)
    whole, last = run(x)
    pieces, h = [], None
    for piece in np.split(x, [1, 2, 19, 19, 45]):
        y, h = run(piece, h)
        pieces.append(y)
    assert np.allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-6)
    assert np.allclose(h, last, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_one_sequence_equals_one_of_a_batch(name, options):
    net = rnnpar.RNN.random(7, 40, 11)
    x = random_input(net, 21, 9)
    run = rnnpar.prepare(net, name, **options)
    y, h = run(x)
    for j in (0, 4, 8):
        alone, state = run(x[:, j : j + 1])
        assert np.allclose(alone[:, 0], y[:, j], rtol=0, atol=1e-6)
        assert np.allclose(state[:, 0], h[:, j], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_empty_sequence_and_empty_batch(name, options):
    net = rnnpar.RNN.random(3, 4, 5, 2)
    run = rnnpar.prepare(net, name, **options)
    h0 = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    y, h = run(np.empty((0, 6, 3), np.float32), h0)
    assert y.shape == (0, 6, 5)
    assert np.array_equal(h, h0)
    assert h is not h0
    y, h = run(np.empty((9, 0, 3), np.float32))
    assert y.shape == (9, 0, 5)
    assert h.shape == (2, 0, 4)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_results_are_the_callers_own_and_inputs_stay(name, options):
    net = rnnpar.RNN.random(4, 20, 6)
    x, h0 = random_input(net, 8, 2), np.full((1, 2, 20), 0.5, np.float32)
    kept_x, kept_h0 = x.copy(), h0.copy()
    run = rnnpar.prepare(net, name, **options)
    y, h = run(x, h0)
    kept_y, kept_h = y.copy(), h.copy()
    run(random_input(net, 8, 2, seed=9))
    assert np.array_equal(y, kept_y)
    assert np.array_equal(h, kept_h)
    assert np.array_equal(x, kept_x)
    assert np.array_equal(h0, kept_h0)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_any_memory_order_of_x(name, options):
    net = rnnpar.RNN.random(4, 10, 6)
    run = rnnpar.prepare(net, name, **options)
    x = random_input(net, 8, 6)
    strided = np.asfortranarray(x)
    assert np.array_equal(run(strided)[0], run(x)[0])
    assert np.array_equal(run(x[::2, 1::2])[0], run(np.ascontiguousarray(x[::2, 1::2]))[0])


@pytest.mark.parametrize("name", [name for name in CPU if len(settings(name)) > 1])
@pytest.mark.parametrize("shape", [(9, 1, 3, 40, 5, 1), (6, 5, 3, 100, 40, 2)], ids=str)
def test_any_number_of_threads_gives_the_same(name, shape):
    """More threads than rows, than sequences, than cores: the result does not depend on it."""
    T, B, I, H, O, L = shape
    net = rnnpar.RNN.random(I, H, O, L)
    x = random_input(net, T, B)
    y, h = rnnpar.prepare(net, name, threads=1)(x)
    for threads in (2, 3, 5, 8):
        with pytest.warns(UserWarning, match="cores") if threads > machine.cores_allowed() else nullcontext():
            run = rnnpar.prepare(net, name, threads=threads)
        got_y, got_h = run(x)
        assert np.allclose(got_y, y, rtol=0, atol=1e-6)
        assert np.allclose(got_h, h, rtol=0, atol=1e-6)


HALF = [name for name in CPU if "dtype" in registry.find(name).options() and registry.find(name).backend != "in_time"]


@pytest.mark.parametrize("name", HALF)
def test_bfloat16_weights_equal_the_oracle_on_rounded_weights(name):
    """float32 arithmetic on weights rounded to bfloat16: exact to 1e-5 for those weights, near for the original."""

    def rounded(weights: np.ndarray) -> np.ndarray:
        return (to_bfloat16(weights).astype(np.uint32) << 16).view(np.float32)

    net = rnnpar.RNN.random(7, 70, 33, 2)
    layers = [dict(W=rounded(layer.W), U=rounded(layer.U), b=layer.b) for layer in net.layers]
    near = rnnpar.RNN.from_arrays(layers, rounded(net.V), net.c)
    x = random_input(net, 40, 3)
    y, h = rnnpar.prepare(net, name, dtype="bfloat16")(x)
    wanted_y, wanted_h = rnnpar.reference(near, x)
    assert relative_error(y, wanted_y) < BOUND
    assert relative_error(h, wanted_h) < BOUND
    assert BOUND < relative_error(y, rnnpar.reference(net, x)[0]) < 1e-2


@pytest.mark.parametrize("name", [name for name in CPU if registry.find(name).backend == "threads"])
@pytest.mark.parametrize("seed", range(3))
def test_repeated_calls_are_bitwise_the_same(name, seed):
    """Threads add up in no order of chance: whoever computes an element computes it in the same way, every time."""
    net = rnnpar.RNN.random(9, 50 + 40 * seed, 20, 1 + seed)
    x = random_input(net, 70, 1 + seed)
    run = rnnpar.prepare(net, name, threads=2)
    y, h = run(x)
    for _ in range(30):
        again, state = run(x)
        assert np.array_equal(again, y)
        assert np.array_equal(state, h)


# Shapes in which one stage of the pipeline is slow and the others are fast, so that a missing wait is overtaken:
# a heavy recurrence (H), a heavy output (O), a heavy input (I).
LOPSIDED = [(200, 1, 1, 300, 1, 1), (150, 1, 1, 8, 6000, 1), (150, 1, 6000, 8, 1, 1), (150, 2, 1, 200, 1, 3)]


@pytest.mark.parametrize("threads", [2, 4, 8])
@pytest.mark.parametrize("shape", LOPSIDED, ids=str)
@pytest.mark.parametrize("name", [name for name in CPU if registry.find(name).backend == "threads"])
@pytest.mark.filterwarnings("ignore:threads=")
def test_no_thread_overtakes_another(name, shape, threads):
    T, B, I, H, O, L = shape
    net = rnnpar.RNN.random(I, H, O, L)
    x = random_input(net, T, B)
    y, h = rnnpar.reference(net, x)
    run = rnnpar.prepare(net, name, threads=threads)
    for _ in range(5):
        got_y, got_h = run(x)
        assert relative_error(got_y, y) < BOUND
        assert relative_error(got_h, h) < BOUND


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("scale", [0.1, 300.0, 1e6])
@pytest.mark.parametrize("O", [37, 700])
def test_small_and_enormous_logits(name, options, scale, O):
    """With and without room for exp to overflow: both ways through softmax, short and long rows."""
    net = rnnpar.RNN.random(5, 30, O)
    net = rnnpar.RNN.from_arrays([vars(layer) for layer in net.layers], net.V * scale, net.c * scale)
    run = rnnpar.prepare(net, name, **options)
    x = random_input(net, 12, 2)
    y, _ = run(x)
    wanted, _ = rnnpar.reference(net, x)
    # A float32 logit of size s is uncertain by s * 1e-7, and so is exp of it, relatively.
    assert np.isfinite(y).all()
    assert relative_error(y, wanted) < BOUND * max(1, scale / 10)
    assert np.allclose(y.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", CPU)
def test_memory_is_used_again_only_when_nobody_holds_it(name):
    """Results, views of them and buffers on them stay as they are; and dropping them frees the way for reuse."""
    net = rnnpar.RNN.random(4, 20, 6)
    run = rnnpar.prepare(net, name)
    held, kept = [], []
    for seed in range(6):
        y, _ = run(random_input(net, 8, 2, seed=seed))
        kept.append(y.copy())
        held.append([y, y[2:5, 1], memoryview(y), y.ravel()][seed % 4])
        del y
    for seed, (mine, copy) in enumerate(zip(held, kept, strict=True)):
        expected = [copy, copy[2:5, 1], copy, copy.ravel()][seed % 4]
        assert np.array_equal(np.asarray(mine), expected)
