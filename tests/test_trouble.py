"""Trouble in and around a call: interrupts, forks, closing, odd numbers. Afterwards the next answer is right."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
import psutil
import pytest
from numba.core import event

import rnnpar
from rnnpar import registry
from rnnpar.kernels.forward import Plan
from tests.conftest import BOUND, CPU, prepare_on_two, random_input

COMPILED = [name for name in CPU if name not in ("serial/naive", "serial/hoisted")]
ON_TEAM = [name for name in CPU if name.startswith(("threads/", "in_time/"))]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def error_of(run: rnnpar.runner.Runner, x: np.ndarray, h0: np.ndarray | None = None) -> float:
    y, h = run(x, h0)
    wanted = rnnpar.reference(run.net, x, h0)
    return max(np.abs(y - wanted[0]).max(), np.abs(h - wanted[1]).max())


# --- interrupts ----------------------------------------------------------------------------------------------------


def interrupted(run, x: np.ndarray) -> float:
    """Call, and send this process a SIGINT meanwhile; returns how long after it the call ended."""
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, send)
    timer.start()

    def call():
        run(x)
        time.sleep(60)  # the call was too short, and what follows says so

    with pytest.raises(KeyboardInterrupt):
        call()
    return time.perf_counter() - sent[0]


@pytest.mark.parametrize("name", COMPILED)
def test_an_interrupt_ends_a_long_call_and_the_next_answer_is_right(name, monkeypatch):
    made = []

    def marked_results(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        y, h = results(plan)
        y.fill(np.nan)
        made.append(y)
        return y, h

    results = Plan.results
    monkeypatch.setattr(Plan, "results", marked_results)
    H, T = (256, 400_000) if name.startswith("in_time") else (1024, 300_000)  # seconds
    net = rnnpar.RNN.random(1, H, 1)
    run = prepare_on_two(net, name)
    x, short = np.zeros((T, 1, 1), np.float32), random_input(net, 40, 1)
    assert error_of(run, short) < BOUND
    whole = 100 * run.timed(x[: T // 100])[0]
    late = interrupted(run, x)
    assert np.isnan(made[-1][-1]).all(), "the call went on to its end"
    assert late < whole / 8, "the threads went on, and nothing came of it"
    assert error_of(run, short) < BOUND
    run.close()


@pytest.mark.parametrize("name", ["serial/naive", "serial/hoisted"])
def test_an_interrupt_ends_a_long_call_of_numpy(name):
    net = rnnpar.RNN.random(1, 512, 1)
    run = rnnpar.prepare(net, name)
    interrupted(run, np.zeros((200_000, 1, 1), np.float32))
    assert error_of(run, random_input(net, 20, 2)) < BOUND


@pytest.mark.parametrize("name", CPU)
def test_whatever_moment_an_interrupt_comes_in_the_next_answer_is_right(name):
    """Short calls of changing shapes, so that it may hit buffers in the making as well as threads at work."""
    net = rnnpar.RNN.random(4, 40, 6, 2)
    run = prepare_on_two(net, name)
    inputs = [random_input(net, T, B, seed=T) for T, B in ((3, 2), (40, 1), (7, 5))]
    wanted = [rnnpar.reference(net, x)[0] for x in inputs]

    def handler(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    rng = np.random.default_rng(0)
    try:
        for turn in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                while True:
                    run(inputs[turn % 3])
                    run(inputs[(turn + 1) % 3])
            except InterruptedError:
                pass
            for x, y in zip(inputs, wanted, strict=True):
                assert np.abs(run(x)[0] - y).max() < BOUND
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_calls_the_same_runner_is_told():
    net = rnnpar.RNN.random(1, 256, 1)
    run = rnnpar.prepare(net, "serial/compiled")
    x = np.zeros((400_000, 1, 1), np.float32)
    before = signal.signal(signal.SIGALRM, lambda *_: run(x[:3]))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(RuntimeError, match="handler called this serial/compiled runner"):
            run(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert error_of(run, random_input(net, 9, 2)) < BOUND


# --- forks ---------------------------------------------------------------------------------------------------------


def in_a_fork(work) -> int:
    """The exit status of a forked child that does some work, 0 where that is true."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    for _ in range(600):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


@forks
@pytest.mark.filterwarnings("ignore:This process")  # Python 3.12 and later warn of a fork beside threads
@pytest.mark.parametrize("name", CPU)
def test_a_runner_works_in_a_forked_child_and_in_its_parent(name):
    net = rnnpar.RNN.random(4, 40, 6)
    run = prepare_on_two(net, name)
    x = random_input(net, 30, 2)
    assert error_of(run, x) < BOUND
    assert in_a_fork(lambda: error_of(run, x) < BOUND and error_of(prepare_on_two(net, name), x) < BOUND) == 0
    assert in_a_fork(lambda: run.close() is None) == 0
    assert error_of(run, x) < BOUND


@forks
@pytest.mark.filterwarnings("ignore:This process")
def test_a_pool_of_forked_processes():
    net = rnnpar.RNN.random(4, 40, 6)
    run = rnnpar.prepare(net, "threads/rows", threads=2)
    x = random_input(net, 30, 2)
    run(x)
    global _inherited
    _inherited = run, x
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert max(pool.map_async(inherited_error, range(6)).get(60)) < BOUND


def inherited_error(_: int) -> float:
    return float(error_of(*_inherited))


@forks
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("name", ["serial/naive", "serial/compiled", "threads/rows", "in_time/segments"])
def test_a_fork_while_another_thread_is_in_a_call(name):
    net = rnnpar.RNN.random(4, 300, 6)
    run = prepare_on_two(net, name)
    x, short = random_input(net, 3000, 1), random_input(net, 30, 2)
    run(short)
    stop = threading.Event()

    def keep_calling():
        while not stop.is_set():
            run(x)

    thread = threading.Thread(target=keep_calling)
    thread.start()
    try:
        time.sleep(0.1)
        assert in_a_fork(lambda: error_of(run, short) < BOUND) == 0
    finally:
        stop.set()
        thread.join()
    assert error_of(run, short) < BOUND


# --- closing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CPU, "auto"])
def test_a_closed_runner_says_so(name, tmp_path, monkeypatch):
    net = rnnpar.RNN.random(3, 8, 5)
    with rnnpar.prepare(net, name) as run:
        if name != "auto":  # which would measure this machine first
            run(random_input(net, 3, 1))
    with pytest.raises(RuntimeError, match="closed; prepare a new one"):
        run(random_input(net, 3, 1))
    with pytest.raises(RuntimeError, match="closed"):
        run.timed(np.zeros((0, 1, 3), np.float32))
    run.close()


@pytest.mark.parametrize("name", COMPILED)
def test_closing_gives_memory_back_at_once(name):
    """With the collector of cycles switched off: nothing may need it."""
    net = rnnpar.RNN.random(512, 512, 512)
    x = np.zeros((16, 1, 512), np.float32)

    def use():
        with prepare_on_two(net, name) as run:
            run(x)

    use()
    gc.collect()
    gc.disable()
    try:
        before = psutil.Process().memory_info().rss
        for _ in range(20):
            use()
        more = psutil.Process().memory_info().rss - before
    finally:
        gc.enable()
    weights = 4 * 3 * 512**2
    assert more < 4 * weights, f"{more / weights:.1f} times the weights of one are still held"


def test_a_runner_cannot_be_pickled_and_says_what_can():
    net = rnnpar.RNN.random(3, 8, 5)
    for name in ("serial/naive", "threads/rows", "auto"):
        with pytest.raises(TypeError, match=r"cannot be pickled: pickle its network, run.net"):
            pickle.dumps(rnnpar.prepare(net, name))
    again = pickle.loads(pickle.dumps(net))
    assert np.array_equal(again.V, net.V)


# --- numbers and arrays of every kind ------------------------------------------------------------------------------


def odd_inputs(net) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    shape = (net.num_layers, 3, net.hidden_size)
    cases = {name: (random_input(net, 12, 3), None) for name in ("NaN", "infinity", "inf - inf", "huge", "denormal")}
    cases["NaN"][0][4, 1, 0] = np.nan
    cases["infinity"][0][4, 1, 0] = np.inf
    cases["inf - inf"][0][4, 1, :2] = np.inf, -np.inf
    cases["huge"][0][:] = 3e38
    cases["denormal"][0][:] = 1e-42
    for name, value in (("NaN in h0", np.nan), ("infinity in h0", np.inf), ("minus infinity in h0", -np.inf)):
        h0 = np.zeros(shape, np.float32)
        h0[0, 2, 3], h0[1, 0, :2] = value, value
        cases[name] = random_input(net, 12, 3), h0
    x = random_input(net, 12, 3)
    x[-1, 0] = np.nan  # in the last step
    x[0, 2] = np.nan  # and in the first
    cases["NaN at both ends"] = x, None
    return cases


NET = rnnpar.RNN.random(5, 40, 7, 2)


@pytest.mark.parametrize("case", odd_inputs(NET))
@pytest.mark.parametrize("name", CPU)
def test_numbers_that_are_not_finite_come_out_as_from_the_oracle(name, case):
    x, h0 = odd_inputs(NET)[case]
    run = prepare_on_two(NET, name)
    for _ in range(2):
        got, wanted = run(x, h0), rnnpar.reference(NET, x, h0)
        for mine, oracles in zip(got, wanted, strict=True):
            assert np.array_equal(np.isnan(mine), np.isnan(oracles))
            assert np.allclose(np.nan_to_num(mine), np.nan_to_num(oracles), rtol=0, atol=1e-5)


def test_in_time_keeps_nan_through_windows_and_on_arrays():
    x = random_input(NET, 70, 3)
    x[20, 1, 0] = np.nan
    wanted = rnnpar.reference(NET, x)[0]
    for name in ("jacobi", "segments", "quasi_deer", "deer"):
        for options in (dict(window=16), dict(array_module="numpy"), dict(array_module="numpy", window=7)):
            y, _ = rnnpar.prepare(NET, f"in_time/{name}", threads=2, **options)(x)
            assert np.array_equal(np.isnan(y), np.isnan(wanted))
            assert np.nanmax(np.abs(y - wanted)) < BOUND


@pytest.mark.parametrize("name", CPU)
def test_what_the_caller_tells_numpy_of_errors_is_no_matter(name):
    x = random_input(NET, 12, 3)
    wanted = rnnpar.reference(NET, x)[0]
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        run = prepare_on_two(NET, name)
        assert np.abs(run(x)[0] - wanted).max() < BOUND
        run(np.full_like(x, 3e38))
        run(np.full_like(x, 1e-42))


@pytest.mark.parametrize("name", COMPILED)
def test_no_array_makes_a_later_call_compile(name):
    run = prepare_on_two(NET, name)
    x = random_input(NET, 12, 4)
    y, _ = run(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    h0 = np.asfortranarray(np.zeros((2, 4, 40), np.float32))
    h0.flags.writeable = False
    kinds = [read_only, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1][::-1], unaligned]
    compiled = Compiled()
    event.register("numba:compile", compiled)
    try:
        for kind in kinds:
            assert np.array_equal(run(kind)[0], y)
            assert np.array_equal(run(kind, h0)[0], y)
    finally:
        event.unregister("numba:compile", compiled)
    assert not compiled.found


class Compiled(event.Listener):
    """What Numba compiles while it listens."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_start(self, event):
        self.found.append(str(event.data["dispatcher"]))

    def on_end(self, event):
        pass


@pytest.mark.parametrize("method", ["serial/naive", "threads/rows", "auto"])
def test_masked_arrays_are_refused(method):
    run = rnnpar.prepare(NET, method)
    x, h0 = random_input(NET, 4, 2), np.zeros((2, 2, 40), np.float32)
    with pytest.raises(TypeError, match=r"x is a masked array.*filled"):
        run(np.ma.masked_invalid(x))
    with pytest.raises(TypeError, match=r"h0 is a masked array.*filled"):
        run(x, np.ma.array(h0))


def test_every_cpu_method_is_tried():
    able = {row.name for row in registry.methods() if row.available and row.backend in ("serial", "threads", "in_time")}
    assert able <= set(CPU)
    assert set(ON_TEAM) <= set(CPU)
