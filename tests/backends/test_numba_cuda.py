"""The CUDA methods, as they stand, on the CPU executor: right, and proven wrong where a wait or a flag is gone.

The executor is in tests/executor.py, with what it does not show.
"""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rnnpar
from rnnpar.backends import numba_cuda
from rnnpar.kernels import gpu
from rnnpar.kernels.launch import A100, H100, T4, DoesNotFit, plan_persistent
from rnnpar.reference import relative_error
from tests.conftest import BOUND, random_input
from tests.executor import Deadlock, FakeGpu, GlobalArray, Misuse, launch

HOPPER = replace(H100, name="a Hopper of 4 multiprocessors", multiprocessors=4)
TURING = replace(T4, name="a Turing of 4 multiprocessors", multiprocessors=4)
# Few registers: most rows of W must go to shared memory.
NARROW = replace(HOPPER, name="a card with few registers", registers_per_thread=96)
BARRIERS = ("flags", "counter", "grid", "values")


def numpy_product(self, A, a0, lda, weights, ldb, C, c0, ldc, M, N, K):
    """In the place of the product kernel, which has tests of its own and takes most of the time."""
    left = A.values.ravel()[a0 : a0 + M * lda].reshape(M, lda)[:, :K]
    right = weights.values.ravel().reshape(N, ldb)[:, :K]
    C.values.reshape(-1)[c0 : c0 + M * ldc].reshape(M, ldc)[:, :N] = left @ right.T


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(gpu.Pass, "multiply", numpy_product)


def prepared(strategy, net, device=HOPPER, seed=0, schedule="adversarial", module=numba_cuda, **options):
    """(forward, its FakeGpu)."""
    fake = FakeGpu(device, schedule, seed)
    module.open_gpu = lambda number: fake
    if strategy != "timestep":
        options.setdefault("products", "own")
    try:
        return getattr(module, strategy)(net, **options), fake
    finally:
        module.open_gpu = gpu.open_gpu


def state(net, B, seed=1):
    return (0.3 * np.random.default_rng(seed).standard_normal((net.num_layers, B, net.hidden_size))).astype(np.float32)


def error(net, x, h0, y, h):
    """The larger of the two relative errors; infinite for NaN."""
    wanted_y, wanted_h = rnnpar.reference(net, x, h0)
    worst = max(relative_error(y, wanted_y), relative_error(h, wanted_h))
    return worst if np.isfinite(worst) else np.inf


def check(strategy, T, B, H, L=1, I=3, O=4, bound=BOUND, **options):
    net = rnnpar.RNN.random(I, H, O, L)
    forward, fake = prepared(strategy, net, **options)
    x, h0 = random_input(net, T, B), state(net, B)
    y, h = forward(x, h0)
    assert y.dtype == h.dtype == np.float32
    assert error(net, x, h0, y, h) < bound
    return forward, fake


# --- right -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["adversarial", "fair", "random"])
@pytest.mark.parametrize("strategy", ["timestep", "steps", "block", "persistent"])
def test_each_strategy_with_its_own_products(strategy, schedule):
    check(strategy, T=3, B=2, H=5, L=2, schedule=schedule)


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("seed", range(3))
def test_persistent_under_adversarial_schedules(quick, barrier, seed):
    forward, fake = check("persistent", T=5, B=3, H=13, L=2, seed=100 * seed, barrier=barrier)
    assert forward.info["plan"].grid == 4
    assert fake.launches.count("persistent") == 2  # one for each layer, whatever T is


SHAPES = [
    dict(T=1, B=1, H=1),
    dict(T=2, B=1, H=7, I=1, O=1),
    dict(T=3, B=5, H=4, I=9, O=33),
    dict(T=2, B=2, H=31, L=3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("strategy", "options"),
    [("timestep", {}), ("steps", {}), ("block", {}), ("persistent", {}), ("persistent", {"barrier": "values"})],
    ids=["timestep", "steps", "block", "persistent", "persistent values"],
)
def test_awkward_shapes(quick, strategy, options, shape):
    check(strategy, **shape, **options)


@pytest.mark.parametrize("device", [HOPPER, TURING, NARROW], ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_in_registers_and_in_shared_memory(quick, device, dtype):
    """Several warps a block; where registers are few, rows of W in shared memory; copies that wait, before Ampere."""
    forward, _ = check("persistent", T=2, B=2, H=130, device=device, dtype=dtype, teams=1, bound=ONE[dtype])
    plan = forward.info["plan"]
    assert plan.warps > 1
    assert plan.rows + plan.extra == 33  # at most 32 in registers, the others four by four
    assert plan.extra == 4 if device is HOPPER else plan.extra > 4  # older cards and few registers leave fewer for W
    few = replace(device, registers_per_thread=64, threads_per_block=256) if device is NARROW else device
    forward, _ = check("block", T=2, B=1, H=60, device=few, dtype=dtype, bound=ONE[dtype])
    assert (forward.info["plan"].extra > 0) == (device is NARROW)


ONE = {"float32": BOUND, "bfloat16": 4e-3}  # bfloat16 weights have eight bits


def test_bfloat16_is_the_network_with_rounded_weights(quick):
    """Arithmetic and states stay float32: with weights that bfloat16 holds exactly, nothing is lost."""
    net = rnnpar.RNN.random(3, 9, 4)
    rounded = (net.layers[0].W.view(np.uint32) & 0xFFFF0000).view(np.float32)
    net = rnnpar.RNN.from_arrays([dict(W=rounded, U=net.layers[0].U, b=net.layers[0].b)], net.V, net.c)
    x, h0 = random_input(net, 4, 2), state(net, 2)
    for strategy in ("steps", "block", "persistent"):
        forward, _ = prepared(strategy, net, dtype="bfloat16")
        assert error(net, x, h0, *forward(x, h0)) < BOUND


def test_teams_share_out_the_batch(quick):
    for barrier in BARRIERS:
        forward, _ = check("persistent", T=4, B=5, H=9, teams=2, barrier=barrier)
        plan = forward.info["plan"]
        assert (plan.teams, plan.sequences) == (2, 3)  # the last team has two sequences


def test_more_sequences_than_are_staged_at_a_time(quick):
    """Shared memory for only some of h: chunks."""
    device = replace(HOPPER, shared_per_block=4 * 3 * (128 + 2 * 4))
    for barrier in ("flags", "values"):
        forward, _ = check("persistent", T=3, B=5, H=8, teams=1, device=device, barrier=barrier)
        assert 1 <= forward.info["plan"].chunk < 5


@pytest.mark.parametrize("strategy", ["timestep", "steps", "block", "persistent"])
def test_a_sequence_in_pieces_is_the_whole(quick, strategy):
    net = rnnpar.RNN.random(3, 6, 4, 2)
    forward, _ = prepared(strategy, net)
    x, h0 = random_input(net, 5, 2), state(net, 2)
    whole_y, whole_h = forward(x, h0)
    first_y, between = forward(x[:2], h0)
    then_y, last = forward(x[2:], between)
    np.testing.assert_array_equal(np.concatenate([first_y, then_y]), whole_y)
    np.testing.assert_array_equal(last, whole_h)


@pytest.mark.parametrize("strategy", ["timestep", "steps", "block", "persistent"])
def test_one_of_a_batch_is_a_batch_of_one(quick, strategy):
    net = rnnpar.RNN.random(3, 6, 4)
    forward, _ = prepared(strategy, net)
    x, h0 = random_input(net, 3, 3), state(net, 3)
    y, h = forward(x, h0)
    alone_y, alone_h = forward(np.ascontiguousarray(x[:, 1:2]), np.ascontiguousarray(h0[:, 1:2]))
    np.testing.assert_allclose(alone_y[:, 0], y[:, 1], rtol=1e-6)
    np.testing.assert_allclose(alone_h[:, 0], h[:, 1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("barrier", BARRIERS)
def test_calls_one_after_another_need_no_clearing(quick, barrier):
    """Flags, counters and numbers only grow; before they would overflow they begin again."""
    net = rnnpar.RNN.random(3, 6, 4)
    forward, _ = prepared("persistent", net, barrier=barrier)
    held = forward.recur.__closure__
    held = next(cell.cell_contents for cell in held if isinstance(cell.cell_contents, dict))
    for T in (4, 1, 6):
        x, h0 = random_input(net, T, 2, seed=T), state(net, 2)
        assert error(net, x, h0, *forward(x, h0)) < BOUND
    assert held["base"] == 11
    held["base"] += 2**30
    held["sync"].values += 2**30 * (held["plan"].blocks if barrier == "counter" else 1) % 2**31
    assert error(net, x, h0, *forward(x, h0)) < BOUND
    assert held["base"] == 6


def test_nan_in_x_stays_in_its_sequence(quick):
    net = rnnpar.RNN.random(3, 6, 4)
    x = random_input(net, 4, 3)
    x[1, 2, 0] = np.nan
    for strategy, options in (("steps", {}), ("block", {}), ("persistent", {}), ("persistent", VALUES)):
        y, h = prepared(strategy, net, **options)[0](x, state(net, 3))
        assert np.isnan(y[1:, 2]).all()
        assert np.isnan(h[:, 2]).all()
        assert not np.isnan(y[:, :2]).any()
        assert np.isfinite(y[:, :2]).all()
        assert np.isfinite(y[0]).all()


def test_large_logits_do_not_overflow():
    net = rnnpar.RNN.random(3, 6, 40)
    net = rnnpar.RNN.from_arrays([vars(net.layers[0])], 400 * net.V, 100 * net.c)
    for strategy in ("timestep", "steps"):
        forward, _ = prepared(strategy, net)
        x, h0 = random_input(net, 2, 1), state(net, 1)
        assert error(net, x, h0, *forward(x, h0)) < BOUND


def test_device_arrays_in_device_arrays_out(quick):
    net = rnnpar.RNN.random(3, 6, 4)
    for strategy in ("timestep", "steps", "block", "persistent"):
        forward, fake = prepared(strategy, net)
        x, h0 = GlobalArray(random_input(net, 3, 2)), GlobalArray(state(net, 2))
        given = x.values.copy(), h0.values.copy()
        y, h = forward(x, h0)
        assert isinstance(y, GlobalArray)
        assert isinstance(h, GlobalArray)
        assert error(net, *given, y.values, h.values) < BOUND
        np.testing.assert_array_equal(x.values, given[0])
        np.testing.assert_array_equal(h0.values, given[1])
        assert not fake.copied
        sent = fake.sent
        forward(x, h0)
        assert fake.sent == sent, "nothing comes from the host in a call from device arrays"


def test_timestep_with_one_thread_and_with_many():
    for at_once in (1, 3, None):
        check("timestep", T=7, B=2, H=3, L=2, steps_at_once=at_once)


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("persistent", {"barrier": "flag"}, "barrier is 'flag'; it must be one of counter, flags, grid, values"),
        ("persistent", {"dtype": "float16"}, "float16.*bfloat16"),
        ("block", {"dtype": "float16"}, "float16.*bfloat16"),
        ("steps", {"dtype": "float16"}, "float16.*bfloat16"),
        ("steps", {"products": "mkl"}, "products is 'mkl'; it must be 'auto', 'own' or 'cublas'"),
        ("timestep", {"steps_at_once": 0}, "steps_at_once is 0; it must be 1 to 1024"),
        ("timestep", {"steps_at_once": True}, "steps_at_once is True"),
        ("timestep", {"steps_at_once": 2.5}, "steps_at_once is 2.5"),
    ],
)
def test_bad_options_are_refused(strategy, options, words):
    with pytest.raises(ValueError, match=words):
        prepared(strategy, rnnpar.RNN.random(3, 6, 4), **options)


def test_teams_that_cannot_be(quick):
    net = rnnpar.RNN.random(3, 6, 4)
    forward, _ = prepared("persistent", net, teams=3)
    with pytest.raises(ValueError, match=r"teams is 3; it must be 1 to 2, for B = 2"):
        forward(random_input(net, 2, 2), state(net, 2))


def test_cublas_without_cupy_is_refused(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install cupy-cuda13x.*products='own'"):
        prepared("steps", rnnpar.RNN.random(3, 6, 4), products="cublas")
    assert gpu.choose_products("auto") == "own"


def test_a_hidden_size_that_does_not_fit_is_refused_before_any_work():
    with pytest.raises(DoesNotFit, match=r"H = 5000.*on a Hopper.*numba_cuda/steps takes any size"):
        prepared("persistent", types.SimpleNamespace(hidden_size=5000))
    with pytest.raises(DoesNotFit, match=r"W \(2000 x 2000 float32\) alone.*numba_cuda/persistent"):
        prepared("block", types.SimpleNamespace(hidden_size=2000))


def test_blocks_that_cannot_all_be_resident_are_never_launched(quick):
    """The plan is for one device, the launch on a smaller one: refused, not left to spin."""
    net = rnnpar.RNN.random(3, 8, 4)
    _, fake = prepared("persistent", net)
    plan = plan_persistent(A100, 512, 1)
    fake.device = replace(HOPPER, multiprocessors=1, blocks=1)
    with pytest.raises(DoesNotFit, match=r"needs 128 blocks that are resident together|needs 103|resident together"):
        fake.launch(numba_cuda.persistent_kernel(plan, True), plan.grid, plan.threads, shared=plan.shared, plan=plan)
    assert fake.launches == []


# --- proven wrong where something is gone ------------------------------------------------------------------------


def mutant(old: str, new: str, path: str = numba_cuda.__file__) -> types.ModuleType:
    """A module of the same text with one passage replaced. The passage must be there, once."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{text.count(old)} times in {path}: {old}"
    module = types.ModuleType("mutant")
    module.__file__ = path
    exec(compile(text.replace(old, new), path, "exec"), module.__dict__)
    return module


def fails(module, strategy, seeds=8, T=5, B=2, H=13, L=1, **options) -> bool:
    """Whether some schedule shows that the module's strategy is wrong: another result, a deadlock, a misuse."""
    net = rnnpar.RNN.random(3, H, 4, L)
    x, h0 = random_input(net, T, B), state(net, B)
    for seed in range(seeds):
        forward, _ = prepared(strategy, net, seed=1000 * seed, module=module, **options)
        try:
            if not error(net, x, h0, *forward(x, h0)) < BOUND:
                return True
        except (Deadlock, Misuse):
            return True
    return False


FLAG_WAIT = "        while ptx.ld_acquire(sync, (team * blocks + i) * APART) - (base + t) < 0:"
COUNTER_WAIT = "        while ptx.ld_acquire(sync, team * APART) - (base + t) * blocks < 0:"
POLL = "                                    while not ready:"
LOOK = f"        values, ready = ptx.ld_tagged(words, at, Hs, POLL, int32(base + t))\n{POLL}"
POLL_ONE = "                            while not ready:\n                                h, ready"
LOOK_ONE = f"        h, ready = ptx.ld_tagged(words, at, SPREAD, GROUPS, int32(base + t))\n{POLL_ONE}"
FLAGS, VALUES, COUNTER = dict(barrier="flags"), dict(barrier="values"), dict(barrier="counter")
DIRECT = dict(H=128, B=1, T=6, seeds=4, device=replace(HOPPER, multiprocessors=8))  # h comes right into registers
TWO_WARPS = dict(H=260, B=1, T=3, seeds=4)

MUTANTS = {
    "timestep: no wait": ("timestep", "t - 1, -1, -1) < l + 1:", "t - 1, -1, -1) < -9:", {}),
    "timestep: one layer early": ("timestep", "t - 1, -1, -1) < l + 1:", "t - 1, -1, -1) < l:", dict(L=2)),
    "timestep: published before it is written": (
        "timestep", "            cuda.threadfence()\n            cuda.atomic.exch(ready, t, l + 1)",
        "            cuda.atomic.exch(ready, t, l + 1)", {}),
    "timestep: never published": ("timestep", "            cuda.atomic.exch(ready, t, l + 1)\n", "", {}),
    "block: h0 not waited for": ("block", "            cuda.syncthreads()  # h0 is there\n", "", dict(H=33)),
    "block: h not waited for": (
        "block", "                cuda.syncthreads()  # h[t] is there, and nobody needs h[t-1] any more\n", "",
        dict(H=33)),
    "block: one buffer for two steps": (
        "block", "memory[STATE + (t + 1) % 2 * Hp + row] = state", "memory[STATE + t % 2 * Hp + row] = state", {}),
    "flags: no wait": ("persistent", FLAG_WAIT, "        while False:", FLAGS),
    "flags: a step early": ("persistent", FLAG_WAIT, FLAG_WAIT.replace("base + t)", "base + t - 1)"), FLAGS),
    "flags: a step late": ("persistent", FLAG_WAIT, FLAG_WAIT.replace("base + t)", "base + t + 1)"), FLAGS),
    "flags: not all of them": (
        "persistent", "while i < blocks:", "while i < blocks - 1:", FLAGS),
    "flags: relaxed, not acquired": (
        "persistent", FLAG_WAIT, FLAG_WAIT.replace("ld_acquire", "ld_relaxed"), dict(**FLAGS, device=TURING)),
    "flags: the block does not wait for its threads": (
        "persistent", "    cuda.syncthreads()  # all of the block may read what any of its threads has seen\n", "",
        dict(**FLAGS, **TWO_WARPS)),
    "flags: not all have written": (
        "persistent", "    cuda.syncthreads()  # all of the block have written their h\n", "", FLAGS),
    "flags: relaxed, not released": ("persistent", "ptx.st_release(", "ptx.st_relaxed(", FLAGS),
    "flags: never set": (
        "persistent", "ptx.st_release(sync, (team * blocks + n) * APART, int32(base + t + 1))", "pass", FLAGS),
    "flags: always the same": ("persistent", "n) * APART, int32(base + t + 1))", "n) * APART, int32(base + 1))", FLAGS),
    "counter: no wait": ("persistent", COUNTER_WAIT, "        while False:", COUNTER),
    "counter: a step early": (
        "persistent", COUNTER_WAIT, COUNTER_WAIT.replace("base + t)", "base + t - 1)"), COUNTER),
    "counter: one block too few": (
        "persistent", COUNTER_WAIT, COUNTER_WAIT.replace("blocks <", "blocks + 1 <"), COUNTER),
    "counter: relaxed, not acquired": (
        "persistent", COUNTER_WAIT, COUNTER_WAIT.replace("ld_acquire", "ld_relaxed"),
        dict(barrier="counter", device=TURING)),
    "counter: the block does not wait for its thread": (
        "persistent", "            pass\n    cuda.syncthreads()\n", "            pass\n", COUNTER),
    "counter: not all have written": (
        "persistent", "    cuda.syncthreads()\n    if cuda.threadIdx.x == 0:\n        ptx.red",
        "    if cuda.threadIdx.x == 0:\n        ptx.red", COUNTER),
    "counter: relaxed, not released": (
        "persistent", "ptx.red_release_add(", "cuda.atomic.add(", COUNTER),
    "grid: no barrier": ("persistent", "    cuda.cg.this_grid().sync()\n", "    pass\n", dict(barrier="grid")),
    "values: no wait": ("persistent", POLL, POLL.replace("not ready", "False"), VALUES),
    "values: a number too low": ("persistent", LOOK, LOOK.replace("base + t)", "base + t - 2)"), dict(**VALUES, T=6)),
    "values: one sequence, no wait": (
        "persistent", POLL_ONE, POLL_ONE.replace("not ready", "False"), dict(**VALUES, **DIRECT)),
    "values: one sequence, a number too low": (
        "persistent", LOOK_ONE, LOOK_ONE.replace("base + t)", "base + t - 2)"), dict(**VALUES, **DIRECT)),
    "values: one sequence, one slot for all steps": (
        "persistent", "at = ((base + t) % 2 * B + s0) * Hs + FOUR * tid", "at = s0 * Hs + FOUR * tid",
        dict(**VALUES, **DIRECT)),
    "one sequence: a step early": (
        "persistent", COUNTER_WAIT, COUNTER_WAIT.replace("base + t)", "base + t - 1)"), dict(**COUNTER, **DIRECT)),
    "one sequence: relaxed, not acquired": (
        "persistent", COUNTER_WAIT, COUNTER_WAIT.replace("ld_acquire", "ld_relaxed"), dict(**COUNTER, **DIRECT)),
    "pairs: the second is the first": (
        "persistent", "h2 = ptx.tile_load(memory, STAGE + i", "h2 = ptx.tile_load(memory, STAGE + j", dict(teams=1)),
    "pairs: beyond the last": ("persistent", "i = min(j + 1, chunk - 1)", "i = j + 1", dict(B=3, teams=1)),
    "values: the wrong slot": (
        "persistent", "words, ((base + t + 1) % 2 * B + s)", "words, ((base + t) % 2 * B + s)", VALUES),
    "values: one slot for all steps": (
        "persistent", "at = ((base + t) % 2 * B + s0 + c + j) * Hs + k", "at = (s0 + c + j) * Hs + k", VALUES),
    "values: one buffer for the sums of two steps": (
        "persistent", "turn = 1 - turn", "turn = 0", dict(**VALUES, **TWO_WARPS)),
    "persistent: sums not waited for": (
        "persistent", "                cuda.syncthreads()  # the sums of all warps are there\n", "", TWO_WARPS),
    "persistent: copies not waited for": ("persistent", "                copies_wait()\n", "", {}),
    "persistent: the first launch's flags serve the second": (
        "persistent", '        held["base"] += T\n', "", dict(L=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_executor_finds(quick, name):
    strategy, old, new, options = MUTANTS[name]
    assert not fails(numba_cuda, strategy, **{**options, "seeds": 1}), "the kernel as it stands must pass"
    assert fails(mutant(old, new), strategy, **options)


def product(module, seed):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 37), (70, 37)))
    C = np.full((9, 72), np.nan, np.float32)
    flat = C.ravel()
    arguments = (A.ravel(), 0, 37, B.ravel(), 37, flat, 0, 72, 9, 70, 37)
    launch(module.product_kernel(1), (1, 2), 256, *arguments, seed=seed)
    C = flat.reshape(9, 72)
    assert np.isnan(C[:, 70:]).all()  # what is not its own is left alone
    return np.abs(C[:, :70] - A.astype(np.float64) @ B.T).max() < 1e-5


@pytest.mark.parametrize("which", ["# the columns are there", "# all have used them"])
def test_a_product_needs_both_of_its_barriers(which):
    assert product(gpu, 0)
    broken = mutant(f"            cuda.syncthreads()  {which}\n", "", gpu.__file__)
    assert not all(product(broken, seed) for seed in range(3))


def test_the_large_tile_of_a_product():
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((130, 3), (5, 3)))
    C = np.full(130 * 5, np.nan, np.float32)
    launch(gpu.product_kernel(2), (2, 1), 256, A.ravel(), 0, 3, B.ravel(), 3, C, 0, 5, 130, 5, 3)
    np.testing.assert_allclose(C.reshape(130, 5), A @ B.T, rtol=1e-5, atol=1e-6)


def test_softmax_needs_every_shuffle():
    rng = np.random.default_rng(0)
    rows, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 45), (45,)))
    wanted = np.exp(rows + c) / np.exp(rows + c).sum(1, keepdims=True)

    def done(module):
        y = rows.copy().ravel()
        launch(module.softmax_rows, 1, 256, y, c, 3, 45)
        return np.abs(y.reshape(3, 45) - wanted).max() < 1e-6

    assert done(gpu)
    text = "            total += cuda.shfl_xor_sync(EVERYBODY, total, bit)"
    assert not done(mutant(text, text.replace("+= cuda", "+= 0 * cuda"), gpu.__file__))


@pytest.mark.parametrize("strategy", ["timestep", "steps", "block", "persistent"])
def test_each_says_what_it_parallelises_synchronises_and_moves(strategy):
    text = getattr(numba_cuda, strategy).__doc__
    assert all(word in text for word in ("Parallelises:", "Synchronises:", "Moves:"))
